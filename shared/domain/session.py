"""Sessions: conversations, and the consent of their speakers."""

from datetime import datetime
from uuid import UUID

from pydantic import BaseModel, ConfigDict

from shared.domain.text import Reference


class Consent(BaseModel):
    """What the speakers of a session agreed to.

    Attributes:
        retain_audio: keep recordings after the analysis; else each is deleted as soon as its turn has been analysed.
        keep_audio_summary: keep an audio summary of each turn, as the baseline of the speaker's later turns; else no
            summary is stored and none is used.
        basis: the tenant's own reference to the agreement, or to the law that it rests on.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    retain_audio: bool = False
    keep_audio_summary: bool = True
    basis: Reference | None = None


class Session(BaseModel):
    """A conversation.

    Attributes:
        subject_id: the person that it is about, across sessions.
        external_ref: the tenant's own name for it.
        language_hint: BCP 47 tag of the language to transcribe; None: it is detected in each recording.
        context: False: the text of each of its turns is read without the turns before it.
        closed_at: since when it takes no more turns.
    """

    model_config = ConfigDict(frozen=True, from_attributes=True)

    id: UUID
    tenant_id: UUID
    subject_id: UUID | None
    external_ref: str | None
    language_hint: str | None
    consent: Consent
    context: bool = True
    created_at: datetime
    closed_at: datetime | None


class LockedSession(Session):
    """A session whose row a transaction has locked, with the number of its turns and the transaction's time."""

    turn_count: int
    now: datetime
