"""Uploads are stored before their rows. A pending deletion, written first, removes an upload that no row claims."""

from collections.abc import Generator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import IO

from shared.errors import Unavailable
from shared.storage.blobs import Blobs
from shared.store.database import Database


@contextmanager
def staged_upload(source: IO[bytes], uri: str, patience: timedelta, database: Database, blobs: Blobs) -> Generator[str]:
    """Store sound, to be claimed within; its sha256, in hex.

    Where that fails, it goes at once; where it cannot, or this process dies, once `patience` has passed.

    Raises:
        StorageFull: there is no room for it.
        Unavailable: the database or the store cannot be reached.
    """
    with database.transaction() as transaction:
        transaction.pending_deletions.add(uri, patience)
    try:
        yield blobs.put(uri, source)
    except Exception:
        with suppress(Unavailable):
            blobs.delete(uri)
            with database.transaction() as transaction:
                transaction.pending_deletions.remove([uri])
        raise
