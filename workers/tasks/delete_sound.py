"""Sound that must go is deleted from the store of recordings."""

import itertools
import logging
from collections.abc import Sequence

from shared.blobs import Blobs
from shared.domain.job import Job, Message
from shared.errors import Unavailable
from shared.store.database import Database, Transaction
from workers.engine import Enter, Write

_AT_ONCE = 100
_log = logging.getLogger(__name__)


class DeleteSound:
    def __init__(self, database: Database, blobs: Blobs) -> None:
        self._database = database
        self._blobs = blobs

    def read(self, transaction: Transaction, job: Job) -> None:
        """Nothing: which sound has to go is found on the way."""

    def do(self, job: Job, details: None, enter: Enter) -> Write:
        """Delete all that is doomed by now. What cannot be deleted stays doomed, and the next such job tries again."""
        for batch in itertools.count():
            enter(f"deletion {batch}")
            if not self._deleted_some():
                break

        def write(transaction: Transaction) -> Sequence[Message]:
            transaction.jobs.forget(job)
            return ()

        return write

    def _deleted_some(self) -> bool:
        """Delete a few; whether all of them went, and there may be more."""
        with self._database.transaction() as transaction:
            doomed = transaction.recordings.doomed(_AT_ONCE)
            gone = [uri for uri in doomed if self._deleted(uri)]
            transaction.recordings.forget(gone)
        return len(gone) == _AT_ONCE

    def _deleted(self, uri: str) -> bool:
        try:
            self._blobs.delete(uri)
        except Unavailable as error:
            _log.warning("%s; it is tried again", error.detail)
            return False
        return True
