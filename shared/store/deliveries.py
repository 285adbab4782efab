"""Deliveries: those that are due are claimed, and those that were received are deleted.

A delivery is due once its job's `lease_until` has passed: at once when it is new, after a pause when an attempt failed,
and when the worker that claimed it counts as dead. Workers look for due deliveries, so no message is needed.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from datetime import timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import (
    CTE,
    Connection,
    Integer,
    Row,
    Select,
    Uuid,
    case,
    delete,
    exists,
    func,
    literal,
    select,
    text,
    true,
    update,
)
from sqlalchemy.dialects.postgresql import ARRAY

from shared.domain.job import Job, JobStatus
from shared.domain.webhook import Delivery, EndedTurn, Event
from shared.store.jobs import claim_values
from shared.store.tables import OPEN_JOB, deliveries, jobs, sessions, turns, webhooks

# The text of the index of due deliveries, so that the planner uses that index.
_OPEN = text(f"jobs.{OPEN_JOB} AND jobs.lane = 'delivery'")
_DUE = (_OPEN, jobs.c.lease_until <= func.now())

_CLAIM_ROUNDS = 3
"""How often a claim chooses other jobs instead of those that other workers have locked or claimed meanwhile."""


class Deliveries:
    """Claims and ends deliveries."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def claim(
        self, limit: int, *, per_webhook: int, in_flight: Mapping[UUID, int], lease: timedelta, trial: timedelta
    ) -> list[Delivery]:
        """Claim deliveries that are due, for each webhook those that were due first.

        All webhooks with due deliveries get an equal share, however many deliveries one of them has. Of a webhook whose
        pause has ended, one worker claims one delivery, as a trial.

        Args:
            limit: how many at most.
            per_webhook: how many this worker may have in flight for one webhook.
            in_flight: how many it has in flight now, by webhook.
            lease: for how long each is claimed.
            trial: how long other workers leave a webhook alone while its trial is in flight.
        """
        trials = self._begin_trials(trial)
        left = trials  # One delivery of each of these webhooks is claimed.
        claimed, missed, counts = dict[UUID | None, Job](), list[UUID](), Counter(in_flight)
        for _ in range(_CLAIM_ROUNDS):
            chosen = self._connection.execute(_chosen(limit - len(claimed), per_webhook, counts, left, missed))
            ids = set(chosen.scalars())
            rows = self._claim(ids, lease)
            claimed.update((row.delivery_id, Job.model_validate(row)) for row in rows)
            counts.update(row.webhook_id for row in rows)
            left = [trial_id for trial_id in left if trial_id not in {row.webhook_id for row in rows}]
            lost = ids - {row.id for row in rows}
            missed.extend(lost)
            if not lost:
                break
        return self._read(claimed, trials) if claimed else []

    def _claim(self, ids: Collection[UUID], lease: timedelta) -> Sequence[Row[Any]]:
        """Claim these jobs, without those that another worker has locked or claimed meanwhile."""
        locked = select(jobs.c.id).where(jobs.c.id == func.any(literal(list(ids), ARRAY(Uuid))), *_DUE)
        rows = self._connection.execute(
            update(jobs)
            .where(jobs.c.id.in_(locked.with_for_update(skip_locked=True)))
            .values(claim_values(lease))
            .returning(jobs)
        )
        return rows.all()

    def succeed(self, job: Job) -> bool:
        """Delete a delivery that was received, and its job.

        Returns:
            False where the claim was void, or another transaction is deleting the delivery.
        """
        ours = exists().where(jobs.c.delivery_id == deliveries.c.id, jobs.c.id == job.id, jobs.c.claims == job.claims)
        unlocked = select(deliveries.c.id).where(deliveries.c.id == job.delivery_id, ours)
        unlocked = unlocked.with_for_update(skip_locked=True, of=deliveries)
        deleted = delete(deliveries).where(deliveries.c.id.in_(unlocked)).returning(deliveries.c.id)
        return self._connection.execute(deleted).one_or_none() is not None

    def overdue(self, window: timedelta, limit: int = 500) -> list[Job]:
        """Return the jobs of paused webhooks that have been due for longer than `window`.

        They stay locked until this transaction ends.
        """
        overdue = (jobs.c.webhook_id == webhooks.c.id, jobs.c.lease_until < func.now() - window)
        paused = (webhooks.c.paused_until.is_not(None), webhooks.c.disabled_at.is_(None))
        rows = self._connection.execute(
            select(jobs)
            .join_from(webhooks, jobs, true())
            .where(*_DUE, *overdue, *paused, jobs.c.status == JobStatus.queued.value)
            .with_for_update(skip_locked=True, of=jobs)
            .limit(limit)
        )
        return [Job.model_validate(row) for row in rows]

    def _begin_trials(self, trial: timedelta) -> list[UUID]:
        """Begin the trials of the webhooks whose pause has ended and which have due deliveries; their ids.

        Other workers leave these webhooks alone for the time `trial`.
        """
        due = exists().where(*_DUE, jobs.c.webhook_id == webhooks.c.id).correlate(webhooks)
        ended = select(webhooks.c.id).where(webhooks.c.paused_until <= func.now(), due)
        # FOR NO KEY UPDATE: under a stronger lock `insert_deliveries`, which skips locked webhooks, would lose events.
        ended = ended.with_for_update(key_share=True, skip_locked=True, of=webhooks)
        begun = update(webhooks).where(webhooks.c.id.in_(ended)).values(paused_until=func.now() + trial)
        return list(self._connection.execute(begun.returning(webhooks.c.id)).scalars())

    def _read(self, claimed: Mapping[UUID | None, Job], trials: list[UUID]) -> list[Delivery]:
        rows = self._connection.execute(
            select(deliveries, webhooks.c.url, webhooks.c.secret, webhooks.c.disabled_at)
            .add_columns(turns.c.session_id, turns.c.index, sessions.c.external_ref)
            .join_from(deliveries, webhooks)
            .join(turns, turns.c.id == deliveries.c.turn_id)
            .join(sessions, sessions.c.id == turns.c.session_id)
            .where(deliveries.c.id.in_(claimed))
        ).mappings()
        found = list[Delivery]()
        for row in rows:
            turn = EndedTurn(**row, status=row["turn_status"], error_code=row["turn_error_code"])
            event = Event(type=f"turn.{turn.status.value}", timestamp=row["created_at"], data=turn)
            trial = row["webhook_id"] in trials
            found.append(Delivery(**row, job=claimed[row["id"]], trial=trial, event=event))
        return found


