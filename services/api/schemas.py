"""What goes over the wire: requests and responses, with the domain's words."""

from datetime import datetime
from typing import Annotated, Self
from uuid import UUID

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, HttpUrl, Json

from shared.domain.job import Job, JobStatus, Lane, TurnLane
from shared.domain.prediction import StoredPrediction
from shared.domain.recording import Channel, RecordingProgress
from shared.domain.session import Consent, Session
from shared.domain.speaker import SpeakerRole
from shared.domain.text import Language, Name, Text
from shared.domain.transcript import Transcript
from shared.domain.turn import AnalyzedTurn
from shared.domain.webhook import Webhook


def _of_this_age(time: datetime) -> datetime:
    if not 1900 <= time.year <= 2999:
        raise ValueError("the year must be from 1900 to 2999")
    return time


Time = Annotated[AwareDatetime, AfterValidator(_of_this_age)]


class SessionIn(BaseModel):
    """A new conversation. Everything is optional."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [{"external_ref": "call-4711", "subject_ref": "patient-17", "language_hint": "en"}]
        },
    )

    subject_ref: Name | None = Field(default=None, description="your name for the person, the same in every session")
    external_ref: Name | None = Field(default=None, description="your name for this session")
    language_hint: Language | None = Field(
        default=None,
        description="ISO 639-1, such as en or en-GB; unset, or unknown to Whisper: detected in every recording",
    )
    consent: Consent = Consent()


class SessionOut(BaseModel):
    id: UUID
    subject_id: UUID | None
    external_ref: str | None
    language_hint: str | None
    consent: Consent
    created_at: datetime
    closed_at: datetime | None

    @classmethod
    def of(cls, session: Session) -> Self:
        return cls.model_validate(session, from_attributes=True)


class TurnIn(BaseModel):
    """A turn. Sent as JSON it needs a text; sent as a form, its field `audio` holds the recording."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"text": "I have been waiting for an hour!", "role": "customer"}]},
    )

    text: Text | None = Field(default=None, description="with audio: its transcript, which is then not made anew")
    speaker: Name = Field(
        default="speaker",
        description="who speaks; with the role it tells a session's speakers apart, and a voice is read against the "
        "same speaker's earlier turns",
    )
    role: SpeakerRole = Field(
        default=SpeakerRole.user,
        description="customer, user and patient are the session's subject, whose turns are known across sessions",
    )
    occurred_at: Time | None = Field(default=None, description="when it was said; unset: now")
    lane: TurnLane = Field(
        default=Lane.interactive, description="interactive: somebody waits for it; bulk: it may let those go first"
    )


class RecordingIn(BaseModel):
    """How a long recording, in the form's field `audio`, is to be cut into turns."""

    model_config = ConfigDict(extra="forbid")

    voices: Json[Annotated[tuple[Channel, ...], Field(min_length=1, max_length=32)]] = Field(
        default=(Channel(),),
        description="who is heard, as a JSON list: one for each channel, or one for all channels together",
        examples=['[{"speaker": "Tom", "role": "agent"}, {"speaker": "caller", "role": "customer"}]'],
    )
    lane: TurnLane = Field(default=Lane.bulk, description="of its turns")
    began_at: Time | None = Field(default=None, description="when it began; unset: now")


class ErrorOut(BaseModel):
    code: str = Field(examples=["audio_undecodable"])
    message: str

    @classmethod
    def of(cls, job: Job) -> Self | None:
        return None if job.error_code is None else cls(code=job.error_code, message=job.error_message or "")


class TurnOut(BaseModel):
    """A turn and what became of it. `prediction` is null until `status` is `succeeded`."""

    id: UUID
    session_id: UUID
    index: int
    speaker: str
    role: SpeakerRole
    text: str | None
    start: float | None = Field(description="seconds within the long recording that it was cut from, if so")
    end: float | None
    occurred_at: datetime
    lane: Lane
    status: JobStatus
    error: ErrorOut | None
    transcript: Transcript | None
    prediction: StoredPrediction | None

    @classmethod
    def of(cls, analyzed: AnalyzedTurn) -> Self:
        turn, job = analyzed.turn, analyzed.job
        return cls(
            **turn.model_dump(exclude={"recording_id"}),
            lane=job.lane,
            status=job.status,
            error=ErrorOut.of(job),
            transcript=analyzed.transcript,
            prediction=analyzed.prediction,
        )


class RecordingOut(BaseModel):
    """A long recording: when `status` is `succeeded`, its turns are in the session's history. `turns` counts them."""

    id: UUID
    session_id: UUID
    duration_s: float | None
    channels: int | None
    status: JobStatus
    error: ErrorOut | None
    turns: dict[JobStatus, int]

    @classmethod
    def of(cls, progress: RecordingProgress) -> Self:
        job, its = progress.job, progress.recording.model_dump(include={"id", "session_id", "duration_s", "channels"})
        return cls(**its, status=job.status, error=ErrorOut.of(job), turns=progress.turns)


class HistoryOut(BaseModel):
    """One page of a session's turns, in order. `next_cursor` is null on the last page."""

    turns: list[TurnOut]
    next_cursor: str | None


class WebhookIn(BaseModel):
    """Where to tell of turns that have ended."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"url": "https://example.com/tenor"}]})

    url: HttpUrl


class WebhooksOut(BaseModel):
    webhooks: list[Webhook]


class Health(BaseModel):
    status: str = Field(examples=["ok"])


class Readiness(BaseModel):
    """What Tenor rests on. `workers` counts those that gave a sign of life lately."""

    database: str = Field(examples=["ok"])
    queue: str = Field(examples=["ok"])
    workers: int = Field(examples=[1])
