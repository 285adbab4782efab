"""How a job ends: with its webhook deliveries, the expiry of its audio, and messages for the turns that waited for it.

A transaction that ends a turn's job locks the turn's session, and its subject, until the commit, as one that adds a
turn or deletes the session does. So the next turn either is there already and gets a message, or is added once this one
has ended and need not wait.
"""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Integer, Select, bindparam, func, select, true, update

from shared.domain.job import OPEN, Job, JobStatus, Message
from shared.errors import AttemptsExhausted, TenorError
from shared.store.outbox import REQUEST_COLUMNS, Outbox
from shared.store.recordings import Recordings
from shared.store.tables import jobs, recordings, sessions, subjects, turns
from shared.store.turn_order import unblocked_by
from shared.store.webhooks import insert_deliveries


def lock_session_of(connection: Connection, job: Job) -> None:
    """Lock the session of a job's turn or recording, and the turn's subject, until this transaction ends."""
    turn = select(turns).where(turns.c.id == job.turn_id).subquery()
    recorded_in = select(recordings.c.session_id).where(recordings.c.id == job.recording_id).scalar_subquery()
    its = sessions.c.id == func.coalesce(select(turn.c.session_id).scalar_subquery(), recorded_in)
    scope = select(select(turn.c.scope_id).scalar_subquery()).select_from(sessions).where(its)
    scope_id = connection.execute(scope.with_for_update(key_share=True, of=sessions)).scalar_one_or_none()
    if scope_id is not None:
        # A scope is a session or a subject; where it is the session, no row is found here.
        subject = select(subjects.c.id).where(subjects.c.id == scope_id)
        connection.execute(subject.with_for_update(key_share=True))


def end_job(
    connection: Connection,
    job: Job,
    status: JobStatus,
    error: TenorError | None = None,
    *,
    lease: timedelta,
    by_operator: bool = False,
) -> Sequence[Message] | None:
    """End a job whose session this transaction has locked.

    Args:
        lease: how long the turns that waited for this one wait for a worker before their messages count as lost.
        by_operator: end the job whichever worker has claimed it, and out of quarantine too.

    Returns:
        The messages to publish after the commit; None where the claim was void or the job had ended before.
    """
    parameters = {
        "ended_id": job.id,
        "ended_claims": None if by_operator else job.claims,
        "before": (*OPEN, JobStatus.quarantined) if by_operator else OPEN,
        "after": status,
        "code": error and error.code,
        "reason": error and error.detail,
    }
    rows = connection.execute(_END, parameters).all()
    if not rows:
        return None
    if status is not JobStatus.quarantined:
        Recordings(connection).expire_for(job)
    if status is JobStatus.failed:
        Recordings(connection).expire_unused_parts(job)
    deliveries = [Message.model_validate(row) for row in rows if row.id is not None]
    return [*deliveries, *_unblock(connection, job.turn_id, lease)]


def attempts_exhausted(job: Job, last_error: str | None) -> AttemptsExhausted:
    """Return the error of a job that goes into quarantine because it has no attempt left."""
    last = "" if last_error is None else f"; the last error was: {last_error}"
    return AttemptsExhausted(f"it was tried {job.attempts} times and never finished{last}")


def _unblock(connection: Connection, turn_id: UUID | None, lease: timedelta) -> Sequence[Message]:
    """Insert and return messages for the jobs that waited for a turn that has ended."""
    row = None if turn_id is None else connection.execute(unblocked_by(turn_id)).one_or_none()
    waiting = {job_id for job_id in row or () if job_id is not None}
    if not waiting:
        return []
    connection.execute(update(jobs).where(jobs.c.id.in_(waiting)).values(lease_until=func.now() + lease))
    return Outbox(connection).insert(waiting)


def _ending() -> Select[Any]:
    """Statement that ends a job and inserts its deliveries: one row for each delivery's message, at least one row, and
    no row where there was no such job to end.
    """
    claims = func.coalesce(bindparam("ended_claims", type_=Integer), jobs.c.claims)
    ended = (
        update(jobs)
        .where(jobs.c.id == bindparam("ended_id"), jobs.c.claims == claims)
        .where(jobs.c.status.in_(bindparam("before", expanding=True)))
        .values(status=bindparam("after"), error_code=bindparam("code"), error_message=bindparam("reason"))
        .values(updated_at=func.now())
        .returning(jobs)
        .cte("ended")
    )
    messages = insert_deliveries(ended)
    request = (ended.c[column.name] for column in REQUEST_COLUMNS)
    return select(messages, *request).select_from(ended.outerjoin(messages, true()))


# Built once, as building it takes longer than running it.
_END = _ending()
