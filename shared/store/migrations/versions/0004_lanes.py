"""A job's lane."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.add_column(
        "jobs",
        sa.Column(
            "lane",
            sa.String(length=20),
            server_default="interactive",
            nullable=False,
            comment="also its queue's name",
        ),
    )


def downgrade() -> None:
    op.drop_column("jobs", "lane")
