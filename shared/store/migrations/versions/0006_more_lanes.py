"""Jobs that are about a recording, or about nothing in particular, and workers that take no turns."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    op.alter_column("jobs", "turn_id", nullable=True, comment="of a job that analyses one")
    op.add_column("jobs", sa.Column("recording_id", sa.Uuid(), comment="of a job that cuts one"))
    op.create_foreign_key(
        op.f("fk_jobs_recording_id"), "jobs", "recordings", ["recording_id"], ["id"], ondelete="CASCADE"
    )
    named = sa.text("recording_id IS NOT NULL")
    op.create_index(op.f("ix_jobs_recording_id"), "jobs", ["recording_id"], postgresql_where=named)
    op.create_index("ix_jobs_maintenance", "jobs", ["status"], postgresql_where=sa.text("lane = 'maintenance'"))
    op.alter_column("workers", "bundle_id", nullable=True, comment="null: it takes no turns")


def downgrade() -> None:
    op.execute("DELETE FROM workers WHERE bundle_id IS NULL")
    op.alter_column("workers", "bundle_id", nullable=False, comment=None)
    op.drop_index("ix_jobs_maintenance", table_name="jobs")
    op.execute("DELETE FROM jobs WHERE turn_id IS NULL")
    op.drop_column("jobs", "recording_id")
    op.alter_column("jobs", "turn_id", nullable=False, comment=None)
