"""Jobs, their leases, the outbox, and the workers that are alive.

A claim is a job's id and its number of claims: whoever claims later voids it, so that a worker thought dead that
comes back can no longer write. The database's clock alone decides, as the workers' clocks may differ.

Whoever ends a turn holds its session, and its subject, until the commit, as whoever adds one or deletes the session
does: so the next turn is there to be sent for, or is added once this one has ended and need not wait. They are given
the messages for whatever waited for it, and for the webhooks that are to be told of it, to send once the transaction is
committed; or None, where their claim was void by then and nothing has ended.
"""

from collections.abc import Collection, Mapping, Sequence
from datetime import timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import (
    ColumnElement,
    Connection,
    Integer,
    Select,
    Update,
    Uuid,
    any_,
    bindparam,
    case,
    delete,
    exists,
    extract,
    func,
    insert,
    literal,
    select,
    text,
    true,
    tuple_,
    update,
)
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.dialects.postgresql import insert as upsert

from shared.domain.job import (
    OPEN,
    Job,
    JobCount,
    JobStatus,
    Lane,
    ListedJob,
    Message,
    NewJob,
    QueueDepth,
    RetryPolicy,
    Worker,
)
from shared.errors import AttemptsExhausted, JobDropped, TenorError, WrongJobStatus
from shared.store.tables import (
    OPEN_JOB,
    deliveries,
    doomed_blobs,
    jobs,
    outbox,
    recordings,
    sessions,
    subjects,
    tenants,
    turns,
    workers,
)
from shared.store.turn_order import is_blocked, unblocked_by
from shared.store.webhooks import telling

_MOST_COUNTED = 1_000_000
_REQUEST = (jobs.c.correlation_id, jobs.c.traceparent)
_GIVEN = jobs.c.id == any_(bindparam("job_ids", type_=ARRAY(Uuid)))
_WAITING_LEASE = timedelta(hours=1)
_TASK = case({lane.value: lane.task for lane in Lane}, value=jobs.c.lane)


def _writing_messages(*which: ColumnElement[bool]) -> Select[Any]:
    each = select(jobs.c.id, _TASK, jobs.c.lane).where(_GIVEN, *which)
    written = insert(outbox).from_select(["job_id", "task", "queue"], each).returning(outbox).cte("written")
    return select(written, *_REQUEST).join(jobs, jobs.c.id == written.c.job_id)


def _ending() -> Select[Any]:
    """One row, or as many as there are webhooks to be told of it; none where there was no such job to end."""
    claims = func.coalesce(bindparam("its_claims", type_=Integer), jobs.c.claims)
    ended = (
        update(jobs)
        .where(jobs.c.id == bindparam("its_id"), jobs.c.claims == claims)
        .where(jobs.c.status.in_(bindparam("before", expanding=True)))
        .values(status=bindparam("after"), error_code=bindparam("code"), error_message=bindparam("reason"))
        .values(updated_at=func.now())
        .returning(jobs)
        .cte("ended")
    )
    messages = telling(ended)
    request = (ended.c[column.name] for column in _REQUEST)
    return select(messages, *request).select_from(ended.outerjoin(messages, true()))


def _putting_off() -> Update:
    """The given jobs that have to wait are sent for by whoever ends the turn before, and need no sweeper meanwhile."""
    return update(jobs).where(_GIVEN, is_blocked()).values(lease_until=func.now() + _WAITING_LEASE).returning(jobs.c.id)


def _announcing() -> Select[Any]:
    """The messages of the given jobs, but for those that have to wait, which are put off."""
    waiting = _putting_off().cte("waiting")
    return _writing_messages(jobs.c.id.not_in(select(waiting.c.id)))


# Made once, as that takes longer than to have it done.
_SEND, _ENQUEUE, _PUT_OFF, _END = _writing_messages(), _announcing(), _putting_off(), _ending()


