"""Work that was accepted and must end."""

from datetime import datetime
from enum import StrEnum
from uuid import UUID

from pydantic import BaseModel, ConfigDict


class Lane(StrEnum):
    """How soon a turn is wanted. Each lane is a queue of the same name."""

    interactive = "interactive"
    """Somebody waits for it."""
    bulk = "bulk"
    """It may wait for those that are waited for, but never for ever."""


class JobStatus(StrEnum):
    queued = "queued"
    running = "running"
    succeeded = "succeeded"
    failed = "failed"
    quarantined = "quarantined"


OPEN = (JobStatus.queued, JobStatus.running)
"""A job in one of these has still to end by itself. One in quarantine has ended, unless a person puts it back."""


class Job(BaseModel):
    """The analysis of one turn.

    `claims` counts the times that a worker took it up, and `attempts` those of them that count against its limit.
    `lease_until`: while queued, when its message counts as lost and is sent again; while running, when its worker
    counts as dead. Both by the database's clock. `correlation_id` and `traceparent` (W3C Trace Context) are those of
    the request that it came with.
    """

    model_config = ConfigDict(frozen=True, from_attributes=True)

    id: UUID
    turn_id: UUID
    lane: Lane
    status: JobStatus
    attempts: int
    claims: int
    lease_until: datetime
    error_code: str | None
    error_message: str | None
    correlation_id: str | None
    traceparent: str | None
    created_at: datetime
    updated_at: datetime

    @property
    def ended(self) -> bool:
        return self.status not in OPEN


class ListedJob(Job):
    """A job, and whose it is."""

    tenant: str
    session_id: UUID


class NewJob(BaseModel):
    """A turn to be analysed, and the request that it came with."""

    model_config = ConfigDict(frozen=True)

    turn_id: UUID
    lane: Lane
    correlation_id: str | None = None
    traceparent: str | None = None


class Message(BaseModel):
    """What goes over the queue: a task's name, and a job's id. The rest is known of the job, and does not."""

    model_config = ConfigDict(frozen=True, from_attributes=True)

    id: UUID
    task: str
    job_id: UUID
    queue: str
    correlation_id: str | None = None
    traceparent: str | None = None


class Waiting(BaseModel):
    """What waits in a lane: how many jobs, and for how many seconds the oldest of them."""

    lane: Lane
    jobs: int
    oldest_s: float


class JobCount(BaseModel):
    """How many jobs of a lane are in a status, and how many of them came lately."""

    model_config = ConfigDict(from_attributes=True)

    lane: Lane
    status: JobStatus
    jobs: int
    last_minute: int
    last_hour: int


class Worker(BaseModel):
    """A worker that announced itself, and took no leave."""

    model_config = ConfigDict(from_attributes=True)

    id: UUID
    host: str | None
    device: str | None
    bundle_id: str
    started_at: datetime
    seen_at: datetime
    unseen_s: float
