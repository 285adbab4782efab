"""Runs one job: claim it, read what it is about, do it, write the result or that the attempt failed."""

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
from shared.errors import ClaimLost, StageTimeout, StorageFull, TenorError, Unavailable
from shared.messaging.broker import Broker
from shared.messaging.publish import publish_messages
from shared.observability.logging import log_context, type_and_traceback
from shared.observability.metrics import JOB_SECONDS, JOBS_TOTAL, QUEUE_WAIT_SECONDS
from shared.observability.tracing import record_error, start_as_current_span
from shared.settings import Settings
from shared.store.database import Database, Transaction
from shared.store.jobs import Jobs

_log = logging.getLogger(__name__)

StageEntered = Callable[[str], None]
"""Called on the job's thread with the name of each stage that the job enters. Each has `stage_limit_s` of its own."""
ResultWriter = Callable[[Transaction], Sequence[Message]]
"""Writes a job's result in the transaction that ends the job. Returns the messages to publish after its commit."""
StatusWriter = Callable[[Jobs], Sequence[Message] | None]
"""Writes the status with which a job ends. Returns the messages to publish, or None if its claim is void."""
Details = TypeVar("Details")
_STORAGE_FULL_PAUSE = timedelta(minutes=1)


class Task(Protocol[Details]):
    """What is done with the jobs of a lane."""

    def read(self, transaction: Transaction, job: Job, /) -> Details:
        """Return what the job is about, in the transaction that claims it."""
        ...

    def do(self, job: Job, details: Details, on_stage: StageEntered, /) -> ResultWriter:
        """Do the job, and return what writes its result.

        Raises:
            TenorError: the attempt failed. Another one follows if the error is `retryable`, as after any other
                exception.
        """
        ...


@dataclass
class RunningJob:
    """A job that a thread of this process runs.

    Attributes:
        stage: which it is in.
        since: when it entered the stage, by the monotonic clock.
        abandoned: whether its attempt was ended as timed out, while the thread still hangs.
    """

    job: Job
    stage: str
    since: float
    abandoned: bool = False


