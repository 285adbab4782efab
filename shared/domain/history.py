"""A turn together with what became of it."""

from pydantic import BaseModel, ConfigDict

from shared.domain.conversation import Recording, Turn
from shared.domain.emotion import Prediction
from shared.domain.job import Job
from shared.domain.transcript import Transcript


class AnalyzedTurn(BaseModel):
    """One row of a session's history. Transcript and prediction are None until the job succeeded."""

    model_config = ConfigDict(frozen=True)

    turn: Turn
    job: Job
    transcript: Transcript | None
    prediction: Prediction | None


class Work(BaseModel):
    """What a worker needs to analyse a turn. (`job.id`, `job.attempts`) is its claim: a later claim voids it."""

    model_config = ConfigDict(frozen=True)

    job: Job
    turn: Turn
    recording: Recording | None
    language_hint: str | None
