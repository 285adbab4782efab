"""Warnings of predictions and recordings."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0013"
down_revision = "0012"

TABLES = ("predictions", "recordings")


def upgrade() -> None:
    # Processes of the version before insert rows without warnings, which the default fills in.
    empty = sa.text("'[]'::jsonb")
    for table in TABLES:
        op.add_column(table, sa.Column("warnings", postgresql.JSONB(), server_default=empty, nullable=False))


def downgrade() -> None:
    for table in TABLES:
        op.drop_column(table, "warnings")
