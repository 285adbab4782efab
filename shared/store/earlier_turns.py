"""The earlier turns of a turn: those of its speaker for the baseline, and those of its session as context."""

from typing import Any

from sqlalchemy import Connection, Row, RowMapping, func, select

from shared.domain.transcript import MIN_LANGUAGE_PROBABILITY, Transcript
from shared.domain.turn import MAX_BASELINE_TURNS, MAX_LANGUAGE_TURNS, Turn, context_of
from shared.store.tables import audio_summaries, transcripts, turns


def read_earlier_summaries(connection: Connection, turn: Row[Any], bundle_id: str) -> tuple[bytes, ...]:
    """Return the audio summaries of the newest earlier turns of a turn's speaker, oldest first."""
    if turn.scope_id is None:
        return ()
    same_speaker = (turns.c.scope_id == turn.scope_id, turns.c.speaker == turn.speaker, turns.c.role == turn.role)
    newest = (
        select(audio_summaries.c.summary)
        .join(turns, turns.c.id == audio_summaries.c.turn_id)
        .where(*same_speaker, turns.c.position < turn.position, audio_summaries.c.bundle_id == bundle_id)
        .order_by(turns.c.position.desc())
        .limit(MAX_BASELINE_TURNS)
    )
    return tuple(reversed(connection.execute(newest).scalars().all()))


def read_context(connection: Connection, turn: Turn, context_turns: int) -> tuple[str, ...]:
    """Return the texts of the `context_turns` turns just before in the session, oldest first, without empty ones."""
    before = turns.c.index.between(turn.index - context_turns, turn.index - 1)
    rows = connection.execute(
        select(turns.c.text.label("provided_text"), transcripts)
        .outerjoin(transcripts, transcripts.c.turn_id == turns.c.id)
        .where(turns.c.session_id == turn.session_id, before)
        .order_by(turns.c.index)
    ).mappings()
    texts = [row["provided_text"] or _transcribed(row) for row in rows]
    return context_of(texts, context_turns)


def read_earlier_languages(connection: Connection, turn: Turn) -> tuple[str, ...]:
    """Return the languages of the newest earlier turns of a turn's session, oldest first, without doubtful ones.

    A turn that is not transcribed needs none.
    """
    if turn.recording_id is None or turn.text is not None:
        return ()
    certain = func.coalesce(transcripts.c.language_probability, 1.0) >= MIN_LANGUAGE_PROBABILITY
    newest = (
        select(transcripts.c.language)
        .join(turns, turns.c.id == transcripts.c.turn_id)
        .where(turns.c.session_id == turn.session_id, turns.c.index < turn.index)
        .where(transcripts.c.language.is_not(None), certain)
        .order_by(turns.c.index.desc())
        .limit(MAX_LANGUAGE_TURNS)
    )
    return tuple(reversed(connection.execute(newest).scalars().all()))


def _transcribed(row: RowMapping) -> str:
    return "" if row["segments"] is None else Transcript.model_validate(dict(row)).text
