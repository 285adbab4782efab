"""Schemas of recordings."""

from typing import Annotated, Self
from uuid import UUID

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from services.api.schemas.common import ErrorOut, Time
from services.validation import parse_json
from shared.domain.job import JobStatus, Lane, TurnLane
from shared.domain.recording import Channel, RecordingProgress
from shared.domain.warning import AnalysisWarning
from shared.errors import InvalidRequest


def _parsed(field: object) -> object:
    try:
        return parse_json(field) if isinstance(field, str) else field
    except InvalidRequest as error:
        raise ValueError(error.detail) from None


Channels = Annotated[
    tuple[Channel, ...],
    Field(min_length=1, max_length=32),
    BeforeValidator(_parsed),
    WithJsonSchema({"type": "string", "contentMediaType": "application/json"}),
]
"""The channels of a recording, which a form holds as JSON."""


class RecordingIn(BaseModel):
    """A new recording, whose audio file is in the form's field `audio`, and how it is split into turns."""

    model_config = ConfigDict(extra="forbid")

    channels: Channels = Field(
        default=(Channel(),),
        description="who speaks, as a JSON list: one entry for each channel, or one for all channels together",
        examples=['[{"speaker": "Tom", "role": "agent"}, {"speaker": "caller", "role": "customer"}]'],
    )
    lane: TurnLane = Field(default=Lane.bulk, description="the lane of its turns")
    started_at: Time | None = Field(default=None, description="when the recording began; by default now")


class RecordingOut(BaseModel):
    """A recording. Once `status` is `succeeded`, its turns are in the session's history; `turns` counts them."""

    id: UUID
    session_id: UUID
    duration_s: float | None
    channel_count: int | None
    status: JobStatus
    error: ErrorOut | None
    turns: dict[JobStatus, int]
    warnings: tuple[AnalysisWarning, ...]

    @classmethod
    def of(cls, progress: RecordingProgress) -> Self:
        """Return the response for a stored recording."""
        job = progress.job
        fields = progress.recording.model_dump(include={"id", "session_id", "duration_s", "channel_count", "warnings"})
        return cls(**fields, status=job.status, error=ErrorOut.of(job), turns=progress.turns)
