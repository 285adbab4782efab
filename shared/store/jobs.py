"""Jobs, their leases, the outbox, and the workers that are alive.

A claim is a job's id and its number of claims: whoever claims later voids it, so that a worker thought dead that
comes back can no longer write. The database's clock alone decides, as the workers' clocks may differ.

Whoever ends a turn holds its session, and its subject, until the commit, as whoever adds one or deletes the session
does: so the next turn is there to be sent for, or is added once this one has ended and need not wait.
"""

from collections.abc import Collection, Sequence
from datetime import timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import (
    ColumnElement,
    Connection,
    Row,
    RowMapping,
    Select,
    bindparam,
    delete,
    exists,
    extract,
    func,
    insert,
    literal,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import insert as upsert

from shared.domain.conversation import Recording, Turn
from shared.domain.emotion import Reading
from shared.domain.history import CONTEXT_TURNS, LONGEST_BASELINE, Work
from shared.domain.job import OPEN, Job, JobCount, JobStatus, Lane, ListedJob, Message, NewJob, Waiting, Worker
from shared.domain.transcript import Transcript
from shared.errors import AttemptsExhausted, JobDropped, TenorError, WrongJobStatus
from shared.store.order import next_in_line, waits
from shared.store.tables import (
    jobs,
    outbox,
    predictions,
    recordings,
    sessions,
    subjects,
    tenants,
    transcripts,
    turns,
    voice_summaries,
    workers,
)

_MOST_COUNTED = 1_000_000
_REQUEST = (jobs.c.correlation_id, jobs.c.traceparent)


def _writing_messages() -> Select[Any]:
    task: ColumnElement[str] = bindparam("task", type_=outbox.c.task.type)
    each = select(jobs.c.id, task, jobs.c.lane).where(jobs.c.id.in_(bindparam("job_ids", expanding=True)))
    written = insert(outbox).from_select(["job_id", "task", "queue"], each).returning(outbox).cte("written")
    return select(written, *_REQUEST).join(jobs, jobs.c.id == written.c.job_id)


_SEND = _writing_messages()  # made once, as that takes longer than to have it done


class Jobs:
    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    # the way in

    def enqueue(self, new: Sequence[NewJob], *, task: str, lease: timedelta) -> list[tuple[Job, Message]]:
        """Jobs for turns, and for each the message to send once this transaction is committed; in their order."""
        if not new:
            return []
        queued = insert(jobs).values(lease_until=func.now() + lease).returning(jobs)
        rows = self._connection.execute(queued, [{**job.model_dump(), "lane": job.lane.value} for job in new])
        found = {job.turn_id: job for job in map(Job.model_validate, rows)}
        messages = {message.job_id: message for message in self._sent_for([job.id for job in found.values()], task)}
        stored = [found[job.turn_id] for job in new]
        return [(job, messages[job.id]) for job in stored]

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
            .where(outbox.c.id.in_([message.id for message in messages]))
            .with_for_update(skip_locked=True)
        )
        self._connection.execute(delete(outbox).where(outbox.c.id.in_(free)))

    # a worker's way

    def claim(self, job_id: UUID, lease: timedelta, bundle_id: str) -> Work | None:
        """Take a job up, or None where it has ended, is gone, or another worker holds it.

        None also where its turn has to wait for an earlier one: the job is left as it is, and the `release` of that one
        sends for it again.
        """
        free = (jobs.c.status == JobStatus.queued.value) | (
            (jobs.c.status == JobStatus.running.value) & (jobs.c.lease_until < func.now())
        )
        row = self._connection.execute(
            update(jobs)
            .where(jobs.c.id == job_id, free, ~waits())
            .values(
                status=JobStatus.running.value,
                attempts=jobs.c.attempts + 1,
                claims=jobs.c.claims + 1,
                lease_until=func.now() + lease,
                updated_at=func.now(),
            )
            .returning(jobs)
        ).one_or_none()
        return None if row is None else self._work(Job.model_validate(row), bundle_id)

    def renew(self, claims: Collection[Job], lease: timedelta) -> None:
        """A sign of life for the jobs that a worker is at."""
        for job in claims:
            self._connection.execute(
                update(jobs)
                .where(*_held(job), jobs.c.status == JobStatus.running.value)
                .values(lease_until=func.now() + lease, updated_at=func.now())
            )

    def succeed(
        self,
        job: Job,
        bundle_id: str,
        transcript: Transcript | None,
        reading: Reading,
        voice_summary: bytes | None = None,
    ) -> bool:
        """Write a job's result. False where the claim was void by then, and nothing was written.

        The summary is kept only of a voice that may be told from others: see `turns.scope_id`.
        """
        self._hold(job.turn_id)
        if not self._end(_held(job), JobStatus.succeeded):
            return False
        if transcript is not None:
            values = {"turn_id": job.turn_id, **transcript.model_dump(mode="json")}
            self._connection.execute(upsert(transcripts).values(values).on_conflict_do_nothing())
        values = {
            "turn_id": job.turn_id,
            "bundle_id": bundle_id,
            **reading.model_dump(mode="json", exclude_computed_fields=True),
        }
        self._connection.execute(upsert(predictions).values(values).on_conflict_do_nothing())
        if voice_summary is not None:
            self._keep_summary(job.turn_id, bundle_id, voice_summary)
        return True

    def fail(self, job: Job, error: TenorError) -> bool:
        """End a job without a result. False where the claim was void by then."""
        self._hold(job.turn_id)
        return self._end(_held(job), JobStatus.failed, error)

    def quarantine(self, job: Job, last_error: TenorError) -> bool:
        """End a job that has no attempt left, until a person looks at it. False where the claim was void by then."""
        self._hold(job.turn_id)
        return self._end(_held(job), JobStatus.quarantined, _exhausted(job, last_error.detail))

    def release(self, turn_id: UUID, *, task: str, lease: timedelta) -> Sequence[Message]:
        """The messages for those that waited for a turn that has ended, to send once this transaction is committed."""
        row = self._connection.execute(next_in_line(turn_id)).one_or_none()
        waiting = {job_id for job_id in row or () if job_id is not None}
        if not waiting:
            return []
        self._connection.execute(update(jobs).where(jobs.c.id.in_(waiting)).values(lease_until=func.now() + lease))
        return self._sent_for(waiting, task)

    def retry(self, job: Job, error: TenorError, delay: timedelta) -> bool:
        """Put a job back, to be sent again after `delay`. False where the claim was void by then."""
        result = self._connection.execute(
            update(jobs)
            .where(*_held(job))
            .values(
                status=JobStatus.queued.value,
                lease_until=func.now() + delay,
                error_code=error.code,
                error_message=error.detail,
                updated_at=func.now(),
            )
            .returning(jobs.c.id)
        )
        return result.one_or_none() is not None

    def give_back(self, claims: Collection[Job], *, task: str, lease: timedelta) -> Sequence[Message]:
        """Let others take jobs up at once, this attempt uncounted; the messages to send once this is committed."""
        given = [job.id for job in claims if self._given_back(job, lease)]
        return self._sent_for(given, task)

    # the sweeper's way

    def sweep(self, *, task: str, lease: timedelta, max_attempts: int, limit: int = 500) -> int:
        """Give every job whose lease ran out another message, or put it in quarantine where it has no attempt left.

        One whose turn has to wait is left alone until it has not. A queued job waits twice as long each time before its
        message counts as lost again, so that a long queue is not made longer by the sweeper.
        """
        spent = self._overdue(jobs.c.attempts >= max_attempts, limit)
        for job in spent:
            self._end(_held(job), JobStatus.quarantined, _exhausted(job, job.error_message))
            self.release(job.turn_id, task=task, lease=lease)
        lost = self._overdue((jobs.c.attempts < max_attempts) & ~waits(), limit)
        if lost:
            self._resend([job.id for job in lost], task, lease)
        return len(spent) + len(lost)

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
        wanted = select(jobs, tenants.c.name.label("tenant"), turns.c.session_id)
        whose = wanted.select_from(jobs).join(turns).join(sessions).join(tenants).limit(limit)
        if ids is not None:
            whose = whose.where(jobs.c.id.in_(ids))
        if statuses is not None:
            whose = whose.where(jobs.c.status.in_(statuses))
        if tenant is not None:
            whose = whose.where(tenants.c.name == tenant)
        rows = self._connection.execute(whose.order_by(jobs.c.updated_at.desc(), jobs.c.id))
        return [ListedJob.model_validate(row) for row in rows]

    def requeue(self, job: Job, *, task: str, lease: timedelta) -> None:
        """Take a job out of quarantine, with all its attempts before it. The sweeper sends for it.

        Raises:
            WrongJobStatus: it is not in quarantine.
        """
        again = {"status": JobStatus.queued.value, "attempts": 0, "sends": 0, "error_code": None, "error_message": None}
        row = self._connection.execute(
            update(jobs)
            .where(jobs.c.id == job.id, jobs.c.status == JobStatus.quarantined.value)
            .values(**again, lease_until=func.now() + lease, updated_at=func.now())
            .returning(jobs.c.id)
        ).one_or_none()
        if row is None:
            raise WrongJobStatus(f"job {job.id} is not quarantined: only a quarantined one can be tried again")
        self._announce([job.id], task)

    def drop(self, job: Job) -> None:
        """End a job for good without a result, whether it is in quarantine or has not ended. Its turn stays.

        Raises:
            WrongJobStatus: it succeeded or failed before.
        """
        self._hold(job.turn_id)
        reason = "" if job.error_message is None else f"; before that: {job.error_message}"
        dropped = JobDropped(f"an operator gave the turn up after {job.attempts} attempts{reason}")
        droppable = jobs.c.status.in_((*OPEN, JobStatus.quarantined))
        if not self._end((jobs.c.id == job.id, droppable), JobStatus.failed, dropped):
            raise WrongJobStatus(f"job {job.id} succeeded or failed before: there is nothing to drop")

    def _given_back(self, job: Job, lease: timedelta) -> bool:
        unspent = {"status": JobStatus.queued.value, "attempts": jobs.c.attempts - 1}
        row = self._connection.execute(
            update(jobs)
            .where(*_held(job), jobs.c.status == JobStatus.running.value)
            .values(**unspent, lease_until=func.now() + lease, updated_at=func.now())
            .returning(jobs.c.id)
        ).one_or_none()
        return row is not None

    def _sent_for(self, job_ids: Collection[UUID], task: str) -> Sequence[Message]:
        """A message for each job, into its lane."""
        rows = self._connection.execute(_SEND, {"task": task, "job_ids": list(job_ids)})
        return [Message.model_validate(row) for row in rows]

    def _overdue(self, which: ColumnElement[bool], limit: int) -> list[Job]:
        rows = self._connection.execute(
            select(jobs)
            .where(jobs.c.status.in_(OPEN), jobs.c.lease_until < func.now(), which)
            .order_by(jobs.c.lease_until)
            .with_for_update(skip_locked=True)
            .limit(limit)
        )
        return [Job.model_validate(row) for row in rows]

    def _hold(self, turn_id: UUID) -> None:
        """Let nobody else add, end or delete turns of the same session or voice until this transaction ends."""
        scope = (
            select(turns.c.scope_id)
            .join(sessions, sessions.c.id == turns.c.session_id)
            .where(turns.c.id == turn_id)
            .with_for_update(key_share=True, of=sessions)
        )
        scope_id = self._connection.execute(scope).scalar_one_or_none()
        if scope_id is not None:
            held = select(subjects.c.id).where(subjects.c.id == scope_id)
            self._connection.execute(held.with_for_update(key_share=True))

    def _work(self, job: Job, bundle_id: str) -> Work:
        row = self._connection.execute(
            select(turns, sessions.c.language_hint)
            .join(sessions, sessions.c.id == turns.c.session_id)
            .where(turns.c.id == job.turn_id)
        ).one()
        turn = Turn.model_validate(row)
        recording = self._connection.execute(
            select(recordings).where(recordings.c.id == turn.recording_id)
        ).one_or_none()
        return Work(
            job=job,
            turn=turn,
            recording=None if recording is None else Recording.model_validate(recording),
            language_hint=row.language_hint,
            earlier=self._earlier(row, bundle_id),
            context=self._context(turn),
        )

    def _earlier(self, turn: Row[Any], bundle_id: str) -> tuple[bytes, ...]:
        if turn.scope_id is None:
            return ()
        same_voice = (turns.c.scope_id == turn.scope_id, turns.c.speaker == turn.speaker, turns.c.role == turn.role)
        newest = (
            select(voice_summaries.c.summary)
            .join(turns, turns.c.id == voice_summaries.c.turn_id)
            .where(*same_voice, turns.c.position < turn.position, voice_summaries.c.bundle_id == bundle_id)
            .order_by(turns.c.position.desc())
            .limit(LONGEST_BASELINE)
        )
        return tuple(reversed(self._connection.execute(newest).scalars().all()))

    def _context(self, turn: Turn) -> tuple[str, ...]:
        before = turns.c.index.between(turn.index - CONTEXT_TURNS, turn.index - 1)
        rows = self._connection.execute(
            select(turns.c.text.label("sent"), transcripts)
            .outerjoin(transcripts, transcripts.c.turn_id == turns.c.id)
            .where(turns.c.session_id == turn.session_id, before)
            .order_by(turns.c.index)
        ).mappings()
        waited = turn.recording_id is not None
        words = [row["sent"] or (_heard(row) if waited else "") for row in rows]
        return tuple(text for text in words if text.strip())

    def _keep_summary(self, turn_id: UUID, bundle_id: str, summary: bytes) -> None:
        kept = select(turns.c.id, literal(bundle_id), literal(summary)).where(
            turns.c.id == turn_id, turns.c.scope_id.is_not(None)
        )
        written = upsert(voice_summaries).from_select(["turn_id", "bundle_id", "summary"], kept)
        self._connection.execute(written.on_conflict_do_nothing())

    def _resend(self, job_ids: list[UUID], task: str, lease: timedelta) -> None:
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
        self._announce(job_ids, task)

    def _announce(self, job_ids: list[UUID], task: str) -> None:
        """A message for each job that has none waiting, into its lane; the sweeper sends it."""
        waiting = exists().where(outbox.c.job_id == jobs.c.id)
        again = select(jobs.c.id, literal(task), jobs.c.lane).where(jobs.c.id.in_(job_ids), ~waiting)
        self._connection.execute(insert(outbox).from_select(["job_id", "task", "queue"], again))

    def _end(self, which: tuple[ColumnElement[bool], ...], status: JobStatus, error: TenorError | None = None) -> bool:
        row = self._connection.execute(
            update(jobs)
            .where(*which)
            .values(
                status=status.value,
                error_code=None if error is None else error.code,
                error_message=None if error is None else error.detail,
                updated_at=func.now(),
            )
            .returning(jobs.c.turn_id)
        ).one_or_none()
        if row is None:
            return False
        if status is JobStatus.quarantined:
            return True
        # Sound that nobody consented to keep has served its purpose.
        used = select(turns.c.recording_id).where(turns.c.id == row.turn_id)
        self._connection.execute(
            update(recordings)
            .where(recordings.c.id.in_(used), recordings.c.expires_at.is_(None))
            .values(expires_at=func.now())
        )
        return True

    # what is going on

    def open(self, turn_ids: Collection[UUID]) -> set[UUID]:
        """Those of the turns whose job has still to end."""
        still = [status.value for status in OPEN]
        found = select(jobs.c.turn_id).where(jobs.c.turn_id.in_(turn_ids), jobs.c.status.in_(still))
        return set(self._connection.execute(found).scalars())

    def waiting(self) -> list[Waiting]:
        """What waits in each lane, counted up to a million; of bounded cost, however many jobs there are."""
        return [self._waiting(lane) for lane in Lane]

    def counts(self) -> list[JobCount]:
        """How many jobs there are by lane and status. It reads all of them."""
        lately = {"last_minute": timedelta(minutes=1), "last_hour": timedelta(hours=1)}
        came = [func.count().filter(jobs.c.created_at >= func.now() - ago).label(name) for name, ago in lately.items()]
        each = select(jobs.c.lane, jobs.c.status, func.count().label("jobs"), *came)
        rows = self._connection.execute(each.group_by(jobs.c.lane, jobs.c.status).order_by(jobs.c.lane, jobs.c.status))
        return [JobCount.model_validate(row) for row in rows]

    def _waiting(self, lane: Lane) -> Waiting:
        of_lane = (jobs.c.lane == lane.value, jobs.c.status == JobStatus.queued.value)
        counted = select(jobs.c.id).where(*of_lane).limit(_MOST_COUNTED).subquery()
        oldest = select(func.min(jobs.c.created_at)).where(*of_lane).scalar_subquery()
        age = func.coalesce(extract("epoch", func.now() - oldest), 0)
        row = self._connection.execute(select(func.count().label("jobs"), age.label("oldest_s")).select_from(counted))
        return Waiting(lane=lane, **row.mappings().one())

    # workers

    def worker_seen(
        self, worker_id: UUID, bundle_id: str, *, host: str | None = None, device: str | None = None
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
        """How many workers gave a sign of life lately."""
        count = select(func.count()).where(workers.c.seen_at >= func.now() - seen_within)
        return self._connection.execute(count).scalar_one()

    def fleet(self) -> list[Worker]:
        """Every worker that was not forgotten yet, the one that was seen last first."""
        unseen = extract("epoch", func.now() - workers.c.seen_at).label("unseen_s")
        rows = self._connection.execute(select(workers, unseen).order_by(workers.c.seen_at.desc(), workers.c.id))
        return [Worker.model_validate(row) for row in rows]


def _held(job: Job) -> tuple[ColumnElement[bool], ...]:
    return (jobs.c.id == job.id, jobs.c.claims == job.claims, jobs.c.status.in_(OPEN))


def _heard(row: RowMapping) -> str:
    return "" if row["segments"] is None else Transcript.model_validate(dict(row)).text


def _exhausted(job: Job, last_error: str | None) -> AttemptsExhausted:
    last = "" if last_error is None else f"; the last error was: {last_error}"
    return AttemptsExhausted(f"the turn was tried {job.attempts} times and never finished{last}")
