"""Work that was accepted and must end."""

from datetime import datetime, timedelta
from enum import StrEnum
from typing import Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict


class Lane(StrEnum):
    """What a job queues with. Each lane is a queue of the same name, and its jobs have threads of their own."""

    interactive = "interactive"
    """Turns that somebody waits for."""
    bulk = "bulk"
    """Turns that may wait for those that are waited for, but never for ever."""
    ingest = "ingest"
    """Long recordings, to be cut into turns."""
    delivery = "delivery"
    """Events that somebody else's server is told of."""
    maintenance = "maintenance"
    """What is done for nobody in particular: sound that must go is deleted."""

    @property
    def task(self) -> str:
        """What is done with the lane's jobs."""
        return _TASKS[self]


_TASKS = {
    Lane.interactive: "analyze_turn",
    Lane.bulk: "analyze_turn",
    Lane.ingest: "ingest_recording",
    Lane.delivery: "deliver_event",
    Lane.maintenance: "delete_sound",
}
TurnLane = Literal[Lane.interactive, Lane.bulk]
TURN_LANES: tuple[TurnLane, ...] = (Lane.interactive, Lane.bulk)
"""The lanes of turns, in the order in which they are served."""


class JobStatus(StrEnum):
    queued = "queued"
    running = "running"
    succeeded = "succeeded"
    failed = "failed"
    quarantined = "quarantined"


OPEN = (JobStatus.queued, JobStatus.running)
"""A job in one of these has still to end by itself. One in quarantine has ended, unless a person puts it back."""


class RetryPolicy(BaseModel):
    """How often a job is tried. Each pause is `factor` times as long as the one before, and none above the longest."""

    model_config = ConfigDict(frozen=True)

    attempts: int
    first_s: float
    factor: float
    longest_s: float

    def pause(self, attempts: int) -> timedelta:
        """How long to wait after so many attempts."""
        return timedelta(seconds=min(self.first_s * self.factor ** (attempts - 1), self.longest_s))


class Job(BaseModel):
    """Something to be done with one turn, recording or delivery, as its lane says; in the maintenance lane with none.

    `claims` counts the times that a worker took it up, and `attempts` those of them that count against its limit.
    `lease_until`: while queued, when its message counts as lost and is sent again; while running, when its worker
    counts as dead. Both by the database's clock. `correlation_id` and `traceparent` (W3C Trace Context) are those of
    the request that it came with.
    """

    model_config = ConfigDict(frozen=True, from_attributes=True)

    id: UUID
    turn_id: UUID | None
    recording_id: UUID | None
    delivery_id: UUID | None
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
    """A job, and whose it is: nobody's in the maintenance lane."""

    tenant: str | None
    session_id: UUID | None


class NewJob(BaseModel):
    """A job to be done, and the request that it came with."""

    model_config = ConfigDict(frozen=True)

    lane: Lane
    turn_id: UUID | None = None
    recording_id: UUID | None = None
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


class QueueDepth(BaseModel):
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
    """A worker that announced itself, and took no leave. Without a bundle it takes no turns."""

    model_config = ConfigDict(from_attributes=True)

    id: UUID
    host: str | None
    device: str | None
    bundle_id: str | None
    started_at: datetime
    seen_at: datetime
    unseen_s: float
