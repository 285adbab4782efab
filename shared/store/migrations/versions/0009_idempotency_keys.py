"""Answers to requests with an Idempotency-Key."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"


def _goes_with(column: str, parent: str, *, nullable: bool) -> tuple[sa.Column[object], sa.ForeignKeyConstraint]:
    name = op.f(f"fk_idempotency_keys_{column}")
    key = sa.ForeignKeyConstraint([column], [f"{parent}.id"], name=name, ondelete="CASCADE")
    return sa.Column(column, sa.Uuid(), nullable=nullable), key


def upgrade() -> None:
    op.create_table(
        "idempotency_keys",
        *_goes_with("tenant_id", "tenants", nullable=False),
        sa.Column("key", sa.String(length=255), nullable=False),
        sa.Column("fingerprint", sa.String(length=64), nullable=False, comment="sha256 of the request, in hex"),
        sa.Column("status", sa.Integer(), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.Column("location", sa.String(length=500)),
        *_goes_with("session_id", "sessions", nullable=True),
        *_goes_with("webhook_id", "webhooks", nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", "key", name=op.f("pk_idempotency_keys")),
    )
    for column in ("session_id", "webhook_id"):
        named = sa.text(f"{column} IS NOT NULL")
        op.create_index(op.f(f"ix_idempotency_keys_{column}"), "idempotency_keys", [column], postgresql_where=named)
    op.create_index(op.f("ix_idempotency_keys_created_at"), "idempotency_keys", ["created_at"])


def downgrade() -> None:
    op.drop_table("idempotency_keys")
