"""Jobs as the API and the workers see them: enqueue, claim, renew, succeed, fail, quarantine, retry, release, sweep.

A claim is a job's id together with its number of claims. A later claim voids it, so a worker that was thought dead and
comes back can no longer write. Leases are compared by the database's clock alone, because the workers' clocks may
differ.

Methods that end a job return the messages to publish after the commit: those of its webhook deliveries, and those of
the turns that waited for it. They return None where the claim was void and nothing has ended.
"""

from collections.abc import Collection, Mapping, Sequence
from datetime import timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import (
    ColumnElement,
    Connection,
    Select,
    Update,
    case,
    delete,
    func,
    insert,
    select,
    text,
    tuple_,
    update,
)

from shared.domain.job import OPEN, Job, JobStatus, Lane, Message, NewJob, RetryPolicy
from shared.errors import TenorError
from shared.store.job_ending import attempts_exhausted, end_job, lock_session_of
from shared.store.outbox import GIVEN_JOBS, Outbox, insert_given
from shared.store.tables import OPEN_JOB, jobs, pending_deletions
from shared.store.turn_order import is_blocked

_BLOCKED_LEASE = timedelta(hours=1)
_MAX_DOUBLINGS = 6
"""A job whose message was lost this often waits 64 leases before its message counts as lost again."""


