"""Why a prediction names no emotion, and how many turns before were read with a turn's text."""

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"


def upgrade() -> None:
    op.add_column("predictions", sa.Column("context_turns", sa.Integer(), server_default=sa.text("0"), nullable=False))
    op.add_column(
        "predictions", sa.Column("reason", sa.String(30), comment="why no emotion is named; null where one is")
    )
    # Which of the other reasons an earlier prediction without scores had is not known.
    op.execute("UPDATE predictions SET reason = 'too_uncertain' WHERE abstained AND scores IS NOT NULL")
    for table, comment in (("sessions", "whether turns have a context"), ("turns", "whether it has a context")):
        op.add_column(
            table, sa.Column("context", sa.Boolean(), server_default=sa.text("true"), nullable=False, comment=comment)
        )


def downgrade() -> None:
    for table in ("turns", "sessions"):
        op.drop_column(table, "context")
    op.drop_column("predictions", "reason")
    op.drop_column("predictions", "context_turns")
