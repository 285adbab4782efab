"""Turn results: what a worker reads to analyse a turn, and the transcript and prediction that it writes."""

from uuid import UUID

from sqlalchemy import Connection, literal, select
from sqlalchemy.dialects.postgresql import insert as upsert

from shared.domain.job import Job
from shared.domain.prediction import Prediction
from shared.domain.recording import Recording
from shared.domain.transcript import Transcript
from shared.domain.turn import MAX_CONTEXT_TURNS, Turn, TurnWork
from shared.store.earlier_turns import read_context, read_earlier_languages, read_earlier_summaries
from shared.store.tables import audio_summaries, predictions, recordings, sessions, transcripts, turns


class TurnResults:
    """Reads and writes what turns are analysed from, and the results."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def read_work(self, job: Job, bundle_id: str, context_turns: int = MAX_CONTEXT_TURNS) -> TurnWork:
        """Return the turn of a job, with its context and its speaker's baseline.

        Args:
            bundle_id: the bundle that will analyse it; audio summaries of other bundles are left out.
            context_turns: how many turns before it may be its context.
        """
        row = self._connection.execute(
            select(turns, sessions.c.language_hint, sessions.c.context.label("session_context"))
            .join(sessions, sessions.c.id == turns.c.session_id)
            .where(turns.c.id == job.turn_id)
        ).one()
        turn = Turn.model_validate(row)
        recording = self._connection.execute(
            select(recordings).where(recordings.c.id == turn.recording_id)
        ).one_or_none()
        has_context = context_turns > 0 and turn.context and row.session_context
        return TurnWork(
            job=job,
            turn=turn,
            recording=None if recording is None else Recording.model_validate(recording),
            language_hint=row.language_hint,
            earlier_summaries=read_earlier_summaries(self._connection, row, bundle_id),
            context=read_context(self._connection, turn, context_turns) if has_context else (),
            earlier_languages=read_earlier_languages(self._connection, turn),
        )

    def write(
        self,
        turn_id: UUID,
        bundle_id: str,
        transcript: Transcript | None,
        prediction: Prediction,
        audio_summary: bytes | None = None,
    ) -> None:
        """Write the result of a turn's analysis; what an earlier attempt wrote is kept.

        The audio summary is kept only if the turn may have a baseline: see `turns.scope_id`.
        """
        if transcript is not None:
            values = {"turn_id": turn_id, **transcript.model_dump(mode="json")}
            self._connection.execute(upsert(transcripts).values(values).on_conflict_do_nothing())
        values = {
            "turn_id": turn_id,
            "bundle_id": bundle_id,
            **prediction.model_dump(mode="json", exclude_computed_fields=True),
        }
        self._connection.execute(upsert(predictions).values(values).on_conflict_do_nothing())
        if audio_summary is not None:
            self._write_summary(turn_id, bundle_id, audio_summary)

    def _write_summary(self, turn_id: UUID, bundle_id: str, summary: bytes) -> None:
        row = select(turns.c.id, literal(bundle_id), literal(summary))
        with_baseline = row.where(turns.c.id == turn_id, turns.c.scope_id.is_not(None))
        written = upsert(audio_summaries).from_select(["turn_id", "bundle_id", "summary"], with_baseline)
        self._connection.execute(written.on_conflict_do_nothing())