class Jobs:
    """Reads and writes jobs on behalf of the API and of workers."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._outbox = Outbox(connection)

    def enqueue(self, new: Sequence[NewJob], *, lease: timedelta) -> list[tuple[Job, Message | None]]:
        """Insert jobs and their messages.

        The transaction must have locked the sessions and subjects of their turns, as `Turns.add_all` does.

        Args:
            lease: how long a job waits for a worker before its message counts as lost.

        Returns:
            For each new job, in order, the job and the message to publish after the commit. There is no message for a
            turn that waits for an earlier one: the transaction that ends the earlier one inserts it.
        """
        if not new:
            return []
        queued = insert(jobs).values(lease_until=func.now() + lease).returning(jobs)
        rows = self._connection.execute(queued, [{**job.model_dump(), "lane": job.lane.value} for job in new])
        found = {(job.turn_id, job.recording_id): job for job in map(Job.model_validate, rows)}
        stored = [found[job.turn_id, job.recording_id] for job in new]
        rows = self._connection.execute(_INSERT_UNBLOCKED, {"job_ids": [job.id for job in stored]})
        messages = {message.job_id: message for message in map(Message.model_validate, rows)}
        return [(job, messages.get(job.id)) for job in stored]

    def enqueue_deletion(self, lease: timedelta) -> Sequence[Message]:
        """Insert a maintenance job if there are blobs to delete and no maintenance job is open; return its message."""
        due = select(pending_deletions.c.uri).where(pending_deletions.c.delete_after <= func.now())
        open_job = select(jobs.c.id).where(jobs.c.lane == Lane.maintenance.value, jobs.c.status.in_(OPEN))
        if not self._connection.execute(select(due.exists() & ~open_job.exists())).scalar_one():
            return []
        return [message for _, message in self.enqueue([NewJob(lane=Lane.maintenance)], lease=lease) if message]

    def unfinished(self, turn_ids: Collection[UUID]) -> set[UUID]:
        """Return those of the turns whose job has not ended."""
        open_statuses = [status.value for status in OPEN]
        found = select(jobs.c.turn_id).where(jobs.c.turn_id.in_(turn_ids), jobs.c.status.in_(open_statuses))
        return set(self._connection.execute(found).scalars())

    def claim(self, job_id: UUID, lease: timedelta, context_turns: int = 0) -> Job | None:
        """Claim a job and return it, or None where it has ended, was deleted, or is claimed by another worker.

        None also where its turn waits for an earlier one. The job stays queued, and the transaction that ends the
        earlier one inserts another message for it.

        Args:
            context_turns: how many turns before a turn the worker's bundle reads as context.
        """
        free = (jobs.c.status == JobStatus.queued.value) | (
            (jobs.c.status == JobStatus.running.value) & (jobs.c.lease_until < func.now())
        )
        row = self._connection.execute(
            update(jobs)
            .where(jobs.c.id == job_id, free, ~is_blocked(context_turns))
            .values(claim_values(lease))
            .returning(jobs)
        ).one_or_none()
        return None if row is None else Job.model_validate(row)

    def renew(self, claims: Collection[Job], lease: timedelta) -> None:
        """Renew the leases of the jobs that a worker has claimed."""
        claimed = tuple_(jobs.c.id, jobs.c.claims).in_([(job.id, job.claims) for job in claims])
        running = select(jobs.c.id).where(claimed, jobs.c.status == JobStatus.running.value)
        # Jobs that a thread of this worker is ending are skipped: they need no lease, and waiting could deadlock.
        self._connection.execute(
            update(jobs)
            .where(jobs.c.id.in_(running.with_for_update(skip_locked=True)))
            .values(lease_until=func.now() + lease, updated_at=func.now())
        )

    def lock_claim(self, job: Job) -> bool:
        """Lock a job and its session until this transaction ends, so that the claim stays valid.

        Returns:
            False where the claim was void already.
        """
        lock_session_of(self._connection, job)
        claimed = select(jobs.c.id).where(*_is_claimed(job)).with_for_update()
        return self._connection.execute(claimed).one_or_none() is not None

    def succeed(self, job: Job, *, lease: timedelta) -> Sequence[Message] | None:
        """End a job whose result is written in this transaction."""
        lock_session_of(self._connection, job)
        return end_job(self._connection, job, JobStatus.succeeded, lease=lease)

    def fail(self, job: Job, error: TenorError, *, lease: timedelta) -> Sequence[Message] | None:
        """End a job that can never succeed, with its error."""
        lock_session_of(self._connection, job)
        return end_job(self._connection, job, JobStatus.failed, error, lease=lease)

    def quarantine(self, job: Job, last_error: TenorError, *, lease: timedelta) -> Sequence[Message] | None:
        """End a job that has no attempt left. An operator may requeue or drop it."""
        lock_session_of(self._connection, job)
        error = attempts_exhausted(job, last_error.detail)
        return end_job(self._connection, job, JobStatus.quarantined, error, lease=lease)

    def retry(self, job: Job, error: TenorError, delay: timedelta, *, counted: bool = True) -> bool:
        """Queue a job again, to be published by the sweeper after `delay`.

        Args:
            counted: whether this attempt counts against the job's limit.

        Returns:
            False where the claim was void.
        """
        result = self._connection.execute(
            update(jobs)
            .where(*_is_claimed(job))
            .values(
                status=JobStatus.queued.value,
                attempts=jobs.c.attempts if counted else jobs.c.attempts - 1,
                lease_until=func.now() + delay,
                error_code=error.code,
                error_message=error.detail,
                updated_at=func.now(),
            )
            .returning(jobs.c.id)
        )
        return result.one_or_none() is not None

    def release(self, claims: Collection[Job], *, lease: timedelta) -> Sequence[Message]:
        """Queue jobs for other workers at once; this attempt does not count. Void claims are left out.

        Returns:
            The messages to publish after the commit.
        """
        return self._outbox.insert([job.id for job in claims if self._release(job, lease)])

    def delete(self, job: Job) -> None:
        """Delete a job."""
        self._connection.execute(delete(jobs).where(jobs.c.id == job.id))

    def sweep(self, *, lease: timedelta, retries: Mapping[Lane, RetryPolicy], limit: int = 500) -> int:
        """Insert another message for each job whose lease ran out, or quarantine it where it has no attempt left.

        Jobs whose turn waits for an earlier one are left queued. Deliveries are left out: workers look for those that
        are due, and need no message.

        Returns:
            How many jobs were quarantined or got a message, at most twice `limit`.
        """
        most = case({lane.value: retry.attempts for lane, retry in retries.items()}, value=jobs.c.lane)
        exhausted = self._overdue(jobs.c.attempts >= most, limit)
        for job in exhausted:
            # Their sessions are not locked: their rows are locked already, and a worker that ends a turn locks the
            # session first, so that both could wait for each other.
            error = attempts_exhausted(job, job.error_message)
            end_job(self._connection, job, JobStatus.quarantined, error, lease=lease)
        overdue = [job.id for job in self._overdue(jobs.c.attempts < most, limit)]
        blocked = set(self._connection.execute(_PUT_OFF_BLOCKED, {"job_ids": overdue}).scalars())
        lost = [job_id for job_id in overdue if job_id not in blocked]
        self._requeue_lost(lost, lease)
        return len(exhausted) + len(lost)

    def republish(self, *, lease: timedelta, limit: int = 1000) -> int:
        """Insert another message for each queued job, the oldest first, after the broker has lost its messages.

        Left out are the jobs that no message was published for: those that wait for an earlier turn, those that wait
        for their next attempt, and deliveries. The bulk lane, which may be very long, is left out too: its jobs, as
        those beyond the limit, get their messages when their leases have run out.

        Returns:
            How many jobs there were, at most `limit`.
        """
        # Jobs that another process claims or republishes are skipped: they need no message.
        rows = self._connection.execute(
            select(jobs.c.id)
            .where(jobs.c.status == JobStatus.queued.value, jobs.c.lane.not_in([Lane.bulk, Lane.delivery]))
            .where(jobs.c.error_code.is_(None), ~is_blocked())
            .order_by(jobs.c.created_at)
            .with_for_update(skip_locked=True)
            .limit(limit)
        )
        lost = list(rows.scalars())
        self._requeue_lost(lost, lease)
        return len(lost)

    def _release(self, job: Job, lease: timedelta) -> bool:
        row = self._connection.execute(
            update(jobs)
            .where(*_is_claimed(job), jobs.c.status == JobStatus.running.value)
            .values(**queue_values(lease), attempts=jobs.c.attempts - 1)
            .returning(jobs.c.id)
        ).one_or_none()
        return row is not None

    def _overdue(self, which: ColumnElement[bool], limit: int) -> list[Job]:
        # Jobs that another sweeper or a worker has locked are skipped, so that several sweepers share the work.
        rows = self._connection.execute(
            select(jobs)
            .where(text(OPEN_JOB), text("lane <> 'delivery'"), jobs.c.lane.in_(Lane))
            .where(jobs.c.lease_until < func.now(), which)
            .order_by(jobs.c.lease_until)
            .with_for_update(skip_locked=True)
            .limit(limit)
        )
        return [Job.model_validate(row) for row in rows]

    def _requeue_lost(self, job_ids: list[UUID], lease: timedelta) -> None:
        """Queue jobs whose messages were lost, with new messages.

        Each time, a job waits twice as long before its message counts as lost again, so that the sweeper does not make
        a long queue longer.
        """
        if not job_ids:
            return
        patience = lease * func.power(2, func.least(jobs.c.sends, _MAX_DOUBLINGS))
        values = {"status": JobStatus.queued.value, "sends": jobs.c.sends + 1, "lease_until": func.now() + patience}
        self._connection.execute(update(jobs).where(jobs.c.id.in_(job_ids)).values(**values, updated_at=func.now()))
        self._outbox.insert_missing(job_ids)


def claim_values(lease: timedelta) -> dict[str, Any]:
    """Return the values of a job that a worker claims for the time of its lease."""
    return {
        "status": JobStatus.running.value,
        "attempts": jobs.c.attempts + 1,
        "claims": jobs.c.claims + 1,
        "lease_until": func.now() + lease,
        "updated_at": func.now(),
    }


def queue_values(lease: timedelta) -> dict[str, Any]:
    """Return the values of a job that is queued again now. A delivery is due at once, as it waits for no message."""
    lease_until = case((jobs.c.lane == Lane.delivery.value, func.now()), else_=func.now() + lease)
    return {"status": JobStatus.queued.value, "lease_until": lease_until, "updated_at": func.now()}


def _is_claimed(job: Job) -> tuple[ColumnElement[bool], ...]:
    return (jobs.c.id == job.id, jobs.c.claims == job.claims, jobs.c.status.in_(OPEN))


def _putting_off_blocked() -> Update:
    """Statement that puts off the given jobs that wait for an earlier turn, and returns their ids.

    The transaction that ends the earlier turn inserts their messages, so the sweeper need not look at them meanwhile.
    """
    blocked = update(jobs).where(GIVEN_JOBS, is_blocked())
    return blocked.values(lease_until=func.now() + _BLOCKED_LEASE).returning(jobs.c.id)


def _inserting_unblocked() -> Select[Any]:
    """Statement that inserts and returns the messages of the given jobs, and puts off those that wait."""
    blocked = _putting_off_blocked().cte("blocked")
    return insert_given(jobs.c.id.not_in(select(blocked.c.id)))


# Built once, as building them takes longer than running them.
_PUT_OFF_BLOCKED, _INSERT_UNBLOCKED = _putting_off_blocked(), _inserting_unblocked()
