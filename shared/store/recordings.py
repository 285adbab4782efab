"""Which sound files there are, and which must go.

A blob is doomed until a recording claims it: its name is written down before its bytes are, so that a crash at any
moment leaves no voice behind that no row knows of.
"""

from collections.abc import Sequence
from datetime import timedelta
from uuid import UUID

from sqlalchemy import Connection, delete, func, insert, select, union, update
from sqlalchemy.dialects.postgresql import insert as upsert

from shared.domain.job import OPEN, JobStatus
from shared.domain.recording import Recording
from shared.store.tables import doomed_blobs, jobs, recordings, turns

_STILL_OPEN = jobs.c.status.in_(OPEN)
_DELETION_LOCK = 7_366_711_002


class Recordings:
    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def announce(self, uri: str, patience: timedelta) -> None:
        """Write down that a blob is about to be stored; it is deleted unless claimed within `patience`."""
        self._connection.execute(insert(doomed_blobs).values(uri=uri, after=func.now() + patience))

    def claim(
        self,
        session_id: UUID,
        *,
        uri: str,
        sha256: str,
        media_type: str,
        duration_s: float | None,
        channels: int | None,
        retention: timedelta | None,
        source_id: UUID | None = None,
    ) -> Recording:
        """Make a stored blob a session's recording. `retention` None: it goes once its turn has been analysed."""
        self._connection.execute(delete(doomed_blobs).where(doomed_blobs.c.uri == uri))
        row = self._connection.execute(
            insert(recordings)
            .values(
                session_id=session_id,
                uri=uri,
                sha256=sha256,
                media_type=media_type,
                duration_s=duration_s,
                channels=channels,
                expires_at=None if retention is None else func.now() + retention,
                source_id=source_id,
            )
            .returning(recordings)
        ).one()
        return Recording.model_validate(row)

    def expire(self) -> int:
        """Doom the sound of every recording whose time is up and whose turn has ended; how many there were."""
        of_turn = jobs.join(turns, turns.c.id == jobs.c.turn_id)
        heard = select(jobs.c.id).select_from(of_turn).where(turns.c.recording_id == recordings.c.id, _STILL_OPEN)
        its = jobs.c.recording_id.in_([recordings.c.id, recordings.c.source_id])
        cut = select(jobs.c.id).where(its, _STILL_OPEN)
        waiting = heard.exists() | cut.exists()
        due = (
            select(recordings.c.id, recordings.c.uri)
            .where(recordings.c.uri.is_not(None), recordings.c.expires_at <= func.now(), ~waiting)
            .with_for_update(skip_locked=True)
            .limit(1000)
        )
        rows = self._connection.execute(due).all()
        if rows:
            values = [{"uri": row.uri, "after": func.now()} for row in rows]
            self._connection.execute(upsert(doomed_blobs).values(values).on_conflict_do_nothing())
            ids = [row.id for row in rows]
            self._connection.execute(update(recordings).where(recordings.c.id.in_(ids)).values(uri=None))
        return len(rows)

    def abandon(self, quarantined_for: timedelta) -> None:
        """Keep no longer the sound of turns that nobody looked at since they were quarantined.

        Only sound that nobody consented to keep, which else goes with the end of its turn's analysis.
        """
        long_ago = (jobs.c.status == JobStatus.quarantined.value) & (jobs.c.updated_at < func.now() - quarantined_for)
        of_turns = select(turns.c.recording_id).join(jobs, jobs.c.turn_id == turns.c.id).where(long_ago)
        whole = select(jobs.c.recording_id).where(long_ago)
        cut = recordings.alias("cut")
        forgotten = union(of_turns, whole, select(cut.c.id).where(cut.c.source_id.in_(whole)))
        self._connection.execute(
            update(recordings)
            .where(recordings.c.id.in_(forgotten), recordings.c.expires_at.is_(None))
            .values(expires_at=func.now())
        )

    def doomed(self, limit: int = 1000) -> Sequence[str]:
        """Blobs to delete now. They stay locked until this transaction ends. None while deletion is paused."""
        if not self._connection.execute(select(func.pg_try_advisory_xact_lock_shared(_DELETION_LOCK))).scalar_one():
            return []
        return (
            self._connection.execute(
                select(doomed_blobs.c.uri)
                .where(doomed_blobs.c.after <= func.now())
                .with_for_update(skip_locked=True)
                .limit(limit)
            )
            .scalars()
            .all()
        )

    def pause_deletion(self) -> None:
        """Wait until no worker deletes blobs, and let none delete any until this transaction ends."""
        self._connection.execute(select(func.pg_advisory_xact_lock(_DELETION_LOCK)))

    def uris(self) -> Sequence[str]:
        """The names of the blobs of all recordings."""
        return self._connection.execute(select(recordings.c.uri).where(recordings.c.uri.is_not(None))).scalars().all()

    def forget(self, uris: Sequence[str]) -> None:
        """The blobs are gone."""
        self._connection.execute(delete(doomed_blobs).where(doomed_blobs.c.uri.in_(uris)))
