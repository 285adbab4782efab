"""Jobs: work that was accepted, its lane, status and lease; the messages about it, and the workers that do it."""

from datetime import datetime, timedelta
from enum import StrEnum
from typing import Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict


class Lane(StrEnum):
    """A kind of jobs with a queue of the same name in the broker, and worker threads of its own."""

    interactive = "interactive"
    """Turns that somebody waits for; they are analysed first."""
    bulk = "bulk"
    """Turns that may wait for interactive ones, but are never starved by them."""
    recording = "recording"
    """Long recordings to split into turns."""
    delivery = "delivery"
    """Events to deliver to webhooks."""
    maintenance = "maintenance"
    """Audio to delete, for all tenants together."""

    @property
    def task(self) -> str:
        """The name of the task that does the lane's jobs."""
        return _TASKS[self]


_TASKS = {
    Lane.interactive: "analyze_turn",
    Lane.bulk: "analyze_turn",
    Lane.recording: "split_recording",
    Lane.delivery: "deliver_event",
    Lane.maintenance: "delete_audio",
}
TurnLane = Literal[Lane.interactive, Lane.bulk]
TURN_LANES: tuple[TurnLane, ...] = (Lane.interactive, Lane.bulk)
"""The lanes of turns, in the order in which they are served."""


class JobStatus(StrEnum):
    """Where a job is in its life: `queued` and `running` jobs are open, the others have ended."""

    queued = "queued"
    running = "running"
    succeeded = "succeeded"
    failed = "failed"
    quarantined = "quarantined"


OPEN = (JobStatus.queued, JobStatus.running)
"""The statuses of jobs that have not ended. A quarantined job has ended, unless an operator requeues it."""


class RetryPolicy(BaseModel):
    """How often a job is tried. Each pause is `factor` times as long as the one before, and at most `longest_s`."""

    model_config = ConfigDict(frozen=True)

    attempts: int
    first_s: float
    factor: float
    longest_s: float

    def pause(self, attempts: int) -> timedelta:
        """Return how long to wait after this number of attempts."""
        return timedelta(seconds=min(self.first_s * self.factor ** (attempts - 1), self.longest_s))


class Job(BaseModel):
    """Work on one turn, recording or delivery, as its lane says; in the maintenance lane on none of them.

    A job with its number of claims is a claim: a later claim voids it.

    Attributes:
        attempts: how many of its claims count against the limit of attempts.
        claims: how often a worker claimed it.
        lease_until: while it is queued, when its message counts as lost and is published again; while it is running,
            when its worker counts as dead. By the database's clock.
        correlation_id: that of the request that it came with.
        traceparent: the W3C Trace Context of that request.
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
    """A job with its tenant's name and its session, which are None in the maintenance lane."""

    tenant: str | None
    session_id: UUID | None


class NewJob(BaseModel):
    """A job to enqueue, and the request that it came with."""

    model_config = ConfigDict(frozen=True)

    lane: Lane
    turn_id: UUID | None = None
    recording_id: UUID | None = None
    correlation_id: str | None = None
    traceparent: str | None = None


class Message(BaseModel):
    """A message to the broker: a task's name and a job's id. All else about the job stays in the database."""

    model_config = ConfigDict(frozen=True, from_attributes=True)

    id: UUID
    task: str
    job_id: UUID
    queue: str
    correlation_id: str | None = None
    traceparent: str | None = None


class QueueDepth(BaseModel):
    """How many jobs are queued in a lane, and the age of the oldest in seconds."""

    lane: Lane
    jobs: int
    oldest_s: float


class JobCount(BaseModel):
    """How many jobs of a lane are in a status, and how many of them were added within the last minute and hour."""

    model_config = ConfigDict(from_attributes=True)

    lane: Lane
    status: JobStatus
    jobs: int
    last_minute: int
    last_hour: int


class Worker(BaseModel):
    """A registered worker. One without a bundle takes no turns. `unseen_s` is the age of its last heartbeat."""

    model_config = ConfigDict(from_attributes=True)

    id: UUID
    host: str | None
    device: str | None
    bundle_id: str | None
    started_at: datetime
    seen_at: datetime
    unseen_s: float
