"""One worker's life with a job: claim it, analyse the turn, write the result."""

import logging
import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from uuid import UUID

import numpy as np

from shared.audio import Samples, decode
from shared.blobs import BlobFolder
from shared.domain.history import Work
from shared.domain.job import Job, Message
from shared.errors import RecordingGone, RequestError, TenorError, Unavailable
from shared.modeling.pipeline import Analysis, Pipeline
from shared.queue import ANALYZE_TURN, INTERACTIVE, Queue
from shared.settings import Settings
from shared.store.database import Database, Transaction
from shared.telemetry import type_and_place

_log = logging.getLogger(__name__)
_STORED = np.dtype("<f2")


class Engine:
    """Runs jobs on the models of this process. Many threads may call `run` at once."""

    def __init__(
        self, settings: Settings, database: Database, queue: Queue, blobs: BlobFolder, pipeline: Pipeline
    ) -> None:
        self._settings = settings
        self._database = database
        self._queue = queue
        self._blobs = blobs
        self._pipeline = pipeline
        self._held: dict[UUID, Job] = {}
        self._held_lock = threading.Lock()

    @property
    def held(self) -> list[Job]:
        """The jobs that this process is at."""
        with self._held_lock:
            return list(self._held.values())

    def run(self, job_id: UUID) -> None:
        """Do a job, unless it has ended, is gone, is another worker's or has to wait for an earlier turn's.

        A turn that cannot be analysed ends `failed` with its code. Anything unexpected puts the job back for another
        attempt. Where even that cannot be written down, the lease runs out and the sweeper takes the job up.
        """
        try:
            self._run(job_id)
        except Exception as error:
            # Not left to Celery, which would log the message, and with it perhaps what a person said.
            _log.error("job %s is left to the sweeper: %s", job_id, type_and_place(error))

    def _run(self, job_id: UUID) -> None:
        with self._database.transaction() as transaction:
            work = transaction.jobs.claim(job_id, self._settings.lease, self._pipeline.bundle.id)
        if work is None:
            return
        with self._holding(work.job):
            try:
                self._finish(work.job, self._analyze(work))
            except RequestError as error:
                _log.info("job %s failed: %s", job_id, error.code)
                self._end(work.job, lambda transaction, error=error: transaction.jobs.fail(work.job, error))
            except Exception as error:
                self._put_back(work.job, error)

    def _analyze(self, work: Work) -> Analysis:
        return self._pipeline.analyze(
            samples=self._samples(work),
            text=work.turn.text,
            language=work.language_hint,
            earlier=[np.frombuffer(stored, _STORED).astype(np.float16) for stored in work.earlier],
            context=work.context,
        )

    def _samples(self, work: Work) -> Samples | None:
        if work.recording is None:
            return None
        if work.recording.uri is None:
            raise RecordingGone("the recording was deleted before it was analysed")
        return decode(self._blobs.path(work.recording.uri), self._settings.max_turn_s)

    def _finish(self, job: Job, analysis: Analysis) -> None:
        summary = None if analysis.voice_summary is None else analysis.voice_summary.astype(_STORED).tobytes()

        def write(transaction: Transaction) -> bool:
            return transaction.jobs.succeed(
                job, self._pipeline.bundle.id, analysis.transcript, analysis.reading, summary
            )

        written = self._end(job, write)
        _log.info("job %s %s", job.id, "succeeded" if written else "was no longer ours: result dropped")

    def _end(self, job: Job, write: Callable[[Transaction], bool]) -> bool:
        """Write how a job ended, then send for those that waited for it."""
        with self._database.transaction() as transaction:
            if not write(transaction):
                return False
            messages = transaction.jobs.release(
                job.turn_id, task=ANALYZE_TURN, queue=INTERACTIVE, lease=self._settings.lease
            )
        if messages:
            self._send(messages)
        return True

    def _send(self, messages: Sequence[Message]) -> None:
        sent = self._queue.send(messages)
        # A message that cannot be struck off is sent twice, and done once.
        with suppress(Unavailable), self._database.transaction() as transaction:
            transaction.jobs.sent(sent)

    def _put_back(self, job: Job, error: Exception) -> None:
        _log.error("job %s, attempt %d: %s", job.id, job.attempts, type_and_place(error))
        _log.debug("job %s: %s", job.id, error)
        known = error if isinstance(error, TenorError) else TenorError(f"internal error ({type(error).__name__})")
        if job.attempts >= self._settings.max_attempts:
            self._end(job, lambda transaction: transaction.jobs.quarantine(job, known))
            return
        with self._database.transaction() as transaction:
            transaction.jobs.retry(job, known, backoff(job.attempts))

    @contextmanager
    def _holding(self, job: Job) -> Generator[None]:
        with self._held_lock:
            self._held[job.id] = job
        try:
            yield
        finally:
            with self._held_lock:
                self._held.pop(job.id, None)


def backoff(attempts: int) -> timedelta:
    """How long to wait before the next attempt: 1 s, then twice as long each time, at most a minute."""
    return timedelta(seconds=min(2.0 ** (attempts - 1), 60.0))
