"""Long recordings that are cut into turns."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    op.add_column("recordings", sa.Column("source_id", sa.Uuid(), comment="that it was cut from"))
    op.create_foreign_key(
        op.f("fk_recordings_source_id"), "recordings", "recordings", ["source_id"], ["id"], ondelete="CASCADE"
    )
    cut = sa.text("source_id IS NOT NULL")
    op.create_index(op.f("ix_recordings_source_id"), "recordings", ["source_id"], postgresql_where=cut)
    op.create_table(
        "calls",
        sa.Column("recording_id", sa.Uuid(), nullable=False),
        sa.Column(
            "voices",
            postgresql.JSONB(),
            nullable=False,
            comment="speaker and role of each channel, or of all together",
        ),
        sa.Column("lane", sa.String(length=20), nullable=False, comment="of its turns"),
        sa.Column("began_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(
            ["recording_id"], ["recordings.id"], name=op.f("fk_calls_recording_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("recording_id", name=op.f("pk_calls")),
    )


def downgrade() -> None:
    op.drop_table("calls")
    op.drop_column("recordings", "source_id")
