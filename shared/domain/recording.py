"""Recordings: stored audio files, and the long ones that a worker splits into turns."""

from datetime import datetime
from uuid import UUID

from pydantic import BaseModel, ConfigDict

from shared.domain.job import Job, JobStatus, TurnLane
from shared.domain.session import Consent
from shared.domain.speaker import SpeakerRole
from shared.domain.text import Name
from shared.domain.warning import AnalysisWarning


class Recording(BaseModel):
    """A stored audio file.

    Attributes:
        uri: the name of its blob; None once the audio was deleted.
        sha256: of the file, in hex.
        channel_count: the number of its audio channels; None if unknown.
        expires_at: when the audio is deleted at the latest; None: after its turn's analysis.
        source_id: the long recording that it was cut from, if so.
        warnings: of a long recording, once it was split.
    """

    model_config = ConfigDict(frozen=True, from_attributes=True)

    id: UUID
    session_id: UUID
    uri: str | None
    sha256: str
    media_type: str
    duration_s: float | None
    channel_count: int | None
    expires_at: datetime | None
    source_id: UUID | None = None
    warnings: tuple[AnalysisWarning, ...] = ()


class Channel(BaseModel):
    """Who speaks on a channel of a recording."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    speaker: Name = "speaker"
    role: SpeakerRole = SpeakerRole.user


class RecordingWork(BaseModel):
    """All that a worker needs to split a long recording into turns.

    Attributes:
        channels: who speaks on each channel, or one for all channels together.
        lane: where its turns are queued.
        started_at: when the recording began.
    """

    model_config = ConfigDict(frozen=True)

    job: Job
    tenant_id: UUID
    consent: Consent
    recording: Recording
    channels: tuple[Channel, ...]
    lane: TurnLane
    started_at: datetime


class RecordingProgress(BaseModel):
    """A long recording, its job, and the number of its turns in each status."""

    model_config = ConfigDict(frozen=True)

    recording: Recording
    job: Job
    turns: dict[JobStatus, int]
