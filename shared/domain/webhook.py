"""Webhooks: a tenant's URLs, the events that are sent to them, and the deliveries."""

from datetime import datetime
from typing import Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, computed_field

from shared.domain.job import Job, JobStatus


class EndedTurn(BaseModel):
    """The turn that an event is about, and how its job ended."""

    turn_id: UUID
    session_id: UUID
    external_ref: str | None = Field(examples=["call-4711"], description="your name for the session")
    index: int
    status: JobStatus = Field(examples=["failed"])
    error_code: str | None = Field(examples=["audio_undecodable"])


class Event(BaseModel):
    """What is sent to a webhook: ids and a status, but no text and no emotion, which are read with an API key."""

    type: str = Field(examples=["turn.failed"], description="turn.succeeded, turn.failed or turn.quarantined")
    timestamp: datetime = Field(description="when the turn ended")
    data: EndedTurn


class Delivery(BaseModel):
    """One attempt to send an event to a webhook.

    Attributes:
        trial: the webhook is paused, and this event alone is sent, to find out whether it answers again.
    """

    model_config = ConfigDict(frozen=True)

    id: UUID
    job: Job
    trial: bool
    webhook_id: UUID
    url: str = Field(repr=False)
    secret: str = Field(repr=False)
    disabled_at: datetime | None
    event: Event


class Undelivered(BaseModel):
    """An event that a webhook has not received: it is `queued` for an attempt, or was given up."""

    model_config = ConfigDict(from_attributes=True)

    turn_id: UUID
    status: JobStatus
    attempts: int
    error_code: str | None
    error_message: str | None
    created_at: datetime


class Webhook(BaseModel):
    """A URL that events are sent to.

    `state` is `active`; `paused` after several consecutive failures (no answer in time, no connection, 5xx or 429),
    until an event is received again; or `disabled` for good, after which no event is sent.
    """

    id: UUID
    url: str
    created_at: datetime
    consecutive_failures: int = Field(description="attempts that failed since the last answer below 500 other than 429")
    paused_until: datetime | None = Field(
        description="while paused, no event is sent before; then one is sent to find out whether it is received"
    )
    disabled_at: datetime | None
    disabled_reason: str | None
    undelivered: Undelivered | None = Field(default=None, description="the newest event that it has not received")

    @computed_field(description="`paused` and `disabled` webhooks are sent no events")
    @property
    def state(self) -> Literal["active", "paused", "disabled"]:
        if self.disabled_at is not None:
            return "disabled"
        return "active" if self.paused_until is None else "paused"


class NewWebhook(Webhook):
    """A new webhook with the secret that signs its events, which cannot be read again."""

    secret: str = Field(examples=["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"])
