"""Schemas of sessions and their history."""

from datetime import datetime
from typing import Self
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field

from services.api.schemas.turn import TurnOut
from shared.domain.language import LanguageTag
from shared.domain.session import Consent, Session
from shared.domain.text import Name


class SessionIn(BaseModel):
    """A new session. Every field is optional."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [{"external_ref": "call-4711", "subject_ref": "patient-17", "language_hint": "en"}]
        },
    )

    subject_ref: Name | None = Field(
        default=None, description="your name for the person, the same in each of their sessions"
    )
    external_ref: Name | None = Field(default=None, description="your name for this session")
    language_hint: LanguageTag | None = Field(
        default=None,
        description="the spoken language as a BCP 47 tag, such as en, pt-BR or zh-Hant-TW, in any case; without it, or "
        "if Whisper does not know the language, the language of every recording is detected",
    )
    consent: Consent = Consent()
    context: bool = Field(default=True, description="false: the text of every turn is read without the turns before it")


class SessionOut(BaseModel):
    """A session: one conversation."""

    id: UUID
    subject_id: UUID | None
    external_ref: str | None
    language_hint: str | None
    consent: Consent
    context: bool
    created_at: datetime
    closed_at: datetime | None

    @classmethod
    def of(cls, session: Session) -> Self:
        """Return the response for a stored session."""
        return cls.model_validate(session, from_attributes=True)


class HistoryOut(BaseModel):
    """One page of a session's turns, in order. `next_cursor` is null on the last page."""

    turns: list[TurnOut]
    next_cursor: str | None