def _chosen(
    limit: int, per_webhook: int, in_flight: Mapping[UUID, int], trials: list[UUID], missed: list[UUID]
) -> Select[Any]:
    """Select the ids of the jobs to claim, without a lock: the first of each webhook, then the second, and so on."""
    busy_ids, busy_counts = literal(list(in_flight), ARRAY(Uuid)), literal(list(in_flight.values()), ARRAY(Integer))
    busy = func.unnest(busy_ids, busy_counts).table_valued("id", "number", name="busy").render_derived()
    is_trial = webhooks.c.id == func.any(literal(trials, ARRAY(Uuid)))
    due = (
        select(jobs.c.id, jobs.c.lease_until)
        .where(*_DUE, jobs.c.webhook_id == webhooks.c.id, jobs.c.id != func.all(literal(missed, ARRAY(Uuid))))
        .order_by(jobs.c.lease_until)
        .limit(per_webhook)
        .correlate(webhooks)
        .lateral("due")
    )
    before = case((is_trial, 0), else_=func.coalesce(busy.c.number, 0))
    number = func.row_number().over(partition_by=webhooks.c.id, order_by=due.c.lease_until)
    waiting = _waiting()
    ranked = (
        select(due.c.id, due.c.lease_until)
        .add_columns(case((is_trial, 1), else_=per_webhook).label("room"))
        .add_columns((before + number).label("rank"))
        .select_from(waiting.join(webhooks, webhooks.c.id == waiting.c.id).join(due, true()))
        .outerjoin(busy, busy.c.id == webhooks.c.id)
        .where(webhooks.c.paused_until.is_(None) | is_trial)
        .subquery("ranked")
    )
    first = select(ranked.c.id).where(ranked.c.rank <= ranked.c.room).order_by(ranked.c.rank, ranked.c.lease_until)
    return first.limit(limit)


def _waiting() -> CTE:
    """Select the ids of the webhooks with deliveries, by one step in the index for each, however many it has."""
    first = select(jobs.c.webhook_id.label("id")).where(_OPEN, jobs.c.webhook_id.is_not(None))
    waiting = first.order_by(jobs.c.webhook_id).limit(1).cte("waiting", recursive=True)
    following = select(jobs.c.webhook_id).where(_OPEN, jobs.c.webhook_id > waiting.c.id).correlate(waiting)
    following = following.order_by(jobs.c.webhook_id).limit(1).scalar_subquery()
    return waiting.union_all(select(following).where(waiting.c.id.is_not(None)))
