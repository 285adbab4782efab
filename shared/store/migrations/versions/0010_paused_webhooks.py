"""Webhooks that are paused, and an index of the deliveries that are due for each webhook."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"

OPEN = "status IN ('queued', 'running')"


def upgrade() -> None:
    # Jobs before webhooks, as a worker that ends a turn locks them in this order: else both could wait for each other.
    # The sweeper fills it in, also in jobs that processes of the version before still add.
    op.add_column("jobs", sa.Column("webhook_id", sa.Uuid(), comment="the delivery's"))
    deliveries, others = sa.text(f"{OPEN} AND lane = 'delivery'"), sa.text(f"{OPEN} AND lane <> 'delivery'")
    op.create_index(
        op.f("ix_jobs_webhook_id_lease_until"), "jobs", ["webhook_id", "lease_until"], postgresql_where=deliveries
    )
    # Workers of the version before still use ix_jobs_lease_until. A later release drops it.
    op.create_index(op.f("ix_jobs_lease_until_others"), "jobs", ["lease_until"], postgresql_where=others)
    op.add_column("webhooks", sa.Column("consecutive_failures", sa.Integer(), server_default="0", nullable=False))
    op.add_column("webhooks", sa.Column("paused_until", sa.DateTime(timezone=True), comment="null: it is not paused"))
    paused = sa.text("paused_until IS NOT NULL")
    op.create_index(op.f("ix_webhooks_paused_until"), "webhooks", ["paused_until"], postgresql_where=paused)


def downgrade() -> None:
    op.drop_index(op.f("ix_jobs_lease_until_others"), "jobs")
    op.drop_index(op.f("ix_jobs_webhook_id_lease_until"), "jobs")
    op.drop_column("jobs", "webhook_id")
    op.drop_column("webhooks", "paused_until")
    op.drop_column("webhooks", "consecutive_failures")
