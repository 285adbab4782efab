"""Turns: what one speaker says at a time, before and after its analysis."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from pydantic import BaseModel, ConfigDict

from shared.domain.job import Job
from shared.domain.prediction import StoredPrediction
from shared.domain.recording import Recording
from shared.domain.speaker import SpeakerRole
from shared.domain.transcript import Transcript

MAX_BASELINE_TURNS = 50
"""The baseline of a turn's audio is made of at most so many of the speaker's earlier turns, the newest."""
MAX_CONTEXT_TURNS = 2
"""How many turns before are a turn's context, unless the bundle says otherwise."""

MAX_LANGUAGE_TURNS = 8
"""The languages of at most so many earlier turns make the language of a turn's audio likelier, the newest."""


def context_of(earlier_texts: Sequence[str], context_turns: int = MAX_CONTEXT_TURNS) -> tuple[str, ...]:
    """Return the context of a turn: the texts of the `context_turns` turns before it, without blank ones.

    Args:
        earlier_texts: of all turns before it or only the last, oldest first; empty for a turn without a text.
        context_turns: that of the bundle; 0 gives no context.
    """
    first = max(len(earlier_texts) - context_turns, 0)
    return tuple(text for text in earlier_texts[first:] if text.strip())


@dataclass(frozen=True)
class NewTurn:
    """A turn to add to a session of the tenant.

    Attributes:
        occurred_at: when it was said; None: now.
        start: seconds within the long recording that it was cut from, if so.
        end: likewise.
        context: False: its text is read without the turns before it.
    """

    tenant_id: UUID
    session_id: UUID
    speaker: str
    role: SpeakerRole
    text: str | None
    recording_id: UUID | None = None
    occurred_at: datetime | None = None
    start: float | None = None
    end: float | None = None
    context: bool = True


class Turn(BaseModel):
    """What one speaker says at a time: text, a recording, or both.

    Attributes:
        index: its number within the session, from 0, in the order of arrival.
        start: seconds within the long recording that it was cut from, if so; its own recording holds only the turn.
        end: likewise.
        context: False: its text is read without the turns before it.
    """

    model_config = ConfigDict(frozen=True, from_attributes=True)

    id: UUID
    session_id: UUID
    index: int
    speaker: str
    role: SpeakerRole
    text: str | None
    recording_id: UUID | None
    start: float | None
    end: float | None
    occurred_at: datetime
    context: bool = True


class AnalyzedTurn(BaseModel):
    """A turn of a session's history, with its job. Transcript and prediction are None until the job has succeeded."""

    model_config = ConfigDict(frozen=True)

    turn: Turn
    job: Job
    transcript: Transcript | None
    prediction: StoredPrediction | None


class TurnWork(BaseModel):
    """All that a worker needs to analyse a turn.

    Attributes:
        earlier_summaries: the audio summaries of the speaker's earlier turns, oldest first.
        context: the texts and transcripts of the turns just before in the session, whoever spoke, oldest first.
        earlier_languages: the languages of the session's earlier turns, oldest first; empty for a turn without audio.
    """

    model_config = ConfigDict(frozen=True)

    job: Job
    turn: Turn
    recording: Recording | None
    language_hint: str | None
    earlier_summaries: tuple[bytes, ...]
    context: tuple[str, ...]
    earlier_languages: tuple[str, ...] = ()
