"""Schemas of turns."""

from datetime import datetime
from typing import Self
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, field_validator

from services.api.schemas.common import ErrorOut, Time
from shared.domain.job import JobStatus, Lane, TurnLane
from shared.domain.prediction import StoredPrediction
from shared.domain.speaker import SpeakerRole
from shared.domain.text import Name, Text, is_blank
from shared.domain.transcript import Transcript
from shared.domain.turn import AnalyzedTurn


class TurnIn(BaseModel):
    """A new turn. As JSON it needs a text; as a form it holds an audio file in its field `audio`."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"text": "I have been waiting for an hour!", "role": "customer"}]},
    )

    text: Text | None = Field(
        default=None,
        description="the words of the turn; with audio, this text is the transcript, and the audio is not transcribed. "
        "A text without a visible character is no text: with audio, the spoken words are transcribed",
    )
    speaker: Name = Field(
        default="speaker",
        description="who speaks; speaker and role together tell the speakers of a session apart, and the audio of a "
        "turn is compared with the same speaker's earlier turns",
    )
    role: SpeakerRole = Field(
        default=SpeakerRole.user,
        description="customer, user and patient are the subject of the session, whose turns are known across sessions",
    )
    occurred_at: Time | None = Field(default=None, description="when it was said; by default now")
    context: bool = Field(
        default=True,
        description="false: the text is read alone; true: it is read with the turns before it, as far as the bundle "
        "and the session allow",
    )
    lane: TurnLane = Field(
        default=Lane.interactive, description="interactive: a caller waits for it; bulk: interactive turns go first"
    )

    @field_validator("text")
    @classmethod
    def _none_if_blank(cls, text: str | None) -> str | None:
        return None if text is None or is_blank(text) else text


class TurnOut(BaseModel):
    """A turn and its analysis. `prediction` is null until `status` is `succeeded`."""

    id: UUID
    session_id: UUID
    index: int
    speaker: str
    role: SpeakerRole
    text: str | None
    start: float | None = Field(description="seconds from the start of the recording that the turn was cut from")
    end: float | None
    occurred_at: datetime
    context: bool
    lane: Lane
    status: JobStatus
    error: ErrorOut | None
    transcript: Transcript | None
    prediction: StoredPrediction | None

    @classmethod
    def of(cls, analyzed: AnalyzedTurn) -> Self:
        """Return the response for a stored turn."""
        turn, job = analyzed.turn, analyzed.job
        return cls(
            **turn.model_dump(exclude={"recording_id"}),
            lane=job.lane,
            status=job.status,
            error=ErrorOut.of(job),
            transcript=analyzed.transcript,
            prediction=analyzed.prediction,
        )
