"""Turns: one speaker's part of a conversation, before and after its analysis."""

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
"""A voice is read against so many of its speaker's earlier turns, the newest, at most."""
MAX_CONTEXT_TURNS = 2
"""Words are read after those of so many turns before."""


def context_of(earlier_texts: Sequence[str]) -> tuple[str, ...]:
    """Return the context of a turn: the texts of the `MAX_CONTEXT_TURNS` turns before it, without blank ones.

    Args:
        earlier_texts: of all turns before it or only the last, oldest first; empty for a turn without a text.
    """
    return tuple(text for text in earlier_texts[-MAX_CONTEXT_TURNS:] if text.strip())


@dataclass(frozen=True)
class NewTurn:
    """What somebody says next in a session of the tenant's. `occurred_at` None: now."""

    tenant_id: UUID
    session_id: UUID
    speaker: str
    role: SpeakerRole
    text: str | None
    recording_id: UUID | None = None
    occurred_at: datetime | None = None
    start: float | None = None
    end: float | None = None


class Turn(BaseModel):
    """One speaker's stretch of a conversation: text, a recording, or both.

    `index` counts from 0 within the session, in the order of arrival. `start` and `end` are seconds within the
    longer recording that it was cut from, if so; its own recording holds no more than the turn.
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


class AnalyzedTurn(BaseModel):
    """One row of a session's history. Transcript and prediction are None until the job succeeded."""

    model_config = ConfigDict(frozen=True)

    turn: Turn
    job: Job
    transcript: Transcript | None
    prediction: StoredPrediction | None


class TurnWork(BaseModel):
    """What a worker needs to analyse a turn. (`job.id`, `job.claims`) is its claim: a later claim voids it.

    `earlier` holds the voice summaries of the speaker's earlier turns, and `context` the words of the turns just before
    in the session, whoever spoke, both oldest first. A turn that is text alone waits for no other, so what was spoken
    before it is context only where its words were sent with it.
    """

    model_config = ConfigDict(frozen=True)

    job: Job
    turn: Turn
    recording: Recording | None
    language_hint: str | None
    earlier_summaries: tuple[bytes, ...]
    context: tuple[str, ...]
