"""Voice summaries, and the order in which a speaker's turns are read."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.add_column(
        "subjects",
        sa.Column(
            "turn_count",
            sa.Integer(),
            server_default=sa.text("0"),
            nullable=False,
            comment="of the turns in its scope",
        ),
    )
    # Turns from before have no summary, so they have no place among those that are read against one another.
    op.add_column(
        "turns",
        sa.Column(
            "scope_id",
            sa.Uuid(),
            nullable=True,
            comment="subject or session within which speaker and role name one voice; null: no voice",
        ),
    )
    op.add_column("turns", sa.Column("position", sa.Integer(), nullable=True, comment="counts the scope's turns"))
    op.create_unique_constraint(
        op.f("uq_turns_scope_id_speaker_role_position"), "turns", ["scope_id", "speaker", "role", "position"]
    )
    op.add_column("predictions", sa.Column("baseline_turns", sa.Integer(), server_default=sa.text("0"), nullable=False))
    op.create_table(
        "voice_summaries",
        sa.Column("turn_id", sa.Uuid(), nullable=False),
        sa.Column("bundle_id", sa.String(length=100), nullable=False),
        sa.Column("summary", sa.LargeBinary(), nullable=False, comment="float16, little-endian, in the bundle's shape"),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["turn_id"], ["turns.id"], name=op.f("fk_voice_summaries_turn_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("turn_id", "bundle_id", name=op.f("pk_voice_summaries")),
    )


def downgrade() -> None:
    op.drop_table("voice_summaries")
    op.drop_column("predictions", "baseline_turns")
    op.drop_constraint(op.f("uq_turns_scope_id_speaker_role_position"), "turns", type_="unique")
    op.drop_column("turns", "position")
    op.drop_column("turns", "scope_id")
    op.drop_column("subjects", "turn_count")
