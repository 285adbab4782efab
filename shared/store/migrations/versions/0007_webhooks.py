"""Webhooks, and what they are told."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def _id() -> sa.Column[object]:
    return sa.Column("id", sa.Uuid(), server_default=sa.text("gen_random_uuid()"), nullable=False)


def _of(table: str, column: str, parent: str) -> tuple[sa.Column[object], sa.ForeignKeyConstraint]:
    key = sa.ForeignKeyConstraint([column], [f"{parent}.id"], name=op.f(f"fk_{table}_{column}"), ondelete="CASCADE")
    return sa.Column(column, sa.Uuid(), nullable=False), key


def _created_at() -> sa.Column[object]:
    return sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False)


def upgrade() -> None:
    op.create_table(
        "webhooks",
        _id(),
        *_of("webhooks", "tenant_id", "tenants"),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("secret", sa.String(length=100), nullable=False, comment="in clear, as events are signed with it"),
        _created_at(),
        sa.Column("disabled_at", sa.DateTime(timezone=True)),
        sa.Column("disabled_reason", sa.Text()),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_webhooks")),
    )
    op.create_index(op.f("ix_webhooks_tenant_id"), "webhooks", ["tenant_id"])
    op.create_table(
        "deliveries",
        _id(),
        *_of("deliveries", "webhook_id", "webhooks"),
        *_of("deliveries", "turn_id", "turns"),
        sa.Column("turn_status", sa.String(length=20), nullable=False, comment="how the turn ended"),
        sa.Column("turn_error_code", sa.String(length=50)),
        _created_at(),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_deliveries")),
    )
    op.create_index(op.f("ix_deliveries_webhook_id_created_at"), "deliveries", ["webhook_id", "created_at"])
    op.create_index(op.f("ix_deliveries_turn_id"), "deliveries", ["turn_id"])
    op.add_column("jobs", sa.Column("delivery_id", sa.Uuid(), comment="of a job that makes one"))
    op.create_foreign_key(
        op.f("fk_jobs_delivery_id"), "jobs", "deliveries", ["delivery_id"], ["id"], ondelete="CASCADE"
    )
    named = sa.text("delivery_id IS NOT NULL")
    op.create_index(op.f("ix_jobs_delivery_id"), "jobs", ["delivery_id"], postgresql_where=named)


def downgrade() -> None:
    op.execute("DELETE FROM jobs WHERE delivery_id IS NOT NULL")
    op.drop_column("jobs", "delivery_id")
    op.drop_table("deliveries")
    op.drop_table("webhooks")
