"""Webhooks: created, listed, deleted, disabled and paused; and the deliveries of events to them, as they are inserted.

The statement that ends a turn's job also inserts the deliveries, so that no event is lost; see `insert_deliveries`. The
`Deliveries` that are due are claimed in `shared.store.deliveries`.

A webhook whose `paused_until` is set is sent nothing until that time, and then one event as a trial. All workers share
this state, also across their restarts.
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
from shared.store.outbox import insert_messages
from shared.store.tables import deliveries, jobs, outbox, sessions, tenants, turns, webhooks

MAX_WEBHOOKS = 10
"""How many webhooks a tenant may have."""


class Webhooks:
    """Reads and writes webhooks."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def create(self, tenant_id: UUID, url: str) -> NewWebhook:
        """Create a webhook with a new secret, and return it.

        Raises:
            TooManyWebhooks: the tenant has as many as it may have.
        """
        # The tenant is locked, so that of two transactions that create a webhook at once only one takes the last place.
        tenant = select(tenants.c.id).where(tenants.c.id == tenant_id).with_for_update(key_share=True)
        self._connection.execute(tenant)
        count = select(func.count()).where(webhooks.c.tenant_id == tenant_id)
        if self._connection.execute(count).scalar_one() >= MAX_WEBHOOKS:
            raise TooManyWebhooks(f"there are {MAX_WEBHOOKS} webhooks, and there may be no more: delete one first")
        secret = f"whsec_{base64.b64encode(secrets.token_bytes(32)).decode()}"
        new = insert(webhooks).values(tenant_id=tenant_id, url=url, secret=secret).returning(webhooks)
        return NewWebhook.model_validate(dict(self._connection.execute(new).mappings().one()))

    def all(self, tenant_id: UUID) -> list[Webhook]:
        """Return a tenant's webhooks, oldest first."""
        each = select(webhooks, _newest_undelivered().label("undelivered")).where(webhooks.c.tenant_id == tenant_id)
        rows = self._connection.execute(each.order_by(webhooks.c.created_at, webhooks.c.id)).mappings()
        return [Webhook.model_validate(dict(row)) for row in rows]

    def delete(self, tenant_id: UUID, webhook_id: UUID) -> None:
        """Delete a webhook and its deliveries.

        Raises:
            WebhookNotFound: the tenant has no such webhook.
        """
        its = delete(webhooks).where(webhooks.c.id == webhook_id, webhooks.c.tenant_id == tenant_id)
        if self._connection.execute(its.returning(webhooks.c.id)).one_or_none() is None:
            raise WebhookNotFound(f"there is no webhook {webhook_id}")

    def disable(self, webhook_id: UUID, reason: str) -> None:
        """Send a webhook no more events."""
        # Its pause ends, so that its deliveries are claimed, and fail, soon.
        values = {"disabled_at": func.now(), "disabled_reason": reason, "paused_until": None}
        self._connection.execute(update(webhooks).where(webhooks.c.id == webhook_id).values(values))

    def record_answer(self, webhook_id: UUID) -> None:
        """Reset the failure count of a webhook whose receiver answered, and end its pause."""
        failing = (webhooks.c.consecutive_failures > 0) | webhooks.c.paused_until.is_not(None)
        values = {"consecutive_failures": 0, "paused_until": None}
        self._connection.execute(update(webhooks).where(webhooks.c.id == webhook_id, failing).values(values))

    def record_failure(self, webhook_id: UUID, pauses: RetryPolicy, *, trial: bool) -> timedelta | None:
        """Count a failed attempt, and pause the webhook if it has failed too often.

        Attempts that were in flight when the pause began do not count. A failed trial at the end of a pause begins a
        longer one.

        Args:
            pauses: after how many failures the webhook is paused, and for how long.

        Returns:
            How long the webhook is paused from now; None where this attempt began no pause.
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


def insert_deliveries(ended: CTE) -> CTE:
    """Return the CTE that inserts a delivery, and its job and message, for each webhook of an ended turn's tenant.

    Args:
        ended: the ended job. Nothing is inserted where it is not a turn's.

    Returns:
        The inserted rows of the outbox.
    """
    # Turns and webhooks that another transaction is deleting are skipped: to wait for it could be a deadlock.
    due = (
        select(webhooks.c.id, ended.c.turn_id, ended.c.status, ended.c.error_code)
        .select_from(ended.join(turns, turns.c.id == ended.c.turn_id))
        .join(sessions, sessions.c.id == turns.c.session_id)
        .join(webhooks, webhooks.c.tenant_id == sessions.c.tenant_id)
        .where(webhooks.c.disabled_at.is_(None))
        .with_for_update(read=True, key_share=True, skip_locked=True, of=(turns, webhooks))
    )
    inserted = insert(deliveries).from_select(["webhook_id", "turn_id", "turn_status", "turn_error_code"], due)
    delivery = inserted.returning(deliveries.c.id, deliveries.c.webhook_id).cte("delivery")
    lane, request = literal(Lane.delivery.value), (ended.c.correlation_id, ended.c.traceparent)
    values = select(delivery.c.id, delivery.c.webhook_id, lane, func.now(), *request)
    columns = ["delivery_id", "webhook_id", "lane", "lease_until", "correlation_id", "traceparent"]
    new_jobs = insert(jobs).from_select(columns, values.select_from(delivery.join(ended, true())))
    queued = new_jobs.returning(jobs.c.id, jobs.c.lane).cte("queued")
    return insert_messages(queued).returning(outbox).cte("message")


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
