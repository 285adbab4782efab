"""Webhooks, and what they have still to be told.

An event is written in the statement that ends its turn's job, so that none is lost; see `telling`. A delivery that went
well leaves no trace.
"""

import base64
import secrets
from typing import Any
from uuid import UUID

from sqlalchemy import (
    CTE,
    JSON,
    Connection,
    Interval,
    ScalarSelect,
    bindparam,
    delete,
    func,
    insert,
    literal,
    select,
    true,
    update,
)

from shared.domain.job import Job, Lane
from shared.domain.webhook import Delivery, EndedTurn, Event, NewWebhook, Webhook
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
        values = {"disabled_at": func.now(), "disabled_reason": reason}
        self._connection.execute(update(webhooks).where(webhooks.c.id == webhook_id).values(values))

    def delivery(self, job: Job) -> Delivery:
        """What a job has to deliver."""
        row = self._connection.execute(
            select(deliveries, webhooks.c.url, webhooks.c.secret, webhooks.c.disabled_at)
            .add_columns(turns.c.session_id, turns.c.index, sessions.c.external_ref)
            .join_from(deliveries, webhooks)
            .join(turns, turns.c.id == deliveries.c.turn_id)
            .join(sessions, sessions.c.id == turns.c.session_id)
            .where(deliveries.c.id == job.delivery_id)
        ).mappings()
        its = dict(row.one())
        turn = EndedTurn(**its, status=its["turn_status"], error_code=its["turn_error_code"])
        event = Event(type=f"turn.{turn.status.value}", timestamp=its["created_at"], data=turn)
        return Delivery(**its, event=event)

    def delivered(self, job: Job) -> None:
        """Forget a delivery, and its job. One that somebody else is deleting is left to them."""
        free = select(deliveries.c.id).where(deliveries.c.id == job.delivery_id).with_for_update(skip_locked=True)
        self._connection.execute(delete(deliveries).where(deliveries.c.id.in_(free)))


def telling(ended: CTE) -> CTE:
    """Write a delivery of the event, and a job that makes it, for each webhook of the tenant whose turn has ended.

    Args:
        ended: the turn's job. With any other, nothing is written. The parameter `lease` is bound with the statement.

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
    told = delivered.returning(deliveries.c.id).cte("told")
    lane, lease_until = literal(Lane.delivery.value), func.now() + bindparam("lease", type_=Interval)
    work = select(told.c.id, lane, lease_until, ended.c.correlation_id, ended.c.traceparent)
    columns = ["delivery_id", "lane", "lease_until", "correlation_id", "traceparent"]
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