def claim_values(lease: timedelta) -> dict[str, Any]:
    """Return the values of a job that a worker claims, for as long as its lease is."""
    return {
        "status": JobStatus.running.value,
        "attempts": jobs.c.attempts + 1,
        "claims": jobs.c.claims + 1,
        "lease_until": func.now() + lease,
        "updated_at": func.now(),
    }


class Jobs:
    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    # the way in

    def enqueue(self, new: Sequence[NewJob], *, lease: timedelta) -> list[tuple[Job, Message | None]]:
        """Jobs, and for each the message to send once this transaction is committed; in their order.

        There is none for a turn that has to wait: whoever ends the one before sends for it. So the transaction must
        hold its session, and its subject, as `add_turns` does.
        """
        if not new:
            return []
        queued = insert(jobs).values(lease_until=func.now() + lease).returning(jobs)
        rows = self._connection.execute(queued, [{**job.model_dump(), "lane": job.lane.value} for job in new])
        found = {(job.turn_id, job.recording_id): job for job in map(Job.model_validate, rows)}
        stored = [found[job.turn_id, job.recording_id] for job in new]
        rows = self._connection.execute(_ENQUEUE, {"job_ids": [job.id for job in stored]})
        messages = {message.job_id: message for message in map(Message.model_validate, rows)}
        return [(job, messages.get(job.id)) for job in stored]

    def unsent(self, older_than: timedelta, limit: int = 500) -> Sequence[Message]:
        """Messages that nobody has sent. They stay locked until this transaction ends."""
        rows = self._connection.execute(
            select(outbox, *_REQUEST)
            .join(jobs)
            .where(outbox.c.created_at <= func.now() - older_than)
            .order_by(outbox.c.created_at)
            .with_for_update(skip_locked=True, of=outbox)
            .limit(limit)
        )
        return [Message.model_validate(row) for row in rows]

    def sent(self, messages: Collection[Message]) -> None:
        """The broker has them. Those that somebody else is sending or deleting are left to them."""
        free = (
            select(outbox.c.id)
            .where(outbox.c.id == any_(literal([message.id for message in messages], ARRAY(Uuid))))
            .with_for_update(skip_locked=True)
        )
        self._connection.execute(delete(outbox).where(outbox.c.id.in_(free)))

    # a worker's way

    def claim(self, job_id: UUID, lease: timedelta) -> Job | None:
        """Take a job up, or None where it has ended, is gone, or another worker holds it.

        None also where its turn has to wait for an earlier one: the job is left as it is, and whoever ends that one
        sends for it again.
        """
        free = (jobs.c.status == JobStatus.queued.value) | (
            (jobs.c.status == JobStatus.running.value) & (jobs.c.lease_until < func.now())
        )
        row = self._connection.execute(
            update(jobs).where(jobs.c.id == job_id, free, ~is_blocked()).values(claim_values(lease)).returning(jobs)
        ).one_or_none()
        return None if row is None else Job.model_validate(row)

    def renew(self, claims: Collection[Job], lease: timedelta) -> None:
        """Renew the leases of the jobs that a worker is at, but for those that are just being ended."""
        claimed = tuple_(jobs.c.id, jobs.c.claims).in_([(job.id, job.claims) for job in claims])
        running = select(jobs.c.id).where(claimed, jobs.c.status == JobStatus.running.value)
        self._connection.execute(
            update(jobs)
            .where(jobs.c.id.in_(running.with_for_update(skip_locked=True)))
            .values(lease_until=func.now() + lease, updated_at=func.now())
        )

    def hold(self, job: Job) -> bool:
        """Keep a claim from being voided until this transaction ends. False where it was void by then."""
        self._hold(job)
        held = select(jobs.c.id).where(*_held(job)).with_for_update()
        return self._connection.execute(held).one_or_none() is not None

    def succeed(self, job: Job, *, lease: timedelta) -> Sequence[Message] | None:
        """End a job whose result this transaction writes."""
        self._hold(job)
        return self._end(job, JobStatus.succeeded, lease=lease)

    def fail(self, job: Job, error: TenorError, *, lease: timedelta) -> Sequence[Message] | None:
        """End a job without a result."""
        self._hold(job)
        return self._end(job, JobStatus.failed, error, lease=lease)

    def quarantine(self, job: Job, last_error: TenorError, *, lease: timedelta) -> Sequence[Message] | None:
        """End a job that has no attempt left, until a person looks at it."""
        self._hold(job)
        return self._end(job, JobStatus.quarantined, _exhausted(job, last_error.detail), lease=lease)

    def retry(self, job: Job, error: TenorError, delay: timedelta, *, counted: bool = True) -> bool:
        """Put a job back, to be sent again after `delay`. False where the claim was void by then.

        Args:
            counted: whether this attempt counts against the job's limit.
        """
        result = self._connection.execute(
            update(jobs)
            .where(*_held(job))
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

    def give_back(self, claims: Collection[Job], *, lease: timedelta) -> Sequence[Message]:
        """Let others take jobs up at once, this attempt uncounted; the messages to send once this is committed."""
        given = [job.id for job in claims if self._given_back(job, lease)]
        return self._sent_for(given)

    # the sweeper's way

    def sweep(self, *, lease: timedelta, retries: Mapping[Lane, RetryPolicy], limit: int = 500) -> int:
        """Give every job whose lease ran out another message, or put it in quarantine where it has no attempt left.

        One whose turn has to wait is put off. A queued job is_blocked twice as long each time before its
        message counts as lost again, so that a long queue is not made longer by the sweeper. Deliveries are left to
        `Deliveries`: workers look for those that are due, and need no message.
        """
        most = case({lane.value: retry.attempts for lane, retry in retries.items()}, value=jobs.c.lane)
        spent = self._overdue(jobs.c.attempts >= most, limit)
        for job in spent:
            self._end(job, JobStatus.quarantined, _exhausted(job, job.error_message), lease=lease)
        overdue = [job.id for job in self._overdue(jobs.c.attempts < most, limit)]
        waiting = set(self._connection.execute(_PUT_OFF, {"job_ids": overdue}).scalars())
        lost = [job_id for job_id in overdue if job_id not in waiting]
        if lost:
            self._resend(lost, lease)
        return len(spent) + len(lost)

    def send_again(self, *, lease: timedelta, limit: int = 1000) -> int:
        """Write another message for each queued job, the oldest first, after the broker has lost its messages.

        Left out are the jobs that no message was sent for: those that wait for an earlier turn, or for their next
        attempt, and deliveries, which need none. Left out is the bulk lane too, which may be very long; its jobs are
        sent again, as those beyond the limit are, when their lease has run out.

        Returns:
            How many jobs there were, at most `limit`.
        """
        rows = self._connection.execute(
            select(jobs.c.id)
            .where(jobs.c.status == JobStatus.queued.value, jobs.c.lane.not_in([Lane.bulk, Lane.delivery]))
            .where(jobs.c.error_code.is_(None), ~is_blocked())
            .order_by(jobs.c.created_at)
            .with_for_update(skip_locked=True)
            .limit(limit)
        )
        lost = list(rows.scalars())
        if lost:
            self._resend(lost, lease)
        return len(lost)

    def maintain(self, lease: timedelta) -> Sequence[Message]:
        """The messages for a maintenance job where there is something to delete and none is open already."""
        due = select(doomed_blobs.c.uri).where(doomed_blobs.c.after <= func.now())
        open_one = select(jobs.c.id).where(jobs.c.lane == Lane.maintenance.value, jobs.c.status.in_(OPEN))
        if not self._connection.execute(select(due.exists() & ~open_one.exists())).scalar_one():
            return []
        return [message for _, message in self.enqueue([NewJob(lane=Lane.maintenance)], lease=lease) if message]

    def forget(self, job: Job) -> None:
        """Leave no trace of a job that nobody will ask for."""
        self._connection.execute(delete(jobs).where(jobs.c.id == job.id))

    # a person's way

    def listed(
        self,
        *,
        ids: Collection[UUID] | None = None,
        statuses: Collection[JobStatus] | None = None,
        tenant: str | None = None,
        limit: int | None = None,
    ) -> list[ListedJob]:
        """Jobs with one of the ids, of one of the statuses and of the tenant, those that changed last first."""
        turn_id = func.coalesce(jobs.c.turn_id, deliveries.c.turn_id)
        session_id = func.coalesce(turns.c.session_id, recordings.c.session_id)
        known = jobs.outerjoin(deliveries, deliveries.c.id == jobs.c.delivery_id)
        known = known.outerjoin(turns, turns.c.id == turn_id)
        known = known.outerjoin(recordings, recordings.c.id == jobs.c.recording_id)
        known = known.outerjoin(sessions, sessions.c.id == session_id).outerjoin(tenants)
        wanted = select(jobs, tenants.c.name.label("tenant"), sessions.c.id.label("session_id"))
        whose = wanted.select_from(known).limit(limit)
        if ids is not None:
            whose = whose.where(jobs.c.id.in_(ids))
        if statuses is not None:
            whose = whose.where(jobs.c.status.in_(statuses))
        if tenant is not None:
            whose = whose.where(tenants.c.name == tenant)
        rows = self._connection.execute(whose.order_by(jobs.c.updated_at.desc(), jobs.c.id))
        return [ListedJob.model_validate(row) for row in rows]

    def requeue(self, job: Job, *, lease: timedelta) -> None:
        """Take a job out of quarantine, with all its attempts before it. The sweeper sends for it.

        Raises:
            WrongJobStatus: it is not in quarantine.
        """
        again = {"status": JobStatus.queued.value, "attempts": 0, "sends": 0, "error_code": None, "error_message": None}
        row = self._connection.execute(
            update(jobs)
            .where(jobs.c.id == job.id, jobs.c.status == JobStatus.quarantined.value)
            .values(**again, lease_until=_queued_until(lease), updated_at=func.now())
            .returning(jobs.c.id)
        ).one_or_none()
        if row is None:
            raise WrongJobStatus(f"job {job.id} is not quarantined: only a quarantined one can be tried again")
        self._announce([job.id])

    def drop(self, job: Job, *, lease: timedelta) -> Sequence[Message]:
        """End a job for good without a result, whether it is in quarantine or has not ended. Its turn stays.

        Raises:
            WrongJobStatus: it succeeded or failed before.
        """
        self._hold(job)
        reason = "" if job.error_message is None else f"; before that: {job.error_message}"
        dropped = JobDropped(f"an operator gave it up after {job.attempts} attempts{reason}")
        messages = self._end(job, JobStatus.failed, dropped, lease=lease, by_hand=True)
        if messages is None:
            raise WrongJobStatus(f"job {job.id} succeeded or failed before: there is nothing to drop")
        return messages

    def _given_back(self, job: Job, lease: timedelta) -> bool:
        unspent = {"status": JobStatus.queued.value, "attempts": jobs.c.attempts - 1}
        row = self._connection.execute(
            update(jobs)
            .where(*_held(job), jobs.c.status == JobStatus.running.value)
            .values(**unspent, lease_until=_queued_until(lease), updated_at=func.now())
            .returning(jobs.c.id)
        ).one_or_none()
        return row is not None

    def _sent_for(self, job_ids: Collection[UUID]) -> Sequence[Message]:
        """A message for each job, into its lane."""
        rows = self._connection.execute(_SEND, {"job_ids": list(job_ids)})
        return [Message.model_validate(row) for row in rows]

    def _overdue(self, which: ColumnElement[bool], limit: int) -> list[Job]:
        rows = self._connection.execute(
            select(jobs)
            .where(text(OPEN_JOB), text("lane <> 'delivery'"), jobs.c.lane.in_(Lane))
            .where(jobs.c.lease_until < func.now(), which)
            .order_by(jobs.c.lease_until)
            .with_for_update(skip_locked=True)
            .limit(limit)
        )
        return [Job.model_validate(row) for row in rows]

    def _hold(self, job: Job) -> None:
        """Let nobody else add, end or delete turns of the same session or voice until this transaction ends."""
        turn = select(turns).where(turns.c.id == job.turn_id).subquery()
        recorded_in = select(recordings.c.session_id).where(recordings.c.id == job.recording_id).scalar_subquery()
        its = sessions.c.id == func.coalesce(select(turn.c.session_id).scalar_subquery(), recorded_in)
        scope = select(select(turn.c.scope_id).scalar_subquery()).select_from(sessions).where(its)
        scope_id = self._connection.execute(scope.with_for_update(key_share=True, of=sessions)).scalar_one_or_none()
        if scope_id is not None:
            held = select(subjects.c.id).where(subjects.c.id == scope_id)
            self._connection.execute(held.with_for_update(key_share=True))

    def _resend(self, job_ids: list[UUID], lease: timedelta) -> None:
        patience = lease * func.power(2, func.least(jobs.c.sends, 6))
        self._connection.execute(
            update(jobs)
            .where(jobs.c.id.in_(job_ids))
            .values(
                status=JobStatus.queued.value,
                sends=jobs.c.sends + 1,
                lease_until=func.now() + patience,
                updated_at=func.now(),
            )
        )
        self._announce(job_ids)

    def _announce(self, job_ids: list[UUID]) -> None:
        """A message for each job that has none waiting, into its lane; the sweeper sends it."""
        waiting = exists().where(outbox.c.job_id == jobs.c.id)
        again = select(jobs.c.id, _TASK, jobs.c.lane).where(jobs.c.id.in_(job_ids), ~waiting)
        self._connection.execute(insert(outbox).from_select(["job_id", "task", "queue"], again))

    def _end(
        self,
        job: Job,
        status: JobStatus,
        error: TenorError | None = None,
        *,
        lease: timedelta,
        by_hand: bool = False,
    ) -> Sequence[Message] | None:
        """By hand a job is ended whoever holds it, and out of quarantine too."""
        values = {
            "its_id": job.id,
            "its_claims": None if by_hand else job.claims,
            "before": (*OPEN, JobStatus.quarantined) if by_hand else OPEN,
            "after": status,
            "code": error and error.code,
            "reason": error and error.detail,
        }
        rows = self._connection.execute(_END, values).all()
        if not rows:
            return None
        if status is not JobStatus.quarantined:
            self._used(job)
        if status is JobStatus.failed:
            self._useless(job)
        told = [Message.model_validate(row) for row in rows if row.id is not None]
        return [*told, *self._release(job.turn_id, lease)]

    def _release(self, turn_id: UUID | None, lease: timedelta) -> Sequence[Message]:
        """The messages for those that waited for a turn that has ended."""
        row = None if turn_id is None else self._connection.execute(unblocked_by(turn_id)).one_or_none()
        waiting = {job_id for job_id in row or () if job_id is not None}
        if not waiting:
            return []
        self._connection.execute(update(jobs).where(jobs.c.id.in_(waiting)).values(lease_until=func.now() + lease))
        return self._sent_for(waiting)

    def _used(self, job: Job) -> None:
        """Sound that nobody consented to keep has served its purpose."""
        of_turn = select(turns.c.recording_id).where(turns.c.id == job.turn_id).scalar_subquery()
        its = recordings.c.id == func.coalesce(job.recording_id, of_turn)
        self._connection.execute(
            update(recordings).where(its, recordings.c.expires_at.is_(None)).values(expires_at=func.now())
        )

    def _useless(self, job: Job) -> None:
        """What was cut off a recording, and became no turn, goes with the next sweep, whatever was consented to."""
        no_turn = ~exists().where(turns.c.recording_id == recordings.c.id)
        cuts = update(recordings).where(recordings.c.source_id == job.recording_id, no_turn)
        self._connection.execute(cuts.values(expires_at=func.now()))

    # what is going on

    def open(self, turn_ids: Collection[UUID]) -> set[UUID]:
        """Those of the turns whose job has still to end."""
        still = [status.value for status in OPEN]
        found = select(jobs.c.turn_id).where(jobs.c.turn_id.in_(turn_ids), jobs.c.status.in_(still))
        return set(self._connection.execute(found).scalars())

    def running(self) -> int:
        """How many jobs workers are at."""
        count = select(func.count()).where(jobs.c.status == JobStatus.running.value)
        return self._connection.execute(count).scalar_one()

    def waiting(self) -> list[QueueDepth]:
        """What waits in each lane, counted up to a million; of bounded cost, however many jobs there are."""
        return [self._waiting(lane) for lane in Lane]

    def counts(self) -> list[JobCount]:
        """How many jobs there are by lane and status. It reads all of them."""
        lately = {"last_minute": timedelta(minutes=1), "last_hour": timedelta(hours=1)}
        came = [func.count().filter(jobs.c.created_at >= func.now() - ago).label(name) for name, ago in lately.items()]
        each = select(jobs.c.lane, jobs.c.status, func.count().label("jobs"), *came)
        rows = self._connection.execute(each.group_by(jobs.c.lane, jobs.c.status).order_by(jobs.c.lane, jobs.c.status))
        return [JobCount.model_validate(row) for row in rows]

    def _waiting(self, lane: Lane) -> QueueDepth:
        of_lane = (jobs.c.lane == lane.value, jobs.c.status == JobStatus.queued.value)
        counted = select(jobs.c.id).where(*of_lane).limit(_MOST_COUNTED).subquery()
        oldest = select(func.min(jobs.c.created_at)).where(*of_lane).scalar_subquery()
        age = func.coalesce(extract("epoch", func.now() - oldest), 0)
        row = self._connection.execute(select(func.count().label("jobs"), age.label("oldest_s")).select_from(counted))
        return QueueDepth(lane=lane, **row.mappings().one())

    # workers

    def worker_seen(
        self, worker_id: UUID, bundle_id: str | None, *, host: str | None = None, device: str | None = None
    ) -> None:
        """Announce a worker, or renew its sign of life."""
        self._connection.execute(
            upsert(workers)
            .values(id=worker_id, bundle_id=bundle_id, host=host, device=device)
            .on_conflict_do_update(index_elements=["id"], set_={"seen_at": func.now()})
        )

    def worker_gone(self, worker_id: UUID) -> None:
        self._connection.execute(delete(workers).where(workers.c.id == worker_id))

    def forget_workers(self, unseen_for: timedelta) -> None:
        """Forget the workers that died without a word."""
        self._connection.execute(delete(workers).where(workers.c.seen_at < func.now() - unseen_for))

    def workers(self, seen_within: timedelta) -> int:
        """How many workers that take turns gave a sign of life lately."""
        lately = workers.c.seen_at >= func.now() - seen_within
        count = select(func.count()).where(lately, workers.c.bundle_id.is_not(None))
        return self._connection.execute(count).scalar_one()

    def fleet(self) -> list[Worker]:
        """Every worker that was not forgotten yet, the one that was seen last first."""
        unseen = extract("epoch", func.now() - workers.c.seen_at).label("unseen_s")
        rows = self._connection.execute(select(workers, unseen).order_by(workers.c.seen_at.desc(), workers.c.id))
        return [Worker.model_validate(row) for row in rows]


def _queued_until(lease: timedelta) -> ColumnElement[Any]:
    """The `lease_until` of a job that is queued now. A delivery is due at once, as it waits for no message."""
    return case((jobs.c.lane == Lane.delivery.value, func.now()), else_=func.now() + lease)


def _held(job: Job) -> tuple[ColumnElement[bool], ...]:
    return (jobs.c.id == job.id, jobs.c.claims == job.claims, jobs.c.status.in_(OPEN))


def _exhausted(job: Job, last_error: str | None) -> AttemptsExhausted:
    last = "" if last_error is None else f"; the last error was: {last_error}"
    return AttemptsExhausted(f"it was tried {job.attempts} times and never finished{last}")
