"""Recordings: stored audio files, and the long ones that a worker splits into turns.

A long recording has a row of its own beside that of its audio file. Each turn that is cut from it has a small
recording, called a part here, whose `source_id` is the long one.
"""

from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy import Connection, delete, func, insert, select, union, update

from shared.domain.job import OPEN, Job, JobStatus, TurnLane
from shared.domain.recording import Channel, Recording, RecordingProgress, RecordingWork
from shared.domain.warning import AnalysisWarning
from shared.errors import RecordingNotFound
from shared.store.pending_deletions import PendingDeletions, insert_due
from shared.store.tables import jobs, long_recordings, recordings, sessions, turns

_EXPIRED_AT_ONCE = 1000
_HAS_OPEN_JOB = jobs.c.status.in_(OPEN)
_IS_OF_TURN = select(turns.c.id).where(turns.c.recording_id == recordings.c.id).exists()


class Recordings:
    """Reads and writes recordings."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def add(
        self,
        session_id: UUID,
        *,
        uri: str,
        sha256: str,
        media_type: str,
        duration_s: float | None,
        channel_count: int | None,
        retention: timedelta | None,
        source_id: UUID | None = None,
    ) -> Recording:
        """Add the recording of a blob that was uploaded, whose pending deletion is removed.

        Args:
            retention: how long the audio is kept; None: until its turn has been analysed.
            source_id: the long recording that it was cut from, if so.
        """
        PendingDeletions(self._connection).remove([uri])
        row = self._connection.execute(
            insert(recordings)
            .values(
                session_id=session_id,
                uri=uri,
                sha256=sha256,
                media_type=media_type,
                duration_s=duration_s,
                channel_count=channel_count,
                expires_at=None if retention is None else func.now() + retention,
                source_id=source_id,
            )
            .returning(recordings)
        ).one()
        return Recording.model_validate(row)

    def add_long(
        self, recording_id: UUID, channels: Sequence[Channel], lane: TurnLane, started_at: datetime | None
    ) -> None:
        """Add how a recording is to be split into turns.

        Args:
            channels: who speaks on each channel, or one for all channels together.
            lane: where its turns are queued.
            started_at: when the recording began; None: now.
        """
        values = {"recording_id": recording_id, "channels": [channel.model_dump(mode="json") for channel in channels]}
        started = {} if started_at is None else {"started_at": started_at}
        self._connection.execute(insert(long_recordings).values(**values, lane=lane.value, **started))

    def warn(self, recording_id: UUID, warnings: Sequence[AnalysisWarning]) -> None:
        """Store the warnings about a recording, in place of earlier ones."""
        values = [asdict(warning) for warning in warnings]
        self._connection.execute(update(recordings).where(recordings.c.id == recording_id).values(warnings=values))

    def read_work(self, job: Job) -> RecordingWork:
        """Return the long recording of a job, and all that a worker needs to split it."""
        how = (long_recordings.c.channels, long_recordings.c.lane, long_recordings.c.started_at)
        found = self._connection.execute(
            select(recordings, *how, sessions.c.tenant_id, sessions.c.consent)
            .join(long_recordings, long_recordings.c.recording_id == recordings.c.id)
            .join(sessions, sessions.c.id == recordings.c.session_id)
            .where(recordings.c.id == job.recording_id)
        )
        row = found.mappings().one()
        return RecordingWork.model_validate({**row, "job": job, "recording": dict(row)})

    def progress(self, tenant_id: UUID, recording_id: UUID) -> RecordingProgress:
        """Return a long recording with the number of its turns in each status.

        Raises:
            RecordingNotFound: the tenant has no long recording of this id.
        """
        wanted = (recordings.c.id == recording_id, sessions.c.tenant_id == tenant_id)
        found = select(recordings).join(sessions).join(long_recordings).where(*wanted)
        row = self._connection.execute(found).one_or_none()
        if row is None:
            raise RecordingNotFound(f"there is no long recording {recording_id}")
        job = self._connection.execute(select(jobs).where(jobs.c.recording_id == recording_id)).one()
        turn_counts = self._turn_counts(recording_id)
        return RecordingProgress(
            recording=Recording.model_validate(row), job=Job.model_validate(job), turns=turn_counts
        )

    def uris(self) -> Sequence[str]:
        """Return the URIs of the blobs of all recordings."""
        return self._connection.execute(select(recordings.c.uri).where(recordings.c.uri.is_not(None))).scalars().all()

    def expire(self) -> int:
        """Make the blobs of expired recordings pending deletions, and return how many there were.

        The recording of a turn whose job is open is left until the job has ended, however old it is. So are a long
        recording and its parts.
        """
        of_turn = jobs.join(turns, turns.c.id == jobs.c.turn_id)
        analysed = select(jobs.c.id).select_from(of_turn).where(turns.c.recording_id == recordings.c.id, _HAS_OPEN_JOB)
        is_split = jobs.c.recording_id.in_([recordings.c.id, recordings.c.source_id])
        in_use = analysed.exists() | select(jobs.c.id).where(is_split, _HAS_OPEN_JOB).exists()
        # Recordings that another sweeper expires are skipped, so that several sweepers share the work.
        expired = (
            select(recordings.c.id)
            .where(recordings.c.uri.is_not(None), recordings.c.expires_at <= func.now(), ~in_use)
            .with_for_update(skip_locked=True)
            .limit(_EXPIRED_AT_ONCE)
        )
        ids = self._connection.execute(expired).scalars().all()
        if ids:
            self._connection.execute(insert_due(select(recordings.c.uri).where(recordings.c.id.in_(ids))))
            self._connection.execute(update(recordings).where(recordings.c.id.in_(ids)).values(uri=None))
        return len(ids)

    def expire_quarantined(self, quarantined_for: timedelta) -> None:
        """Expire the recordings of jobs that have been in quarantine for longer than `quarantined_for`.

        Only recordings without a consented retention are concerned: they would else be kept until an operator requeues
        or drops the job.
        """
        long_ago = (jobs.c.status == JobStatus.quarantined.value) & (jobs.c.updated_at < func.now() - quarantined_for)
        of_turns = select(turns.c.recording_id).join(jobs, jobs.c.turn_id == turns.c.id).where(long_ago)
        unsplit = select(jobs.c.recording_id).where(long_ago)
        part = recordings.alias("part")
        parts = select(part.c.id).where(part.c.source_id.in_(unsplit))
        self._connection.execute(
            update(recordings)
            .where(recordings.c.id.in_(union(of_turns, unsplit, parts)), recordings.c.expires_at.is_(None))
            .values(expires_at=func.now())
        )

    def delete_unused_parts(self, recording_id: UUID) -> None:
        """Delete the parts of a long recording that became no turn, which an earlier attempt left behind.

        Their blobs become pending deletions.
        """
        unused = delete(recordings).where(recordings.c.source_id == recording_id, ~_IS_OF_TURN)
        deleted = unused.returning(recordings.c.uri).cte("deleted")
        self._connection.execute(insert_due(select(deleted.c.uri).where(deleted.c.uri.is_not(None))))

    def expire_for(self, job: Job) -> None:
        """Expire the audio of a job that has ended, where there is no consented retention."""
        of_turn = select(turns.c.recording_id).where(turns.c.id == job.turn_id).scalar_subquery()
        its = recordings.c.id == func.coalesce(job.recording_id, of_turn)
        self._connection.execute(
            update(recordings).where(its, recordings.c.expires_at.is_(None)).values(expires_at=func.now())
        )

    def expire_unused_parts(self, job: Job) -> None:
        """Expire the parts that a failed job cut from its recording, and that became no turn, whatever the consent."""
        unused = update(recordings).where(recordings.c.source_id == job.recording_id, ~_IS_OF_TURN)
        self._connection.execute(unused.values(expires_at=func.now()))

    def _turn_counts(self, recording_id: UUID) -> dict[JobStatus, int]:
        parts = recordings.join(turns, turns.c.recording_id == recordings.c.id).join(jobs, jobs.c.turn_id == turns.c.id)
        counted = select(jobs.c.status, func.count()).select_from(parts).where(recordings.c.source_id == recording_id)
        rows = self._connection.execute(counted.group_by(jobs.c.status))
        found = {JobStatus(status): number for status, number in rows}
        return {status: found.get(status, 0) for status in JobStatus}
