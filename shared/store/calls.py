"""Long recordings, and what was cut off them."""

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

from sqlalchemy import Connection, delete, func, insert, select
from sqlalchemy.dialects.postgresql import insert as upsert

from shared.domain.job import Job, JobStatus, TurnLane
from shared.domain.recording import Channel, Recording, RecordingProgress, RecordingWork
from shared.errors import RecordingNotFound
from shared.store.tables import calls, doomed_blobs, jobs, recordings, sessions, turns


class Calls:
    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def add(self, recording_id: UUID, voices: Sequence[Channel], lane: TurnLane, began_at: datetime | None) -> None:
        """Write down how a long recording is to be cut into turns. `began_at` None: now."""
        values = {"recording_id": recording_id, "voices": [voice.model_dump(mode="json") for voice in voices]}
        began = {} if began_at is None else {"began_at": began_at}
        self._connection.execute(insert(calls).values(**values, lane=lane.value, **began))

    def work(self, job: Job) -> RecordingWork:
        """The long recording of a job."""
        found = self._connection.execute(
            select(recordings, calls.c.voices, calls.c.lane, calls.c.began_at, sessions.c.tenant_id, sessions.c.consent)
            .join(calls, calls.c.recording_id == recordings.c.id)
            .join(sessions, sessions.c.id == recordings.c.session_id)
            .where(recordings.c.id == job.recording_id)
        )
        row = found.mappings().one()
        return RecordingWork.model_validate({**row, "job": job, "recording": dict(row)})

    def progress(self, tenant_id: UUID, recording_id: UUID) -> RecordingProgress:
        """How far a long recording is. Raises RecordingNotFound where the tenant has none of that id."""
        mine = (recordings.c.id == recording_id, sessions.c.tenant_id == tenant_id)
        row = self._connection.execute(select(recordings).join(sessions).join(calls).where(*mine)).one_or_none()
        if row is None:
            raise RecordingNotFound(f"there is no long recording {recording_id}")
        job = self._connection.execute(select(jobs).where(jobs.c.recording_id == recording_id)).one()
        recording = Recording.model_validate(row)
        return RecordingProgress(recording=recording, job=Job.model_validate(job), turns=self._turns(recording_id))

    def doom_cuts(self, recording_id: UUID) -> None:
        """Doom what was cut off a recording and became no turn: an earlier attempt had cut it off."""
        no_turn = ~select(turns.c.id).where(turns.c.recording_id == recordings.c.id).exists()
        cuts = delete(recordings).where(recordings.c.source_id == recording_id, no_turn)
        gone = cuts.returning(recordings.c.uri).cte("gone")
        doomed = select(gone.c.uri, func.now()).where(gone.c.uri.is_not(None))
        self._connection.execute(upsert(doomed_blobs).from_select(["uri", "after"], doomed).on_conflict_do_nothing())

    def _turns(self, recording_id: UUID) -> dict[JobStatus, int]:
        cut = recordings.join(turns, turns.c.recording_id == recordings.c.id).join(jobs, jobs.c.turn_id == turns.c.id)
        counted = select(jobs.c.status, func.count()).select_from(cut).where(recordings.c.source_id == recording_id)
        rows = self._connection.execute(counted.group_by(jobs.c.status))
        found = {JobStatus(status): count for status, count in rows}
        return {status: found.get(status, 0) for status in JobStatus}
