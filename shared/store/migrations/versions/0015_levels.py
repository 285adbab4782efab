"""The level of the audio of predictions."""

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"


def upgrade() -> None:
    comment = "RMS level of the loudest 0.25 s of the audio; null without audio"
    op.add_column("predictions", sa.Column("level_dbfs", sa.Float(), comment=comment))


def downgrade() -> None:
    op.drop_column("predictions", "level_dbfs")
