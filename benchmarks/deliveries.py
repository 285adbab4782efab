"""`tenor bench deliveries`: events per second that a worker delivers to webhooks, also while one does not answer."""

import asyncio
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import psycopg
import uvicorn

from benchmarks.embedded_service import embedded_servers
from benchmarks.figures import Figure
from services.embedded.servers import EmbeddedServers, free_port
from shared.errors import BenchmarkFailed
from shared.messaging.broker import Broker
from shared.settings import Settings
from shared.store.database import Database

WORKER = {
    "TENOR_WORKER_INTERACTIVE_THREADS": "0",
    "TENOR_WORKER_BULK_THREADS": "0",
    "TENOR_WORKER_RECORDING_THREADS": "0",
    "TENOR_WEBHOOKS_ALLOW_PRIVATE": "true",
}
"""The settings of a worker that only delivers events."""
WARM_UP_EVENTS = 10
SLOW_ANSWER_S = 30.0


class WebhookReceiver:
    """A server that counts requests by path; it answers those to /slow after `SLOW_ANSWER_S`, all others at once."""

    def __init__(self) -> None:
        self._received = Counter[str]()
        self._port = free_port()
        config = uvicorn.Config(self._answer, port=self._port, interface="asgi3", log_level="warning", lifespan="off")
        threading.Thread(target=uvicorn.Server(config).run, daemon=True).start()

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self._port}{path}"

    def count(self, path: str) -> int:
        """Return how many requests to a path have come."""
        return self._received[path]

    def wait_for(self, path: str, count: int, timeout_s: float) -> float:
        """Wait until `count` requests to a path have come in all, and return the seconds that took.

        Raises:
            BenchmarkFailed: they did not come in time.
        """
        started = time.monotonic()
        while self._received[path] < count:
            if time.monotonic() - started > timeout_s:
                raise BenchmarkFailed(f"{count - self._received[path]} events were not delivered in {timeout_s:g} s")
            time.sleep(0.005)
        return time.monotonic() - started

    async def _answer(
        self, scope: dict[str, Any], receive: Callable[[], Awaitable[Any]], send: Callable[[Any], Awaitable[None]]
    ) -> None:
        while (await receive()).get("more_body"):
            pass
        self._received[scope["path"]] += 1
        if scope["path"] == "/slow":
            await asyncio.sleep(SLOW_ANSWER_S)
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})


class EventSource:
    """Inserts webhooks and their events into the database, and publishes the jobs that deliver the events."""

    def __init__(self, servers: EmbeddedServers) -> None:
        self._url = servers.database_url.get_secret_value()
        self._database, self._broker = Database(servers.database_url), Broker(servers.broker_url)

    def add_webhook(self, tenant: str, url: str) -> str:
        """Create a webhook of a new tenant and return its id."""
        with self._database.transaction() as transaction:
            return str(transaction.webhooks.create(transaction.accounts.ensure_tenant(tenant), url).id)

    def add_events(self, webhook_id: str, count: int) -> None:
        """Insert `count` events of one new turn, and publish their jobs."""
        with psycopg.connect(self._url) as connection:
            turn = connection.execute(
                "WITH s AS (INSERT INTO sessions (tenant_id, consent)"
                " SELECT tenant_id, '{}' FROM webhooks WHERE id = %s RETURNING id)"
                " INSERT INTO turns (session_id, index, speaker, role, occurred_at)"
                " SELECT id, 0, 'Ann', 'user', now() FROM s RETURNING id",
                [webhook_id],
            ).fetchone()
            assert turn is not None
            connection.execute(
                "WITH d AS (INSERT INTO deliveries (webhook_id, turn_id, turn_status)"
                " SELECT %s, %s, 'succeeded' FROM generate_series(1, %s) RETURNING id, webhook_id),"
                " j AS (INSERT INTO jobs (delivery_id, webhook_id, lane, lease_until)"
                " SELECT id, webhook_id, 'delivery', now() FROM d RETURNING id)"
                " INSERT INTO outbox (job_id, task, queue) SELECT id, 'deliver_event', 'delivery' FROM j",
                [webhook_id, turn[0], count],
            )
        with self._database.transaction() as transaction:
            messages = transaction.outbox.unsent(timedelta(0), limit=100_000)
            if self._broker.publish(messages):
                transaction.outbox.remove(messages)


def measure_deliveries(settings: Settings, events: int, backlog: int, timeout_s: float) -> Generator[Figure]:
    """Yield the events per second to a webhook that answers, and the latency of an event beside one that does not.

    Args:
        settings: of Tenor; the benchmark uses a data folder of its own.
        events: to the webhook that answers at once.
        backlog: events that wait for the webhook that answers after `SLOW_ANSWER_S`.
        timeout_s: longest wait for the events of one step.

    Raises:
        BenchmarkFailed: events were not delivered in time.
    """
    receiver = WebhookReceiver()
    with embedded_servers(settings) as (_, servers):
        source = EventSource(servers)
        fast = source.add_webhook("fast", receiver.url("/fast"))
        slow = source.add_webhook("slow", receiver.url("/slow"))
        with _delivery_worker(servers):

            def deliver(count: int) -> float:
                expected = receiver.count("/fast") + count
                source.add_events(fast, count)
                return receiver.wait_for("/fast", expected, timeout_s)

            deliver(WARM_UP_EVENTS)
            yield Figure.of("deliveries", "events/s", [events / deliver(events)])
            source.add_events(slow, backlog)
            time.sleep(2)
            latencies = [deliver(1)]
            time.sleep(5)
            latencies.append(deliver(1))
            yield Figure.of(f"an event, beside {backlog} of a slow webhook", "s", latencies)


@contextmanager
def _delivery_worker(servers: EmbeddedServers) -> Generator[None]:
    urls = {"TENOR_DATABASE_URL": servers.database_url, "TENOR_BROKER_URL": servers.broker_url}
    env = {**os.environ, **WORKER, **{name: url.get_secret_value() for name, url in urls.items()}}
    worker = subprocess.Popen([sys.executable, "-m", "workers"], env=env)
    try:
        yield
    finally:
        worker.kill()
        worker.wait()
