"""Recordings: stored audio files, and long ones that a worker splits into turns."""

from datetime import datetime
from uuid import UUID

from pydantic import BaseModel, ConfigDict

from shared.domain.job import Job, JobStatus, TurnLane
from shared.domain.session import Consent
from shared.domain.speaker import SpeakerRole
from shared.domain.text import Name


class Recording(BaseModel):
    """A stored sound file. `uri` names its blob; None once the audio was deleted. `source_id` is the longer one that it
    was cut from, if so.
    """

    model_config = ConfigDict(frozen=True, from_attributes=True)

    id: UUID
    session_id: UUID
    uri: str | None
    sha256: str
    media_type: str
    duration_s: float | None
    channels: int | None
    expires_at: datetime | None
    source_id: UUID | None = None


class Channel(BaseModel):
    """Who is heard on a channel of a recording."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    speaker: Name = "speaker"
    role: SpeakerRole = SpeakerRole.user


class RecordingWork(BaseModel):
    """A long recording, to be cut into turns.

    There is one voice for all channels together, or one for each. `lane` is where its turns go, and `began_at` when it
    began.
    """

    model_config = ConfigDict(frozen=True)

    job: Job
    tenant_id: UUID
    consent: Consent
    recording: Recording
    voices: tuple[Channel, ...]
    lane: TurnLane
    began_at: datetime


class RecordingProgress(BaseModel):
    """A long recording and what became of it: how many of its turns are in each status."""

    model_config = ConfigDict(frozen=True)

    recording: Recording
    job: Job
    turns: dict[JobStatus, int]
