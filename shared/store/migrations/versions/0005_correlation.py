"""Which request a job came with, what a worker is, and what waits in a lane found without reading all jobs."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    request = sa.Column("correlation_id", sa.String(length=128), comment="of the request that it came with")
    op.add_column("jobs", request)
    trace = sa.Column("traceparent", sa.String(length=55), comment="likewise, as W3C Trace Context puts it")
    op.add_column("jobs", trace)
    op.create_index(
        op.f("ix_jobs_lane_created_at"), "jobs", ["lane", "created_at"], postgresql_where=sa.text("status = 'queued'")
    )
    op.add_column("workers", sa.Column("host", sa.String(length=255)))
    op.add_column("workers", sa.Column("device", sa.String(length=100)))


def downgrade() -> None:
    op.drop_column("workers", "device")
    op.drop_column("workers", "host")
    op.drop_index(op.f("ix_jobs_lane_created_at"), table_name="jobs")
    op.drop_column("jobs", "traceparent")
    op.drop_column("jobs", "correlation_id")
