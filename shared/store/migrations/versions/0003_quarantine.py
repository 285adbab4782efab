"""Quarantine, and claims that are told apart from the attempts that count."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.add_column(
        "jobs",
        sa.Column(
            "claims",
            sa.Integer(),
            server_default=sa.text("0"),
            nullable=False,
            comment="times a worker took it up",
        ),
    )
    op.alter_column("jobs", "attempts", comment="claims that count")
    op.execute("UPDATE jobs SET claims = attempts")
    op.create_index(
        op.f("ix_jobs_updated_at"), "jobs", ["updated_at"], postgresql_where=sa.text("status = 'quarantined'")
    )


def downgrade() -> None:
    op.execute("UPDATE jobs SET status = 'failed' WHERE status = 'quarantined'")
    op.drop_index(op.f("ix_jobs_updated_at"), table_name="jobs")
    op.alter_column("jobs", "attempts", comment="times a worker took it up")
    op.drop_column("jobs", "claims")
