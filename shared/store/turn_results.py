"""What a worker needs to analyse a turn, and what it finds out."""

from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Row, RowMapping, literal, select
from sqlalchemy.dialects.postgresql import insert as upsert

from shared.domain.job import Job
from shared.domain.prediction import Prediction
from shared.domain.recording import Recording
from shared.domain.transcript import Transcript
from shared.domain.turn import MAX_BASELINE_TURNS, MAX_CONTEXT_TURNS, Turn, TurnWork
from shared.store.tables import predictions, recordings, sessions, transcripts, turns, voice_summaries


class TurnResults:
    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def work(self, job: Job, bundle_id: str) -> TurnWork:
        """The turn of a job, to be read by a bundle, and what is known before it."""
        row = self._connection.execute(
            select(turns, sessions.c.language_hint)
            .join(sessions, sessions.c.id == turns.c.session_id)
            .where(turns.c.id == job.turn_id)
        ).one()
        turn = Turn.model_validate(row)
        recording = self._connection.execute(
            select(recordings).where(recordings.c.id == turn.recording_id)
        ).one_or_none()
        return TurnWork(
            job=job,
            turn=turn,
            recording=None if recording is None else Recording.model_validate(recording),
            language_hint=row.language_hint,
            earlier=self._earlier(row, bundle_id),
            context=self._context(turn),
        )

    def write(
        self,
        turn_id: UUID,
        bundle_id: str,
        transcript: Transcript | None,
        reading: Prediction,
        voice_summary: bytes | None = None,
    ) -> None:
        """A turn's result.

        The summary is kept only of a voice that may be told from others: see `turns.scope_id`.
        """
        if transcript is not None:
            values = {"turn_id": turn_id, **transcript.model_dump(mode="json")}
            self._connection.execute(upsert(transcripts).values(values).on_conflict_do_nothing())
        values = {
            "turn_id": turn_id,
            "bundle_id": bundle_id,
            **reading.model_dump(mode="json", exclude_computed_fields=True),
        }
        self._connection.execute(upsert(predictions).values(values).on_conflict_do_nothing())
        if voice_summary is not None:
            self._keep_summary(turn_id, bundle_id, voice_summary)

    def _earlier(self, turn: Row[Any], bundle_id: str) -> tuple[bytes, ...]:
        if turn.scope_id is None:
            return ()
        same_voice = (turns.c.scope_id == turn.scope_id, turns.c.speaker == turn.speaker, turns.c.role == turn.role)
        newest = (
            select(voice_summaries.c.summary)
            .join(turns, turns.c.id == voice_summaries.c.turn_id)
            .where(*same_voice, turns.c.position < turn.position, voice_summaries.c.bundle_id == bundle_id)
            .order_by(turns.c.position.desc())
            .limit(MAX_BASELINE_TURNS)
        )
        return tuple(reversed(self._connection.execute(newest).scalars().all()))

    def _context(self, turn: Turn) -> tuple[str, ...]:
        before = turns.c.index.between(turn.index - MAX_CONTEXT_TURNS, turn.index - 1)
        rows = self._connection.execute(
            select(turns.c.text.label("sent"), transcripts)
            .outerjoin(transcripts, transcripts.c.turn_id == turns.c.id)
            .where(turns.c.session_id == turn.session_id, before)
            .order_by(turns.c.index)
        ).mappings()
        waited = turn.recording_id is not None
        words = [row["sent"] or (_heard(row) if waited else "") for row in rows]
        return tuple(text for text in words if text.strip())

    def _keep_summary(self, turn_id: UUID, bundle_id: str, summary: bytes) -> None:
        kept = select(turns.c.id, literal(bundle_id), literal(summary)).where(
            turns.c.id == turn_id, turns.c.scope_id.is_not(None)
        )
        written = upsert(voice_summaries).from_select(["turn_id", "bundle_id", "summary"], kept)
        self._connection.execute(written.on_conflict_do_nothing())


def _heard(row: RowMapping) -> str:
    return "" if row["segments"] is None else Transcript.model_validate(dict(row)).text
