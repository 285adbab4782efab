"""One worker's life with a job: claim it, do it, write the result."""

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Protocol, TypeVar
from uuid import UUID

from opentelemetry.trace import Span, SpanKind

from shared.domain.job import Job, Lane, Message
from shared.errors import ClaimLost, RequestError, StageTimeout, StorageFull, TenorError, Unavailable
from shared.messaging.broker import Broker
from shared.messaging.publish import publish_messages
from shared.observability.logging import log_context, type_and_traceback
from shared.observability.metrics import JOB_SECONDS, JOBS_TOTAL, QUEUE_WAIT_SECONDS
from shared.observability.tracing import record_error, start_as_current_span
from shared.settings import Settings
from shared.store.database import Database, Transaction
from shared.store.jobs import Jobs

_log = logging.getLogger(__name__)

Enter = Callable[[str], None]
"""Says that this thread's job begins a stage of that name. Each has `stage_limit_s` of its own."""
Write = Callable[[Transaction], Sequence[Message]]
"""Writes a result, in the transaction that ends its job; the messages to send once that is committed."""
End = Callable[[Jobs], Sequence[Message] | None]
Details = TypeVar("Details")
_FULL_PAUSE = timedelta(minutes=1)


class Task(Protocol[Details]):
    """What is done with the jobs of a lane."""

    def read(self, transaction: Transaction, job: Job, /) -> Details:
        """What the job is about, in the transaction that claims it."""
        ...

    def do(self, job: Job, details: Details, enter: Enter, /) -> Write:
        """Do it. Raises RequestError where it can never be done, anything else where another attempt may do it."""
        ...


@dataclass
class RunningJob:
    """A job that a thread of this process is at; since when in its stage, by the monotonic clock."""

    job: Job
    stage: str
    since: float
    given_up: bool = False


