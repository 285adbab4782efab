"""Servers that are told how a tenant's turns ended."""

from datetime import datetime
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field

from shared.domain.job import JobStatus


class EndedTurn(BaseModel):
    """Which turn has ended, and how."""

    turn_id: UUID
    session_id: UUID
    external_ref: str | None = Field(examples=["call-4711"], description="your name for the session")
    index: int
    status: JobStatus = Field(examples=["failed"])
    error_code: str | None = Field(examples=["audio_undecodable"])


class Event(BaseModel):
    """What a webhook is told: ids and a status, never words or an emotion. Those are read with a key."""

    type: str = Field(examples=["turn.failed"], description="turn.succeeded, turn.failed or turn.quarantined")
    timestamp: datetime = Field(description="when the turn ended")
    data: EndedTurn


class Delivery(BaseModel):
    """An event, and the webhook that is to be told of it."""

    model_config = ConfigDict(frozen=True)

    id: UUID
    webhook_id: UUID
    url: str = Field(repr=False)
    secret: str = Field(repr=False)
    disabled_at: datetime | None
    event: Event


class Undelivered(BaseModel):
    """An event that a webhook has not been told of: it is `queued` for an attempt, or was given up."""

    model_config = ConfigDict(from_attributes=True)

    turn_id: UUID
    status: JobStatus
    attempts: int
    error_code: str | None
    error_message: str | None
    created_at: datetime


class Webhook(BaseModel):
    """A URL that is told of events. Once it is disabled it is told of none any more."""

    id: UUID
    url: str
    created_at: datetime
    disabled_at: datetime | None
    disabled_reason: str | None
    undelivered: Undelivered | None = Field(default=None, description="the newest event that it was not told of")


class NewWebhook(Webhook):
    """A webhook, and the secret that its events are signed with, which is shown this once."""

    secret: str = Field(examples=["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"])
