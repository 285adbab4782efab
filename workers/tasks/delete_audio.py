"""Deletes the audio of pending deletions from the blob store."""

import itertools
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from shared.domain.job import Job, Message
from shared.errors import Unavailable
from shared.storage.blobs import Blobs
from shared.store.database import Database, Transaction
from workers.job_runner import ResultWriter, StageEntered

_THREADS = 16
_BATCH = 4 * _THREADS
"""So few that a batch ends within the limit of a stage even if every deletion waits until the blob store times out."""
_log = logging.getLogger(__name__)


class DeleteAudio:
    """Deletes the blobs whose deletion is pending and due."""

    def __init__(self, database: Database, blobs: Blobs) -> None:
        self._database = database
        self._blobs = blobs

    def read(self, transaction: Transaction, job: Job) -> None:
        """Return nothing: each batch asks the database what is due."""

    def do(self, job: Job, details: None, on_stage: StageEntered) -> ResultWriter:
        """Delete every blob that is due. A deletion that fails stays pending, and the next job retries it."""
        with ThreadPoolExecutor(_THREADS, "delete") as threads:
            for batch in itertools.count():
                on_stage(f"deletion {batch}")
                if not self._delete_batch(threads):
                    break

        def write(transaction: Transaction) -> Sequence[Message]:
            transaction.jobs.delete(job)
            return ()

        return write

    def _delete_batch(self, threads: ThreadPoolExecutor) -> bool:
        """Delete up to `_BATCH` blobs. Returns whether all were deleted and more may be due."""
        with self._database.transaction() as transaction:
            due = transaction.pending_deletions.due(_BATCH)
            deleted = [uri for uri, ok in zip(due, threads.map(self._delete, due), strict=True) if ok]
            transaction.pending_deletions.remove(deleted)
        return len(deleted) == _BATCH

    def _delete(self, uri: str) -> bool:
        try:
            self._blobs.delete(uri)
        except Unavailable as error:
            _log.warning("%s; the deletion is retried", error.detail)
            return False
        return True
