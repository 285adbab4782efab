"""A turn together with what became of it."""

from datetime import datetime
from uuid import UUID

from pydantic import BaseModel, ConfigDict

from shared.domain.conversation import Consent, Recording, Turn, Voice
from shared.domain.emotion import Prediction
from shared.domain.job import Job, JobStatus, TurnLane
from shared.domain.transcript import Transcript

LONGEST_BASELINE = 50
"""A voice is read against so many of its speaker's earlier turns, the newest, at most."""
CONTEXT_TURNS = 2
"""Words are read after those of so many turns before."""


class AnalyzedTurn(BaseModel):
    """One row of a session's history. Transcript and prediction are None until the job succeeded."""

    model_config = ConfigDict(frozen=True)

    turn: Turn
    job: Job
    transcript: Transcript | None
    prediction: Prediction | None


class Call(BaseModel):
    """A long recording, to be cut into turns.

    There is one voice for all channels together, or one for each. `lane` is where its turns go, and `began_at` when it
    began.
    """

    model_config = ConfigDict(frozen=True)

    job: Job
    tenant_id: UUID
    consent: Consent
    recording: Recording
    voices: tuple[Voice, ...]
    lane: TurnLane
    began_at: datetime


class RecordingProgress(BaseModel):
    """A long recording and what became of it: how many of its turns are in each status."""

    model_config = ConfigDict(frozen=True)

    recording: Recording
    job: Job
    turns: dict[JobStatus, int]


class Work(BaseModel):
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
    earlier: tuple[bytes, ...]
    context: tuple[str, ...]