class JobRunner:
    """Runs jobs, each by the task of its lane. Many threads may call `run` at once.

    Args:
        context_turns: how many turns before a turn the tasks read as its context.
    """

    def __init__(
        self,
        settings: Settings,
        database: Database,
        broker: Broker,
        tasks: Mapping[Lane, Task[Any]],
        context_turns: int = 0,
    ) -> None:
        self._settings = settings
        self._database = database
        self._broker = broker
        self._tasks = tasks
        self._context_turns = context_turns
        self._running: dict[int, RunningJob] = {}
        self._calls = 0
        self._closed = False
        self._lock = threading.Lock()

    @property
    def running_jobs(self) -> list[Job]:
        """The jobs that this process runs, without the abandoned ones."""
        with self._lock:
            return [running.job for running in self._running.values() if not running.abandoned]

    @property
    def abandoned(self) -> Counter[Lane]:
        """How many threads of each lane hang at an abandoned job."""
        with self._lock:
            return Counter(running.job.lane for running in self._running.values() if running.abandoned)

    @property
    def is_busy(self) -> bool:
        """Whether a call of `run` may still end a job."""
        with self._lock:
            return self._calls > sum(running.abandoned for running in self._running.values())

    def close(self) -> None:
        """Run no more jobs."""
        with self._lock:
            self._closed = True

    def abandon_timed_out(self) -> None:
        """End the attempt of every job that is longer in one stage than `stage_limit_s`.

        The job's thread cannot be ended and goes on. Its result is dropped if the job was claimed again by then.

        Raises:
            Unavailable: the database cannot be reached.
        """
        limit = self._settings.worker.stage_limit_s
        before = time.monotonic() - limit
        with self._lock:
            timed_out = [each for each in self._running.values() if each.since < before and not each.abandoned]
        for running in timed_out:
            with _job_context(running.job):
                error = StageTimeout(f"the stage {running.stage!r} took longer than {limit:g} s")
                self.record_failure(running.job, error)
            running.abandoned = True

    def release(self, jobs: Collection[Job]) -> None:
        """Let other workers run unfinished jobs at once. This attempt does not count.

        Raises:
            Unavailable: the database cannot be reached. The jobs run again when their leases have run out.
        """
        with self._database.transaction() as transaction:
            messages = transaction.jobs.release(jobs, lease=self._settings.jobs.lease)
        publish_messages(messages, self._database, self._broker)

    def record_failure(self, job: Job, error: Exception) -> None:
        """Write that an attempt failed. Whether the job runs again is decided here, by `error.retryable` alone.

        An error that is not retryable fails the job. Any other, and any exception that is no `TenorError`, leads to
        another attempt after a pause, or to quarantine if there is no attempt left.

        Raises:
            Unavailable: the database cannot be reached. The job runs again when its lease has run out.
        """
        if isinstance(error, TenorError) and not error.retryable:
            _log.info("the job failed: %s", error.code)
            self._end(job, "failed", lambda jobs: jobs.fail(job, error, lease=self._settings.jobs.lease))
        else:
            _log_failed_attempt(job, error)
            # The message of an exception that is not ours may quote what a person said.
            known = error if isinstance(error, TenorError) else TenorError(f"internal error ({type(error).__name__})")
            self._retry_or_quarantine(job, known)

    def run(self, job_id: UUID) -> bool:
        """Run a job. Does nothing if it has ended, does not exist, is leased, or has to wait for an earlier turn's job.

        If the failure of an attempt cannot be written, the lease runs out and the sweeper has the job run again.

        Returns:
            False if this runner is closed. Nothing was done then.
        """
        with self._lock:
            if self._closed:
                return False
            self._calls += 1
        try:
            with log_context(job_id=job_id), _leave_errors_to_sweeper():
                self._claim_and_do(job_id)
        finally:
            with self._lock:
                self._calls -= 1
        return True

    def _claim_and_do(self, job_id: UUID) -> None:
        with self._database.transaction() as transaction:
            job = transaction.jobs.claim(job_id, self._settings.jobs.lease, self._context_turns)
            if job is None:
                return
            task = self._tasks[job.lane]
            details = task.read(transaction, job)
        if job.attempts == 1:
            # Both times are by the database's clock. Later attempts also waited for their retry.
            QUEUE_WAIT_SECONDS.labels(job.lane).observe((job.updated_at - job.created_at).total_seconds())
        # The sweeper's lines within, so that they carry the job's correlation id too.
        with _job_context(job), _leave_errors_to_sweeper(), self._tracked(job), _attempt_span(job) as attempt:
            self._do(task, job, details, attempt)

    def _do(self, task: Task[Details], job: Job, details: Details, attempt: Span) -> None:
        with JOB_SECONDS.labels(job.lane).time():
            try:
                self._succeed(job, task.do(job, details, self._enter_stage))
            except ClaimLost:
                JOBS_TOTAL.labels(job.lane, "void").inc()
                _log.info("another worker took the job over")
            except Exception as error:
                record_error(attempt, error)
                self.record_failure(job, error)

    def _succeed(self, job: Job, write_result: ResultWriter) -> None:
        ended = self._end(
            job, "succeeded", lambda jobs: jobs.succeed(job, lease=self._settings.jobs.lease), write_result
        )
        _log.info("the job succeeded" if ended else "another worker took the job over: this result is dropped")

    def _end(
        self, job: Job, outcome: str, write_status: StatusWriter, write_result: ResultWriter = lambda _: ()
    ) -> bool:
        """Write how a job ended, and publish messages for the jobs that waited for it. False if its claim was void."""
        with start_as_current_span("store"), self._database.transaction() as transaction:
            messages = write_status(transaction.jobs)
            if messages is not None:
                messages = [*messages, *write_result(transaction)]
        JOBS_TOTAL.labels(job.lane, "void" if messages is None else outcome).inc()
        publish_messages(messages or (), self._database, self._broker)
        return messages is not None

    def _retry_or_quarantine(self, job: Job, error: TenorError) -> None:
        policy = self._settings.retries[job.lane]
        # A disk may be full for longer than all attempts last, and the job is not to blame for it.
        full = isinstance(error, StorageFull)
        if job.attempts >= policy.attempts and not full:
            self._end(job, "quarantined", lambda jobs: jobs.quarantine(job, error, lease=self._settings.jobs.lease))
            return
        pause = _STORAGE_FULL_PAUSE if full else policy.pause(job.attempts)
        with self._database.transaction() as transaction:
            queued = transaction.jobs.retry(job, error, pause, counted=not full)
        JOBS_TOTAL.labels(job.lane, "retried" if queued else "void").inc()

    @contextmanager
    def _tracked(self, job: Job) -> Generator[None]:
        """List the job among the running ones meanwhile, under this thread."""
        thread = threading.get_ident()
        with self._lock:
            self._running[thread] = RunningJob(job, "claim", time.monotonic())
        try:
            yield
        finally:
            with self._lock:
                del self._running[thread]

    def _enter_stage(self, stage: str) -> None:
        running = self._running[threading.get_ident()]
        if running.stage != stage:
            running.stage, running.since = stage, time.monotonic()


def _job_context(job: Job) -> AbstractContextManager[None]:
    return log_context(correlation_id=job.correlation_id, job_id=job.id)


def _log_failed_attempt(job: Job, error: Exception) -> None:
    if job.lane is Lane.delivery and isinstance(error, Unavailable):
        # A receiver that does not answer is no fault of Tenor's code, so its place in the code is of no use.
        _log.warning("attempt %d: %s", job.attempts, error.detail)
    else:
        _log.error("attempt %d: %s", job.attempts, type_and_traceback(error))
        _log.debug("attempt %d: %s", job.attempts, error)


def _attempt_span(job: Job) -> AbstractContextManager[Span]:
    return start_as_current_span(
        "attempt", SpanKind.CONSUMER, job.traceparent, lane=job.lane.value, attempt=job.attempts
    )


@contextmanager
def _leave_errors_to_sweeper() -> Generator[None]:
    try:
        yield
    except Exception as error:
        # Without its message, which may quote what a person said.
        _log.error("the job is left to the sweeper: %s", type_and_traceback(error))
