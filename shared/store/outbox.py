"""The outbox: messages that are written with their jobs and removed once the broker has them.

A message is published by the process that wrote it, right after the commit. The sweeper publishes those that are still
there after a moment.
"""

from collections.abc import Collection, Sequence
from datetime import timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import (
    ColumnElement,
    Connection,
    FromClause,
    Insert,
    Select,
    Uuid,
    any_,
    bindparam,
    case,
    delete,
    exists,
    func,
    insert,
    literal,
    select,
)
from sqlalchemy.dialects.postgresql import ARRAY

from shared.domain.job import Lane, Message
from shared.store.tables import jobs, outbox

REQUEST_COLUMNS = (jobs.c.correlation_id, jobs.c.traceparent)
"""What a message takes from its job, to name the request that the job came with."""
GIVEN_JOBS = jobs.c.id == any_(bindparam("job_ids", type_=ARRAY(Uuid)))
"""Selects the jobs whose ids are the parameter `job_ids` of the statement."""


class Outbox:
    """Reads and writes the outbox."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def insert(self, job_ids: Collection[UUID]) -> Sequence[Message]:
        """Insert a message for each job, and return the messages, to be published after the commit."""
        rows = self._connection.execute(_INSERT, {"job_ids": list(job_ids)})
        return [Message.model_validate(row) for row in rows]

    def insert_missing(self, job_ids: Collection[UUID]) -> None:
        """Insert a message for each job that has none in the outbox. The sweeper publishes them."""
        has_message = exists().where(outbox.c.job_id == jobs.c.id)
        self._connection.execute(insert_messages(jobs, jobs.c.id.in_(job_ids), ~has_message))

    def unsent(self, older_than: timedelta, limit: int = 500) -> Sequence[Message]:
        """Return the oldest messages that were not published, which stay locked until this transaction ends."""
        # Messages that another process publishes or deletes are skipped: nobody waits, and none is published twice.
        rows = self._connection.execute(
            select(outbox, *REQUEST_COLUMNS)
            .join(jobs)
            .where(outbox.c.created_at <= func.now() - older_than)
            .order_by(outbox.c.created_at)
            .with_for_update(skip_locked=True, of=outbox)
            .limit(limit)
        )
        return [Message.model_validate(row) for row in rows]

    def remove(self, messages: Collection[Message]) -> None:
        """Remove messages that the broker has. Those that another transaction has locked are left to it."""
        unlocked = (
            select(outbox.c.id)
            .where(outbox.c.id == any_(literal([message.id for message in messages], ARRAY(Uuid))))
            .with_for_update(skip_locked=True)
        )
        self._connection.execute(delete(outbox).where(outbox.c.id.in_(unlocked)))


def insert_messages(source: FromClause, *where: ColumnElement[bool]) -> Insert:
    """Return the statement that inserts a message for each row of `source`, whose `id` and `lane` are a job's."""
    task = case({lane.value: lane.task for lane in Lane}, value=source.c.lane)
    return insert(outbox).from_select(
        ["job_id", "task", "queue"], select(source.c.id, task, source.c.lane).where(*where)
    )


def insert_given(*where: ColumnElement[bool]) -> Select[Any]:
    """Return the statement that inserts a message for each of the `GIVEN_JOBS`, and returns the messages' columns."""
    inserted = insert_messages(jobs, GIVEN_JOBS, *where).returning(outbox).cte("inserted")
    return select(inserted, *REQUEST_COLUMNS).join(jobs, jobs.c.id == inserted.c.job_id)


# Built once, as building it takes longer than running it.
_INSERT = insert_given()
