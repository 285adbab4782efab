"""Stores uploaded blobs before the rows that refer to them, and deletes the blobs that no row refers to.

A pending deletion is committed before the first byte is stored, so a crash at any moment leaves no blob behind that
nothing would delete. Whoever inserts the row removes the pending deletion in the same transaction.
"""

from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import IO

from shared.errors import Unavailable
from shared.storage.blobs import Blobs
from shared.store.database import Database


@contextmanager
def staged_upload(
    source: IO[bytes], uri: str, expires_after: timedelta, database: Database, blobs: Blobs
) -> Generator[str]:
    """Store a blob and yield its SHA-256 in hex; the caller then claims the blob for a row.

    If the caller raises, the blob is deleted at once. If it cannot be deleted then, or if this process dies, a worker
    deletes it after `expires_after`.

    Raises:
        StorageFull: there is no room for the blob.
        Unavailable: the database or the blob store cannot be reached.
    """
    with database.transaction() as transaction:
        transaction.pending_deletions.add(uri, expires_after)
    try:
        yield blobs.put(uri, source)
    except Exception:
        with suppress(Unavailable):
            delete_blobs([uri], database, blobs)
        raise


def delete_blobs(uris: Sequence[str], database: Database, blobs: Blobs) -> None:
    """Delete blobs, then their pending deletions.

    Raises:
        Unavailable: the database or the blob store cannot be reached. The pending deletions are then kept.
    """
    for uri in uris:
        blobs.delete(uri)
    with database.transaction() as transaction:
        transaction.pending_deletions.remove(uris)
