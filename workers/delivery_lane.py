"""Posts events to webhooks from one event loop, with hundreds of requests under way."""

import asyncio
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from contextvars import copy_context
from dataclasses import dataclass
from datetime import timedelta
from http import HTTPStatus
from typing import ParamSpec, TypeVar
from uuid import UUID

import httpx2 as httpx
from opentelemetry.trace import SpanKind

from shared.domain.job import Job, Lane
from shared.domain.webhook import Delivery
from shared.errors import ResolverBusy, TenorError, Unavailable, WebhookForbidden, WebhookGone
from shared.observability.logging import log_context, type_and_traceback
from shared.observability.metrics import JOB_SECONDS, JOBS_TOTAL, QUEUE_WAIT_SECONDS
from shared.observability.tracing import record_error, start_as_current_span
from shared.settings import DELIVERY_CONNECTIONS, Settings
from shared.store.database import Database
from workers.job_runner import JobRunner
from workers.webhook_client import WebhookClient

_log = logging.getLogger(__name__)
_LANE = Lane.delivery
_GATHER_S = 0.01
"""How long to wait for more deliveries to end, so that one query of the database claims the next ones."""

Args = ParamSpec("Args")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Outcome:
    """How an attempt to post an event ended.

    Attributes:
        error: None if the receiver accepted the event.
        answered: whether the receiver works; None if nothing was sent to it.
    """

    error: TenorError | None
    answered: bool | None = None


