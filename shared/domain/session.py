"""Sessions: one conversation each, and what its speakers agreed to."""

from datetime import datetime
from uuid import UUID

from pydantic import BaseModel, ConfigDict

from shared.domain.text import Name


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


class LockedSession(Session):
    """A session whose row a transaction has locked, with the number of its turns and the transaction's time."""

    turn_count: int
    now: datetime
