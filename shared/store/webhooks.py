"""Webhooks, and what they have still to be told.

An event is written in the statement that ends its turn's job, so that none is lost; see `telling`. `Deliveries` says
which are due.

A webhook whose `paused_until` is set is sent nothing but, once that time has come, one event as a trial. All workers
share this state, and a worker that starts again finds it.
"""

import base64
import secrets
from datetime import timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import (
    CTE,
    JSON,
    Connection,
    ScalarSelect,
    delete,
    func,
    insert,
    literal,
    select,
    true,
    update,
)

from shared.domain.job import Lane, RetryPolicy
from shared.domain.webhook import NewWebhook, Webhook
from shared.errors import TooManyWebhooks, WebhookNotFound
from shared.store.tables import deliveries, jobs, outbox, sessions, tenants, turns, webhooks

MOST = 10
"""So many webhooks a tenant may have."""


class Webhooks:
    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def create(self, tenant_id: UUID, url: str) -> NewWebhook:
        """Raises TooManyWebhooks where the tenant has as many as it may."""
        # Held, so that of two who create one at once only one takes the last place.
        tenant = select(tenants.c.id).where(tenants.c.id == tenant_id).with_for_update(key_share=True)
        self._connection.execute(tenant)
        count = select(func.count()).where(webhooks.c.tenant_id == tenant_id)
        if self._connection.execute(count).scalar_one() >= MOST:
            raise TooManyWebhooks(f"there are {MOST} webhooks already, and may be no more: delete one first")
        secret = f"whsec_{base64.b64encode(secrets.token_bytes(32)).decode()}"
        new = insert(webhooks).values(tenant_id=tenant_id, url=url, secret=secret).returning(webhooks)
        return NewWebhook.model_validate(dict(self._connection.execute(new).mappings().one()))

    def all(self, tenant_id: UUID) -> list[Webhook]:
        """A tenant's webhooks, oldest first."""
        each = select(webhooks, _newest_undelivered().label("undelivered")).where(webhooks.c.tenant_id == tenant_id)
        rows = self._connection.execute(each.order_by(webhooks.c.created_at, webhooks.c.id)).mappings()
        return [Webhook.model_validate(dict(row)) for row in rows]

    def delete(self, tenant_id: UUID, webhook_id: UUID) -> None:
        """Delete a webhook, with all that it has still to be told.

        Raises:
            WebhookNotFound: the tenant has no such webhook.
        """
        its = delete(webhooks).where(webhooks.c.id == webhook_id, webhooks.c.tenant_id == tenant_id)
        if self._connection.execute(its.returning(webhooks.c.id)).one_or_none() is None:
            raise WebhookNotFound(f"there is no webhook {webhook_id}")

    def disable(self, webhook_id: UUID, reason: str) -> None:
        """Tell a webhook nothing any more."""
        # No longer paused, so that what is left for it ends soon.
        values = {"disabled_at": func.now(), "disabled_reason": reason, "paused_until": None}
        self._connection.execute(update(webhooks).where(webhooks.c.id == webhook_id).values(values))

    def record_answer(self, webhook_id: UUID) -> None:
        """End the pause and the count of failures of a webhook whose receiver answered."""
        failing = (webhooks.c.consecutive_failures > 0) | webhooks.c.paused_until.is_not(None)
        values = {"consecutive_failures": 0, "paused_until": None}
        self._connection.execute(update(webhooks).where(webhooks.c.id == webhook_id, failing).values(values))

    def record_failure(self, webhook_id: UUID, pauses: RetryPolicy, *, trial: bool) -> timedelta | None:
        """Count a failed attempt, and pause the webhook where it is one too many.

        The attempts that were under way when the pause began do not count; those that were the trial at its end
        make the next pause longer.

        Returns:
            How long the webhook is now paused; None where this attempt began no pause.
        """
        its = (webhooks.c.id == webhook_id, webhooks.c.disabled_at.is_(None))
        counts = webhooks.c.paused_until.is_(None) | literal(trial)
        counted = update(webhooks).where(*its, counts).values(consecutive_failures=webhooks.c.consecutive_failures + 1)
        row = self._connection.execute(counted.returning(webhooks.c.consecutive_failures)).one_or_none()
        if row is None or row.consecutive_failures < pauses.attempts:
            return None
        pause = pauses.pause(min(row.consecutive_failures - pauses.attempts + 1, 100))
        values = {"paused_until": func.now() + pause}
        self._connection.execute(update(webhooks).where(webhooks.c.id == webhook_id).values(values))
        return pause


def telling(ended: CTE) -> CTE:
    """Write a delivery of the event, and a job that makes it, for each webhook of the tenant whose turn has ended.

    Args:
        ended: the turn's job. With any other, nothing is written.

    Returns:
        The messages of the jobs.
    """
    # To wait for those who are deleting the turn or the webhook could be to wait for each other: they are left out.
    due = (
        select(webhooks.c.id, ended.c.turn_id, ended.c.status, ended.c.error_code)
        .select_from(ended.join(turns, turns.c.id == ended.c.turn_id))
        .join(sessions, sessions.c.id == turns.c.session_id)
        .join(webhooks, webhooks.c.tenant_id == sessions.c.tenant_id)
        .where(webhooks.c.disabled_at.is_(None))
        .with_for_update(read=True, key_share=True, skip_locked=True, of=(turns, webhooks))
    )
    delivered = insert(deliveries).from_select(["webhook_id", "turn_id", "turn_status", "turn_error_code"], due)
    told = delivered.returning(deliveries.c.id, deliveries.c.webhook_id).cte("told")
    lane = literal(Lane.delivery.value)
    work = select(told.c.id, told.c.webhook_id, lane, func.now(), ended.c.correlation_id, ended.c.traceparent)
    columns = ["delivery_id", "webhook_id", "lane", "lease_until", "correlation_id", "traceparent"]
    new = insert(jobs).from_select(columns, work.select_from(told.join(ended, true())))
    queued = new.returning(jobs.c.id, jobs.c.lane).cte("queued")
    each = select(queued.c.id, literal(Lane.delivery.task), queued.c.lane)
    return insert(outbox).from_select(["job_id", "task", "queue"], each).returning(outbox).cte("written")


def _newest_undelivered() -> ScalarSelect[Any]:
    of_job = (jobs.c[name] for name in ("status", "attempts", "error_code", "error_message"))
    newest = (
        select(deliveries.c.turn_id, *of_job, deliveries.c.created_at)
        .join_from(deliveries, jobs, jobs.c.delivery_id == deliveries.c.id)
        .where(deliveries.c.webhook_id == webhooks.c.id)
        .order_by(deliveries.c.created_at.desc())
        .limit(1)
        .correlate(webhooks)
        .subquery()
    )
    return select(func.row_to_json(newest.table_valued(), type_=JSON)).scalar_subquery()
