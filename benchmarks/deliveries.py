"""Measures how fast a worker delivers events to webhooks, alone and while another webhook does not answer.

    python -m benchmarks.deliveries --help

It starts a private Postgres, a private Valkey and one worker that takes deliveries alone, and receives the events.
"""

import asyncio
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

import psycopg
import typer
import uvicorn

from services.embedded.servers import EmbeddedServers, free_port
from shared.messaging.broker import Broker
from shared.store.database import Database

WORKER = {
    "TENOR_WORKER_THREADS": "0",
    "TENOR_BULK_THREADS": "0",
    "TENOR_INGEST_THREADS": "0",
    "TENOR_WEBHOOK_PRIVATE": "true",
}


class Receiver:
    """A server that counts the requests by path, and answers those to /slow after 30 s, the others at once."""

    def __init__(self) -> None:
        self.received = Counter[str]()
        self.port = free_port()
        config = uvicorn.Config(self._answer, port=self.port, interface="asgi3", log_level="warning", lifespan="off")
        self._server = uvicorn.Server(config)
        threading.Thread(target=self._server.run, daemon=True).start()

    async def _answer(
        self, scope: dict[str, Any], receive: Callable[[], Awaitable[Any]], send: Callable[[Any], Awaitable[None]]
    ) -> None:
        while (await receive()).get("more_body"):
            pass
        self.received[scope["path"]] += 1
        if scope["path"] == "/slow":
            await asyncio.sleep(30)
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    def wait_for(self, path: str, count: int, seconds: float) -> float:
        """How many seconds it took until so many requests to a path had come, at most the given ones."""
        began = time.monotonic()
        while self.received[path] < count and time.monotonic() - began < seconds:
            time.sleep(0.005)
        return time.monotonic() - began


class Events:
    """Adds events, as turns that end add them."""

    def __init__(self, servers: EmbeddedServers) -> None:
        self._url = servers.database_url.get_secret_value()
        self._database, self._queue = Database(servers.database_url), Broker(servers.broker_url)
        self._database.migrate()

    def add_webhook(self, tenant: str, url: str) -> str:
        with self._database.transaction() as transaction:
            return str(transaction.webhooks.create(transaction.accounts.ensure_tenant(tenant), url).id)

    def add(self, webhook_id: str, count: int) -> None:
        """Add events of one turn, and send their messages."""
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
        self._send()

    def _send(self) -> None:
        with self._database.transaction() as transaction:
            messages = transaction.outbox.unsent(timedelta(0), limit=100_000)
            if self._queue.send(messages):
                transaction.outbox.remove(messages)


def main(
    events: Annotated[int, typer.Option(min=1, help="Events to the receiver that answers at once.")] = 2000,
    backlog: Annotated[int, typer.Option(min=1, help="Events that wait for the receiver that does not.")] = 300,
    limit_s: Annotated[float, typer.Option(min=1, help="Give up waiting for an event after so many seconds.")] = 600,
) -> None:
    """Print how many events a second one worker delivers, and how long one event takes beside a receiver that hangs."""
    receiver = Receiver()
    with tempfile.TemporaryDirectory() as folder, EmbeddedServers(Path(folder)) as servers:
        added = Events(servers)
        fast = added.add_webhook("fast", f"http://127.0.0.1:{receiver.port}/fast")
        slow = added.add_webhook("slow", f"http://127.0.0.1:{receiver.port}/slow")
        urls = {"TENOR_DATABASE_URL": servers.database_url, "TENOR_BROKER_URL": servers.broker_url}
        env = {**os.environ, **WORKER, **{name: url.get_secret_value() for name, url in urls.items()}}
        worker = subprocess.Popen([sys.executable, "-m", "workers"], env=env)
        try:
            added.add(fast, 10)
            receiver.wait_for("/fast", 10, limit_s)
            added.add(fast, events)
            seconds = receiver.wait_for("/fast", 10 + events, limit_s)
            typer.echo(f"{events} events to a receiver that answers at once: {events / seconds:.0f} a second")
            added.add(slow, backlog)
            time.sleep(2)
            added.add(fast, 1)
            seconds = receiver.wait_for("/fast", 11 + events, limit_s)
            typer.echo(f"one event, while {backlog} wait for a receiver that answers after 30 s: {seconds:.2f} s")
            time.sleep(5)
            added.add(fast, 1)
            seconds = receiver.wait_for("/fast", 12 + events, limit_s)
            typer.echo(f"another one, 5 s later: {seconds:.2f} s")
        finally:
            worker.kill()
            worker.wait()


if __name__ == "__main__":
    typer.run(main)
