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
    counts as dead. Both by the database's clock.
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
    created_at: datetime
    updated_at: datetime

    @property
    def ended(self) -> bool:
        return self.status not in OPEN


class ListedJob(Job):
    """A job, and whose it is."""

    tenant: str
    session_id: UUID


class Message(BaseModel):
    """What goes over the queue: a task's name, and an id."""

    model_config = ConfigDict(frozen=True, from_attributes=True)

    id: UUID
    task: str
    job_id: UUID
    queue: str
