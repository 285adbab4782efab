"""Columns of languages that hold every BCP 47 tag."""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"

COLUMNS = (("sessions", "language_hint"), ("transcripts", "language"))


def upgrade() -> None:
    for table, column in COLUMNS:
        op.alter_column(table, column, existing_type=sa.String(10), type_=sa.String(35), existing_nullable=True)


def downgrade() -> None:
    for table, column in COLUMNS:
        op.execute(f"UPDATE {table} SET {column} = left({column}, 10)")
        op.alter_column(table, column, existing_type=sa.String(35), type_=sa.String(10), existing_nullable=True)
