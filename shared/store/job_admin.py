"""Jobs as an operator sees them: find, requeue, drop and count."""

from collections.abc import Collection, Sequence
from datetime import timedelta
from uuid import UUID

from sqlalchemy import Connection, extract, func, select, update

from shared.domain.job import Job, JobCount, JobStatus, Lane, ListedJob, Message, QueueDepth
from shared.errors import JobDropped, WrongJobStatus
from shared.store.job_ending import end_job, lock_session_of
from shared.store.jobs import queue_values
from shared.store.outbox import Outbox
from shared.store.tables import deliveries, jobs, recordings, sessions, tenants, turns

_MOST_COUNTED = 1_000_000


class JobAdmin:
    """Reads and writes jobs on behalf of an operator."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def find(
        self,
        *,
        ids: Collection[UUID] | None = None,
        statuses: Collection[JobStatus] | None = None,
        tenant: str | None = None,
        limit: int | None = None,
    ) -> list[ListedJob]:
        """Return the jobs with one of the ids, one of the statuses and this tenant, the last changed first.

        An argument that is None does not restrict the jobs.
        """
        turn_id = func.coalesce(jobs.c.turn_id, deliveries.c.turn_id)
        session_id = func.coalesce(turns.c.session_id, recordings.c.session_id)
        joined = jobs.outerjoin(deliveries, deliveries.c.id == jobs.c.delivery_id)
        joined = joined.outerjoin(turns, turns.c.id == turn_id)
        joined = joined.outerjoin(recordings, recordings.c.id == jobs.c.recording_id)
        joined = joined.outerjoin(sessions, sessions.c.id == session_id).outerjoin(tenants)
        columns = (jobs, tenants.c.name.label("tenant"), sessions.c.id.label("session_id"))
        found = select(*columns).select_from(joined).limit(limit)
        if ids is not None:
            found = found.where(jobs.c.id.in_(ids))
        if statuses is not None:
            found = found.where(jobs.c.status.in_(statuses))
        if tenant is not None:
            found = found.where(tenants.c.name == tenant)
        rows = self._connection.execute(found.order_by(jobs.c.updated_at.desc(), jobs.c.id))
        return [ListedJob.model_validate(row) for row in rows]

    def requeue(self, job: Job, *, lease: timedelta) -> None:
        """Queue a job that is in quarantine, with all its attempts left. The sweeper publishes it.

        Raises:
            WrongJobStatus: it is not in quarantine.
        """
        fresh = {"attempts": 0, "sends": 0, "error_code": None, "error_message": None}
        row = self._connection.execute(
            update(jobs)
            .where(jobs.c.id == job.id, jobs.c.status == JobStatus.quarantined.value)
            .values(**queue_values(lease), **fresh)
            .returning(jobs.c.id)
        ).one_or_none()
        if row is None:
            raise WrongJobStatus(f"job {job.id} is not quarantined: only a quarantined job can be requeued")
        Outbox(self._connection).insert_missing([job.id])

    def drop(self, job: Job, *, lease: timedelta) -> Sequence[Message]:
        """End a job without a result, whether it is in quarantine or has not ended. Its turn is kept.

        Returns:
            The messages to publish after the commit.

        Raises:
            WrongJobStatus: it has succeeded or failed.
        """
        lock_session_of(self._connection, job)
        reason = "" if job.error_message is None else f"; before that: {job.error_message}"
        dropped = JobDropped(f"an operator gave it up after {job.attempts} attempts{reason}")
        messages = end_job(self._connection, job, JobStatus.failed, dropped, lease=lease, by_operator=True)
        if messages is None:
            raise WrongJobStatus(f"job {job.id} succeeded or failed before: there is nothing to drop")
        return messages

    def count_running(self) -> int:
        """Return how many jobs are claimed by workers."""
        number = select(func.count()).where(jobs.c.status == JobStatus.running.value)
        return self._connection.execute(number).scalar_one()

    def queue_depths(self) -> list[QueueDepth]:
        """Return how many jobs are queued in each lane, counted up to a million, and the age of the oldest.

        The cost is bounded, however many jobs there are.
        """
        return [self._queue_depth(lane) for lane in Lane]

    def counts(self) -> list[JobCount]:
        """Return how many jobs there are by lane and status. This reads all jobs."""
        recent = {"last_minute": timedelta(minutes=1), "last_hour": timedelta(hours=1)}
        added = [func.count().filter(jobs.c.created_at >= func.now() - ago).label(name) for name, ago in recent.items()]
        each = select(jobs.c.lane, jobs.c.status, func.count().label("jobs"), *added)
        rows = self._connection.execute(each.group_by(jobs.c.lane, jobs.c.status).order_by(jobs.c.lane, jobs.c.status))
        return [JobCount.model_validate(row) for row in rows]

    def _queue_depth(self, lane: Lane) -> QueueDepth:
        queued = (jobs.c.lane == lane.value, jobs.c.status == JobStatus.queued.value)
        counted = select(jobs.c.id).where(*queued).limit(_MOST_COUNTED).subquery()
        oldest = select(func.min(jobs.c.created_at)).where(*queued).scalar_subquery()
        age = func.coalesce(extract("epoch", func.now() - oldest), 0)
        row = self._connection.execute(select(func.count().label("jobs"), age.label("oldest_s")).select_from(counted))
        return QueueDepth(lane=lane, **row.mappings().one())
