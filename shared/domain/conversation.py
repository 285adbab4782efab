"""Who spoke, when, and what they sent."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Annotated
from uuid import UUID

from pydantic import AfterValidator, BaseModel, ConfigDict, StringConstraints


def _storable(text: str) -> str:
    if "\x00" in text:
        raise ValueError("the text holds a null character")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("the text is not valid Unicode") from None
    return text


Text = Annotated[str, AfterValidator(_storable)]
"""Any text that a database can hold."""
Name = Annotated[str, StringConstraints(min_length=1, max_length=200), AfterValidator(_storable)]


class SpeakerRole(StrEnum):
    """What a speaker is to the conversation. `customer`, `user` and `patient` are whom a session is about."""

    customer = "customer"
    agent = "agent"
    user = "user"
    bot = "bot"
    patient = "patient"
    clinician = "clinician"

    @property
    def is_subject(self) -> bool:
        """Whether it is the session's subject who speaks in this role."""
        return self in (SpeakerRole.customer, SpeakerRole.user, SpeakerRole.patient)


class Consent(BaseModel):
    """What the speaker agreed to.

    `retain_audio` False: the recording is deleted as soon as its turn has been analysed.
    `keep_voice_summary` False: no turn leaves statistics of its voice behind, and none is read against earlier ones.
    `basis` is the tenant's own reference to the agreement or the law it rests on.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    retain_audio: bool = False
    keep_voice_summary: bool = True
    basis: Name | None = None


class Session(BaseModel):
    """One conversation."""

    model_config = ConfigDict(frozen=True, from_attributes=True)

    id: UUID
    tenant_id: UUID
    subject_id: UUID | None
    external_ref: str | None
    language_hint: str | None
    consent: Consent
    created_at: datetime
    closed_at: datetime | None


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


class Voice(BaseModel):
    """Who is heard on a channel of a recording."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    speaker: Name = "speaker"
    role: SpeakerRole = SpeakerRole.user


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
