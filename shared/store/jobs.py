"""Jobs, their leases, the outbox, and the workers that are alive.

A claim is a job's id and its number of attempts: whoever claims later voids it, so that a worker thought dead that
comes back can no longer write. The database's clock alone decides, as the workers' clocks may differ.
"""

from collections.abc import Collection, Sequence
from datetime import timedelta
from uuid import UUID

from sqlalchemy import ColumnElement, Connection, delete, exists, func, insert, literal, select, update
from sqlalchemy.dialects.postgresql import insert as upsert

from shared.domain.conversation import Recording, Turn
from shared.domain.emotion import Reading
from shared.domain.history import Work
from shared.domain.job import OPEN, Job, JobStatus, Message
from shared.domain.transcript import Transcript
from shared.errors import AttemptsExhausted, TenorError
from shared.store.tables import jobs, outbox, predictions, recordings, sessions, transcripts, turns, workers


class Jobs:
    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    # the way in

    def enqueue(self, turn_id: UUID, *, task: str, queue: str, lease: timedelta) -> tuple[Job, Message]:
        """A job for a turn, and the message to send once this transaction is committed."""
        row = self._connection.execute(
            insert(jobs).values(turn_id=turn_id, lease_until=func.now() + lease).returning(jobs)
        ).one()
        message = self._connection.execute(
            insert(outbox).values(job_id=row.id, task=task, queue=queue).returning(outbox)
        ).one()
        return Job.model_validate(row), Message.model_validate(message)

    def unsent(self, older_than: timedelta, limit: int = 500) -> Sequence[Message]:
        """Messages that nobody has sent. They stay locked until this transaction ends."""
        rows = self._connection.execute(
            select(outbox)
            .where(outbox.c.created_at <= func.now() - older_than)
            .order_by(outbox.c.created_at)
            .with_for_update(skip_locked=True)
            .limit(limit)
        )
        return [Message.model_validate(row) for row in rows]

    def sent(self, messages: Collection[Message]) -> None:
        """The broker has them."""
        self._connection.execute(delete(outbox).where(outbox.c.id.in_([message.id for message in messages])))

    # a worker's way

    def claim(self, job_id: UUID, lease: timedelta) -> Work | None:
        """Take a job up, or None where it has ended, is gone, or another worker holds it."""
        free = (jobs.c.status == JobStatus.queued.value) | (
            (jobs.c.status == JobStatus.running.value) & (jobs.c.lease_until < func.now())
        )
        row = self._connection.execute(
            update(jobs)
            .where(jobs.c.id == job_id, free)
            .values(
                status=JobStatus.running.value,
                attempts=jobs.c.attempts + 1,
                lease_until=func.now() + lease,
                updated_at=func.now(),
            )
            .returning(jobs)
        ).one_or_none()
        if row is None:
            return None
        turn = self._connection.execute(select(turns).where(turns.c.id == row.turn_id)).one()
        hint = select(sessions.c.language_hint).where(sessions.c.id == turn.session_id)
        recording = self._connection.execute(
            select(recordings).where(recordings.c.id == turn.recording_id)
        ).one_or_none()
        return Work(
            job=Job.model_validate(row),
            turn=Turn.model_validate(turn),
            recording=None if recording is None else Recording.model_validate(recording),
            language_hint=self._connection.execute(hint).scalar_one(),
        )

    def renew(self, claims: Collection[Job], lease: timedelta) -> None:
        """A sign of life for the jobs that a worker is at."""
        for job in claims:
            self._connection.execute(
                update(jobs).where(*_held(job)).values(lease_until=func.now() + lease, updated_at=func.now())
            )

    def succeed(self, job: Job, bundle_id: str, transcript: Transcript | None, reading: Reading) -> bool:
        """Write a job's result. False where the claim was void by then, and nothing was written."""
        if not self._end(job, JobStatus.succeeded):
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
        return True

    def fail(self, job: Job, error: TenorError) -> bool:
        """End a job without a result. False where the claim was void by then."""
        return self._end(job, JobStatus.failed, error)

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

    # the sweeper's way

    def sweep(self, *, task: str, queue: str, lease: timedelta, max_attempts: int, limit: int = 500) -> int:
        """Give every job whose lease ran out another message, or an end where it has no attempt left.

        A queued job waits twice as long each time before its message counts as lost again, so that a long queue is
        not made longer by the sweeper.
        """
        rows = self._connection.execute(
            select(jobs)
            .where(jobs.c.status.in_(OPEN), jobs.c.lease_until < func.now())
            .order_by(jobs.c.lease_until)
            .with_for_update(skip_locked=True)
            .limit(limit)
        ).all()
        overdue = [Job.model_validate(row) for row in rows]
        spent = [job for job in overdue if job.attempts >= max_attempts]
        for job in spent:
            self._end(job, JobStatus.failed, AttemptsExhausted(_spent(job)))
        lost = [job.id for job in overdue if job.attempts < max_attempts]
        if lost:
            self._resend(lost, task, queue, lease)
        return len(overdue)

    def _resend(self, job_ids: list[UUID], task: str, queue: str, lease: timedelta) -> None:
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
        waiting = exists().where(outbox.c.job_id == jobs.c.id)
        again = select(jobs.c.id, literal(task), literal(queue)).where(jobs.c.id.in_(job_ids), ~waiting)
        self._connection.execute(insert(outbox).from_select(["job_id", "task", "queue"], again))

    def _end(self, job: Job, status: JobStatus, error: TenorError | None = None) -> bool:
        row = self._connection.execute(
            update(jobs)
            .where(*_held(job))
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
        # Sound that nobody consented to keep has served its purpose.
        used = select(turns.c.recording_id).where(turns.c.id == row.turn_id)
        self._connection.execute(
            update(recordings)
            .where(recordings.c.id.in_(used), recordings.c.expires_at.is_(None))
            .values(expires_at=func.now())
        )
        return True

    # workers

    def worker_seen(self, worker_id: UUID, bundle_id: str) -> None:
        """Announce a worker, or renew its sign of life."""
        self._connection.execute(
            upsert(workers)
            .values(id=worker_id, bundle_id=bundle_id)
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


def _held(job: Job) -> tuple[ColumnElement[bool], ...]:
    return (jobs.c.id == job.id, jobs.c.attempts == job.attempts, jobs.c.status.in_(OPEN))


def _spent(job: Job) -> str:
    last = "" if job.error_message is None else f"; the last error was: {job.error_message}"
    return f"the turn was tried {job.attempts} times and never finished{last}"
