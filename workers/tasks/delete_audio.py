"""Sound that must go is deleted from the store of recordings."""

import itertools
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from shared.domain.job import Job, Message
from shared.errors import Unavailable
from shared.storage.blobs import Blobs
from shared.store.database import Database, Transaction
from workers.job_runner import Enter, Write

_TOGETHER = 16
_BATCH = 4 * _TOGETHER
"""So few that a batch ends within a stage's limit also where each has to be waited for until the store is given up."""
_log = logging.getLogger(__name__)


class DeleteAudio:
    def __init__(self, database: Database, blobs: Blobs) -> None:
        self._database = database
        self._blobs = blobs

    def read(self, transaction: Transaction, job: Job) -> None:
        """Nothing: which sound has to go is found on the way."""

    def do(self, job: Job, details: None, enter: Enter) -> Write:
        """Delete all that is doomed by now. What cannot be deleted stays doomed, and the next such job tries again."""
        with ThreadPoolExecutor(_TOGETHER, "delete") as threads:
            for batch in itertools.count():
                enter(f"deletion {batch}")
                if not self._deleted_batch(threads):
                    break

        def write(transaction: Transaction) -> Sequence[Message]:
            transaction.jobs.delete(job)
            return ()

        return write

    def _deleted_batch(self, threads: ThreadPoolExecutor) -> bool:
        """Delete some; whether all of them went, and there may be more."""
        with self._database.transaction() as transaction:
            doomed = transaction.pending_deletions.due(_BATCH)
            gone = [uri for uri, deleted in zip(doomed, threads.map(self._deleted, doomed), strict=True) if deleted]
            transaction.pending_deletions.remove(gone)
        return len(gone) == _BATCH

    def _deleted(self, uri: str) -> bool:
        try:
            self._blobs.delete(uri)
        except Unavailable as error:
            _log.warning("%s; it is tried again", error.detail)
            return False
        return True