class DeliveryLane:
    """Posts events to webhooks, on one event loop in a thread of its own.

    The database says which events are due (`Deliveries.claim`). It is asked when a message comes, when an attempt ends
    that other deliveries may wait for, and every `sweep_interval_s`: a message only makes it quicker. So the order of
    the messages does not matter, and however many events wait for one webhook, no other webhook's event waits for them.
    """

    def __init__(self, settings: Settings, database: Database, runner: JobRunner) -> None:
        self._settings = settings
        self._database = database
        self._runner = runner
        self._tls = httpx.create_ssl_context()
        self._in_flight: dict[tuple[UUID, int], Delivery] = {}
        self._changed = threading.Condition()
        self._stopping = False
        self._full, self._busy = False, set[UUID]()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._woken = asyncio.Event()
        self._database_threads = ThreadPoolExecutor(DELIVERY_CONNECTIONS, thread_name_prefix="deliveries")
        self._thread = threading.Thread(target=self._run_loop, name="deliveries", daemon=True)

    @property
    def running_jobs(self) -> list[Job]:
        """The jobs that this lane has claimed and not ended."""
        with self._changed:
            return [delivery.job for delivery in self._in_flight.values()]

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Claim nothing more. Requests under way go on to their end."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        self._wake()

    def join(self, timeout_s: float | None = None) -> None:
        """Wait for the requests under way to end."""
        if self._thread.is_alive():
            self._thread.join(timeout_s)
        self._database_threads.shutdown(wait=timeout_s is None)

    def wake(self, job_id: UUID) -> bool:
        """Wait until fewer deliveries than allowed are in flight, then have due ones claimed.

        A worker that has no room waits here with its message, and leaves the other messages to other workers.

        Args:
            job_id: ignored, because the database says which deliveries are due.

        Returns:
            False if this lane is stopping.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._stopping or self._room > 0)
            if self._stopping:
                return False
        self._wake()
        return True

    @property
    def _room(self) -> int:
        return self._settings.webhooks.in_flight - len(self._in_flight)

    def _run_loop(self) -> None:
        while not self._stopping:
            try:
                asyncio.run(self._run())
            except Exception as error:
                _log.error("the delivery lane starts its event loop again: %s", type_and_traceback(error))
                time.sleep(1)

    async def _run(self) -> None:
        with self._changed:
            self._loop, self._woken = asyncio.get_running_loop(), asyncio.Event()
        async with WebhookClient(self._settings, self._tls) as client, asyncio.TaskGroup() as attempts:
            while not self._stopping:
                self._woken.clear()
                for delivery in await self._claim():
                    attempts.create_task(self._attempt(client, delivery))
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._woken.wait(), self._settings.worker.sweep_interval_s)
                    await asyncio.sleep(_GATHER_S)

    def _wake(self) -> None:
        """Have the event loop claim due deliveries. May be called on any thread."""
        with self._changed:
            loop, woken = self._loop, self._woken
        with suppress(RuntimeError):  # the loop has ended
            if loop is not None:
                loop.call_soon_threadsafe(woken.set)

    async def _claim(self) -> list[Delivery]:
        with self._changed:
            room = self._room
            in_flight = Counter(delivery.webhook_id for delivery in self._in_flight.values())
        if room <= 0:
            return []
        try:
            claimed = await self._in_thread(self._claim_due, room, in_flight)
        except Unavailable as error:
            _log.warning("no delivery is claimed: %s", error.detail)
            return []
        except Exception as error:
            _log.error("no delivery is claimed: %s", type_and_traceback(error))
            return []
        with self._changed:
            self._in_flight.update((_key(delivery), delivery) for delivery in claimed)
        # More may be due if as many were claimed as there was room for.
        self._full = len(claimed) >= room
        in_flight.update(delivery.webhook_id for delivery in claimed)
        most = self._settings.webhooks.in_flight_per_webhook
        self._busy = {webhook_id for webhook_id, count in in_flight.items() if count >= most}
        return claimed

    def _claim_due(self, room: int, in_flight: Counter[UUID]) -> list[Delivery]:
        settings = self._settings
        trial = settings.jobs.lease + timedelta(seconds=settings.webhooks.timeout_s)
        with self._database.transaction() as transaction:
            return transaction.deliveries.claim(
                room,
                per_webhook=settings.webhooks.in_flight_per_webhook,
                in_flight=in_flight,
                lease=settings.jobs.lease,
                trial=trial,
            )

    async def _attempt(self, client: WebhookClient, delivery: Delivery) -> None:
        """Post an event, and write how that ended. If that cannot be written, the lease runs out."""
        job = delivery.job
        if job.attempts == 1:
            QUEUE_WAIT_SECONDS.labels(_LANE).observe((job.updated_at - job.created_at).total_seconds())
        with log_context(correlation_id=job.correlation_id, job_id=job.id):
            try:
                with (
                    start_as_current_span(
                        "attempt", SpanKind.CONSUMER, job.traceparent, lane=_LANE.value, attempt=job.attempts
                    ) as attempt,
                    JOB_SECONDS.labels(_LANE).time(),
                ):
                    outcome = await self._post(client, delivery)
                    if outcome.error is not None:
                        record_error(attempt, outcome.error)
                    await self._in_thread(self._record, delivery, outcome)
            except Exception as error:
                _log.error("the delivery is left until its lease runs out: %s", type_and_traceback(error))
            finally:
                self._leave_flight(delivery)

    async def _post(self, client: WebhookClient, delivery: Delivery) -> Outcome:
        if delivery.disabled_at is not None:
            return Outcome(WebhookGone("the webhook was disabled before the event was sent"))
        if delivery.job.attempts > self._settings.retries[_LANE].attempts:
            return Outcome(Unavailable("its worker died in the last attempt"))
        try:
            status = await client.post(delivery)
        except (WebhookForbidden, ResolverBusy) as error:
            return Outcome(error)
        except Unavailable as error:
            return Outcome(error, answered=False)
        if status == HTTPStatus.GONE:
            return Outcome(WebhookGone("the receiver answered 410"), answered=True)
        error = None if httpx.codes.is_success(status) else Unavailable(f"the receiver answered {status}")
        overloaded = httpx.codes.is_server_error(status) or status == HTTPStatus.TOO_MANY_REQUESTS
        return Outcome(error, answered=not overloaded)

    def _record(self, delivery: Delivery, outcome: Outcome) -> None:
        """Write the state of the webhook, then how the delivery ended.

        In two transactions if the attempt failed: the deletion of a webhook locks the webhook before its jobs, so one
        transaction that locked them in the other order could deadlock with it.
        """
        job, deleted = delivery.job, False
        with start_as_current_span("store"), self._database.transaction() as transaction:
            if outcome.answered:
                transaction.webhooks.record_answer(delivery.webhook_id)
            elif outcome.answered is not None:
                pauses = self._settings.webhooks.pauses
                pause = transaction.webhooks.record_failure(delivery.webhook_id, pauses, trial=delivery.trial)
                if pause is not None:
                    _log.warning("webhook %s is paused for %g s", delivery.webhook_id, pause.total_seconds())
            if outcome.error is None:
                deleted = transaction.deliveries.succeed(job)
            elif outcome.answered and isinstance(outcome.error, WebhookGone):
                transaction.webhooks.disable(delivery.webhook_id, "it answered 410")
        if outcome.error is None:
            JOBS_TOTAL.labels(_LANE, "succeeded" if deleted else "void").inc()
            _log.info("the event was delivered")
        else:
            self._runner.record_failure(job, outcome.error)

    def _leave_flight(self, delivery: Delivery) -> None:
        """Remove a delivery from those in flight, and claim the next ones if others may have waited for its place."""
        with self._changed:
            del self._in_flight[_key(delivery)]
            self._changed.notify_all()
        if self._full or delivery.webhook_id in self._busy or delivery.trial:
            self._woken.set()

    async def _in_thread(self, call: Callable[Args, Result], *args: Args.args, **kwargs: Args.kwargs) -> Result:
        """Call a function that uses the database on a thread, so that the event loop does not wait for it."""
        context = copy_context()
        return await asyncio.get_running_loop().run_in_executor(
            self._database_threads, lambda: context.run(call, *args, **kwargs)
        )


def _key(delivery: Delivery) -> tuple[UUID, int]:
    return delivery.id, delivery.job.claims