class JobRunner:
    """Does jobs, each as the task of its lane says. Many threads may call `run` at once."""

    def __init__(self, settings: Settings, database: Database, queue: Broker, tasks: Mapping[Lane, Task[Any]]) -> None:
        self._settings = settings
        self._database = database
        self._queue = queue
        self._tasks = tasks
        self._held: dict[int, RunningJob] = {}
        self._running = 0
        self._closed = False
        self._lock = threading.Lock()

    @property
    def held(self) -> list[Job]:
        """The jobs that this process is at, and has not given up."""
        with self._lock:
            return [held.job for held in self._held.values() if not held.given_up]

    @property
    def stuck(self) -> Counter[Lane]:
        """How many threads of each lane are still at a job that was given up."""
        with self._lock:
            return Counter(held.job.lane for held in self._held.values() if held.given_up)

    @property
    def busy(self) -> bool:
        """Whether a thread is in `run` that may still bring its job to an end."""
        with self._lock:
            return self._running > sum(held.given_up for held in self._held.values())

    def close(self) -> None:
        """Take no more jobs up."""
        with self._lock:
            self._closed = True

    def give_up_stuck(self) -> None:
        """End the attempt of every job that is too long in one stage. Its thread cannot be ended, and goes on.

        Raises:
            Unavailable: the database is away.
        """
        limit = self._settings.stage_limit_s
        with self._lock:
            over = [held for held in self._held.values() if time.monotonic() - held.since > limit and not held.given_up]
        for held in over:
            with _job_context(held.job):
                self._put_back(held.job, StageTimeout(f"the stage {held.stage!r} took longer than {limit:g} s"))
            held.given_up = True

    def give_back(self, jobs: Collection[Job]) -> None:
        """Hand jobs that are not finished to other workers at once; the attempt does not count.

        Raises:
            Unavailable: the database is away. The leases run out by themselves.
        """
        with self._database.transaction() as transaction:
            messages = transaction.jobs.release(jobs, lease=self._settings.lease)
        publish_messages(messages, self._database, self._queue)

    def record_failure(self, job: Job, error: Exception) -> None:
        """End a job whose attempt failed: for good after a RequestError, else only when no attempt is left.

        Raises:
            Unavailable: the database is away. The lease runs out by itself.
        """
        if isinstance(error, RequestError):
            _log.info("the job failed: %s", error.code)
            self._end(job, "failed", lambda jobs: jobs.fail(job, error, lease=self._settings.lease))
        else:
            self._put_back(job, error)

    def run(self, job_id: UUID) -> bool:
        """Do a job, unless it has ended, is gone, is another worker's or has to wait for an earlier turn's.

        False where this process takes no more jobs up, and nothing was done.

        What can never be done ends `failed` with its code. Anything unexpected puts the job back for another
        attempt. Where even that cannot be written down, the lease runs out and the sweeper takes the job up.
        """
        with self._lock:
            if self._closed:
                return False
            self._running += 1
        try:
            with log_context(job_id=job_id), _rest_left_to_sweeper():
                self._run(job_id)
        finally:
            with self._lock:
                self._running -= 1
        return True

    def _run(self, job_id: UUID) -> None:
        with self._database.transaction() as transaction:
            job = transaction.jobs.claim(job_id, self._settings.lease)
            if job is None:
                return
            task = self._tasks[job.lane]
            details = task.read(transaction, job)
        if job.attempts == 1:
            # Both times are the database's. Later attempts also waited for their turn to be tried again.
            QUEUE_WAIT_SECONDS.labels(job.lane).observe((job.updated_at - job.created_at).total_seconds())
        with _job_context(job), _rest_left_to_sweeper(), self._holding(job), _attempt_span(job) as attempt:
            self._do(task, job, details, attempt)

    def _do(self, task: Task[Details], job: Job, details: Details, attempt: Span) -> None:
        with JOB_SECONDS.labels(job.lane).time():
            try:
                self._finish(job, task.do(job, details, self._enter))
            except ClaimLost:
                JOBS_TOTAL.labels(job.lane, "void").inc()
                _log.info("the job was no longer ours")
            except Exception as error:
                record_error(attempt, error)
                self.record_failure(job, error)

    def _finish(self, job: Job, write: Write) -> None:
        written = self._end(job, "succeeded", lambda jobs: jobs.succeed(job, lease=self._settings.lease), write)
        _log.info("the job %s", "succeeded" if written else "was no longer ours: its result is dropped")

    def _end(self, job: Job, outcome: str, end: End, write: Write = lambda _: ()) -> bool:
        """Write how a job ended, then send for those that waited for it. False where it was no longer ours."""
        with start_as_current_span("store"), self._database.transaction() as transaction:
            messages = end(transaction.jobs)
            if messages is not None:
                messages = [*messages, *write(transaction)]
        JOBS_TOTAL.labels(job.lane, "void" if messages is None else outcome).inc()
        publish_messages(messages or (), self._database, self._queue)
        return messages is not None

    def _put_back(self, job: Job, error: Exception) -> None:
        if job.lane is Lane.delivery and isinstance(error, Unavailable):
            # A receiver that does not answer is no fault of Tenor's code, so its place in the code is of no use.
            _log.warning("attempt %d: %s", job.attempts, error.detail)
        else:
            _log.error("attempt %d: %s", job.attempts, type_and_traceback(error))
            _log.debug("attempt %d: %s", job.attempts, error)
        known = error if isinstance(error, TenorError) else TenorError(f"internal error ({type(error).__name__})")
        retry = self._settings.retries[job.lane]
        # A disk may be full for longer than all attempts last, and that is no fault of the job.
        full = isinstance(error, StorageFull)
        pause = _FULL_PAUSE if full else retry.pause(job.attempts)
        if job.attempts >= retry.attempts and not full:
            self._end(job, "quarantined", lambda jobs: jobs.quarantine(job, known, lease=self._settings.lease))
            return
        with self._database.transaction() as transaction:
            waits = transaction.jobs.retry(job, known, pause, counted=not full)
        JOBS_TOTAL.labels(job.lane, "retried" if waits else "void").inc()

    @contextmanager
    def _holding(self, job: Job) -> Generator[None]:
        thread = threading.get_ident()
        with self._lock:
            self._held[thread] = RunningJob(job, "claim", time.monotonic())
        try:
            yield
        finally:
            with self._lock:
                del self._held[thread]

    def _enter(self, stage: str) -> None:
        """This thread's job begins a stage, or comes back to one, which has its own time."""
        held = self._held[threading.get_ident()]
        if held.stage != stage:
            held.stage, held.since = stage, time.monotonic()


def _job_context(job: Job) -> AbstractContextManager[None]:
    return log_context(correlation_id=job.correlation_id, job_id=job.id)


def _attempt_span(job: Job) -> AbstractContextManager[Span]:
    attributes = {"lane": job.lane.value, "attempt": job.attempts}
    return start_as_current_span("attempt", SpanKind.CONSUMER, job.traceparent, **attributes)


@contextmanager
def _rest_left_to_sweeper() -> Generator[None]:
    try:
        yield
    except Exception as error:
        # Not left to Celery, which would log the message, and with it perhaps what a person said.
        _log.error("the job is left to the sweeper: %s", type_and_traceback(error))
