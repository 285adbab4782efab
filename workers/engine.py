"""One worker's life with a job: claim it, analyse the turn, write the result."""

import logging
import threading
import time
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID

import numpy as np

from shared import outbox
from shared.audio import Samples, decode
from shared.blobs import Blobs
from shared.domain.history import Work
from shared.domain.job import Job
from shared.errors import RecordingGone, RequestError, StageTimeout, TenorError
from shared.modeling.pipeline import Analysis, Item, Pipeline, Result, Stage, Submit
from shared.queue import ANALYZE_TURN, Queue
from shared.settings import Settings
from shared.store.database import Database, Transaction
from shared.telemetry import JOB_SECONDS, JOBS, QUEUE_WAIT, STAGE_SECONDS, about, type_and_place
from shared.tracing import Span, span
from workers.stages import Stages

_log = logging.getLogger(__name__)
_STORED = np.dtype("<f2")


@dataclass
class Held:
    """A job that a thread of this process is at; since when in its stage, by the monotonic clock."""

    job: Job
    stage: str
    since: float
    given_up: bool = False


class Engine:
    """Runs jobs on the models of this process. Many threads may call `run` at once."""

    def __init__(
        self, settings: Settings, database: Database, queue: Queue, blobs: Blobs, pipeline: Pipeline, stages: Stages
    ) -> None:
        self._settings = settings
        self._database = database
        self._queue = queue
        self._blobs = blobs
        self._pipeline = pipeline
        self._stages = stages
        self._held: dict[int, Held] = {}
        self._running = 0
        self._closed = False
        self._lock = threading.Lock()

    @property
    def held(self) -> list[Job]:
        """The jobs that this process is at, and has not given up."""
        with self._lock:
            return [held.job for held in self._held.values() if not held.given_up]

    @property
    def stuck(self) -> int:
        """How many threads are still at a job that was given up."""
        with self._lock:
            return sum(held.given_up for held in self._held.values())

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
            with _about(held.job):
                self._put_back(held.job, StageTimeout(f"the stage {held.stage!r} took longer than {limit:g} s"))
            held.given_up = True

    def give_back(self) -> None:
        """Hand what is not finished to other workers at once; the attempt does not count.

        Raises:
            Unavailable: the database is away. The leases run out by themselves.
        """
        with self._database.transaction() as transaction:
            messages = transaction.jobs.give_back(self.held, task=ANALYZE_TURN, lease=self._settings.lease)
        outbox.send(messages, self._database, self._queue)

    def run(self, job_id: UUID) -> bool:
        """Do a job, unless it has ended, is gone, is another worker's or has to wait for an earlier turn's.

        False where this process takes no more jobs up, and nothing was done.

        A turn that cannot be analysed ends `failed` with its code. Anything unexpected puts the job back for another
        attempt. Where even that cannot be written down, the lease runs out and the sweeper takes the job up.
        """
        with self._lock:
            if self._closed:
                return False
            self._running += 1
        try:
            with about(job_id=job_id), _rest_left_to_sweeper():
                self._run(job_id)
        finally:
            with self._lock:
                self._running -= 1
        return True

    def _run(self, job_id: UUID) -> None:
        with self._database.transaction() as transaction:
            work = transaction.jobs.claim(job_id, self._settings.lease, self._pipeline.bundle.id)
        if work is None:
            return
        if work.job.attempts == 1:
            # Both times are the database's. Later attempts also waited for their turn to be tried again.
            QUEUE_WAIT.labels(work.job.lane).observe((work.job.updated_at - work.job.created_at).total_seconds())
        with _about(work.job), _rest_left_to_sweeper(), self._holding(work.job), _attempt(work.job) as attempt:
            self._do(work, attempt)

    @JOB_SECONDS.time()
    def _do(self, work: Work, attempt: Span) -> None:
        try:
            self._finish(work.job, self._analyze(work))
        except RequestError as error:
            attempt.error = error
            _log.info("the job failed: %s", error.code)
            self._end(work.job, "failed", lambda transaction, error=error: transaction.jobs.fail(work.job, error))
        except Exception as error:
            attempt.error = error
            self._put_back(work.job, error)

    def _analyze(self, work: Work) -> Analysis:
        with self._stages.turn(work.job.lane) as submit:
            return self._pipeline.analyze(
                samples=self._samples(work),
                text=work.turn.text,
                language=work.language_hint,
                earlier=[np.frombuffer(stored, _STORED).astype(np.float16) for stored in work.earlier],
                context=work.context,
                submit=self._entering(submit),
            )

    def _samples(self, work: Work) -> Samples | None:
        if work.recording is None:
            return None
        self._enter("decode")
        if work.recording.uri is None:
            raise RecordingGone("the recording was deleted before it was analysed")
        with span("decode"), STAGE_SECONDS.labels("decode").time(), self._blobs.open(work.recording.uri) as recording:
            return decode(recording, self._settings.max_turn_s)

    def _finish(self, job: Job, analysis: Analysis) -> None:
        summary = None if analysis.voice_summary is None else analysis.voice_summary.astype(_STORED).tobytes()

        def write(transaction: Transaction) -> bool:
            return transaction.jobs.succeed(
                job, self._pipeline.bundle.id, analysis.transcript, analysis.reading, summary
            )

        written = self._end(job, "succeeded", write)
        _log.info("the job %s", "succeeded" if written else "was no longer ours: its result is dropped")

    def _end(self, job: Job, outcome: str, write: Callable[[Transaction], bool]) -> bool:
        """Write how a job ended, then send for those that waited for it. False where it was no longer ours."""
        with span("store"), self._database.transaction() as transaction:
            written = write(transaction)
            lease = self._settings.lease
            messages = transaction.jobs.release(job.turn_id, task=ANALYZE_TURN, lease=lease) if written else []
        JOBS.labels(outcome if written else "void").inc()
        outbox.send(messages, self._database, self._queue)
        return written

    def _put_back(self, job: Job, error: Exception) -> None:
        _log.error("attempt %d: %s", job.attempts, type_and_place(error))
        _log.debug("attempt %d: %s", job.attempts, error)
        known = error if isinstance(error, TenorError) else TenorError(f"internal error ({type(error).__name__})")
        if job.attempts >= self._settings.max_attempts:
            self._end(job, "quarantined", lambda transaction: transaction.jobs.quarantine(job, known))
            return
        with self._database.transaction() as transaction:
            waits = transaction.jobs.retry(job, known, backoff(job.attempts))
        JOBS.labels("put_back" if waits else "void").inc()

    @contextmanager
    def _holding(self, job: Job) -> Generator[None]:
        thread = threading.get_ident()
        with self._lock:
            self._held[thread] = Held(job, "claim", time.monotonic())
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

    def _entering(self, submit: Submit) -> Submit:
        """Hands in as `submit` does. A stage's time is that of waiting for it, before and after, and of running."""

        def entered(stage: Stage[Item, Result], item: Item, /) -> Callable[[], Result]:
            self._enter(stage.name)
            wait = submit(stage, item)

            def result() -> Result:
                self._enter(stage.name)
                return wait()

            return result

        return entered


def _about(job: Job) -> AbstractContextManager[None]:
    return about(correlation_id=job.correlation_id, job_id=job.id)


def _attempt(job: Job) -> AbstractContextManager[Span]:
    return span("attempt", "CONSUMER", job.traceparent, lane=job.lane.value, attempt=job.attempts)


@contextmanager
def _rest_left_to_sweeper() -> Generator[None]:
    try:
        yield
    except Exception as error:
        # Not left to Celery, which would log the message, and with it perhaps what a person said.
        _log.error("the job is left to the sweeper: %s", type_and_place(error))


def backoff(attempts: int) -> timedelta:
    """How long to wait before the next attempt: 1 s, then twice as long each time, at most a minute."""
    return timedelta(seconds=min(2.0 ** (attempts - 1), 60.0))
