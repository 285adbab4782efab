"""Pending deletions: the blobs that are to be deleted, each with the time from which it may be.

A row is written before its blob is uploaded and removed when a recording of that blob is added. So a crash at any
moment leaves no audio behind that no row names.
"""

from collections.abc import Sequence
from datetime import timedelta

from sqlalchemy import Connection, Select, delete, func, insert, select
from sqlalchemy.dialects.postgresql import Insert
from sqlalchemy.dialects.postgresql import insert as upsert

from shared.store.tables import pending_deletions

_DELETION_LOCK = 7_366_711_002
"""The number of the advisory lock that a backup takes to pause deletions."""


class PendingDeletions:
    """Reads and writes pending deletions."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def add(self, uri: str, patience: timedelta) -> None:
        """Record that a blob is about to be uploaded; it is deleted unless a recording of it is added in `patience`."""
        self._connection.execute(insert(pending_deletions).values(uri=uri, delete_after=func.now() + patience))

    def due(self, limit: int = 1000) -> Sequence[str]:
        """Return the URIs of blobs to delete now, which stay locked until this transaction ends.

        There are none while deletions are paused.
        """
        if not self._connection.execute(select(func.pg_try_advisory_xact_lock_shared(_DELETION_LOCK))).scalar_one():
            return []
        # Blobs that another worker is deleting are skipped, so that several workers share the work.
        locked = select(pending_deletions.c.uri).where(pending_deletions.c.delete_after <= func.now())
        return self._connection.execute(locked.with_for_update(skip_locked=True).limit(limit)).scalars().all()

    def remove(self, uris: Sequence[str]) -> None:
        """Remove the pending deletions of these blobs, which have been deleted or now belong to a recording."""
        self._connection.execute(delete(pending_deletions).where(pending_deletions.c.uri.in_(uris)))

    def pause(self) -> None:
        """Wait until no worker deletes blobs, and let none delete any until this transaction ends."""
        self._connection.execute(select(func.pg_advisory_xact_lock(_DELETION_LOCK)))


def insert_due(uris: Select[tuple[str]]) -> Insert:
    """Return the statement that makes blobs, selected by their URIs, pending deletions that are due now."""
    due = uris.add_columns(func.now())
    return upsert(pending_deletions).from_select(["uri", "delete_after"], due).on_conflict_do_nothing()
