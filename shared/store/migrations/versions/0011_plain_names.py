"""Plain names: long recordings, audio summaries and pending deletions; comments that name what a column holds."""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"

TABLES = {"calls": "long_recordings", "voice_summaries": "audio_summaries", "doomed_blobs": "pending_deletions"}
COLUMNS = (
    ("recordings", "channels", "channel_count"),
    ("long_recordings", "voices", "channels"),
    ("long_recordings", "began_at", "started_at"),
    ("pending_deletions", "after", "delete_after"),
)
TASKS = {"delete_sound": "delete_audio", "ingest_recording": "split_recording"}
INDEXES = {
    "ix_doomed_blobs_after": "ix_pending_deletions_delete_after",
    "ix_jobs_lease_until_others": "ix_jobs_lease_until",
}
COMMENTS = (
    ("subjects", "turn_count", "of the turns in its scope", "number of the turns in its scope"),
    ("recordings", "source_id", "that it was cut from", "the long recording that it was cut from"),
    (
        "long_recordings",
        "channels",
        "speaker and role of each channel, or of all together",
        "speaker and role on each channel, or one for all together",
    ),
    ("long_recordings", "lane", "of its turns", "where its turns are queued"),
    (
        "turns",
        "scope_id",
        "subject or session within which speaker and role name one voice; null: no voice",
        "subject or session within which speaker and role identify one person; null: no baseline",
    ),
    ("turns", "position", "counts the scope's turns", "order of the turns within the scope"),
    (
        "predictions",
        "scores",
        "not JSONB, which forgets the order of the categories",
        "not JSONB, which does not keep the order of the categories",
    ),
    ("webhooks", "secret", "in clear, as events are signed with it", "in clear text, as events are signed with it"),
    ("webhooks", "paused_until", "null: it is not paused", "null: not paused"),
    ("jobs", "turn_id", "of a job that analyses one", "the turn that it analyses"),
    ("jobs", "recording_id", "of a job that cuts one", "the long recording that it splits"),
    ("jobs", "delivery_id", "of a job that makes one", "the delivery that it makes"),
    ("jobs", "webhook_id", "the delivery's", "the webhook of its delivery"),
    ("jobs", "lane", "also its queue's name", "also the name of its queue"),
    ("jobs", "attempts", "claims that count", "claims that count against the limit"),
    ("jobs", "claims", "times a worker took it up", "how often a worker claimed it"),
    ("jobs", "sends", "times its message was sent again", "how often its message was published again"),
    (
        "jobs",
        "traceparent",
        "likewise, as W3C Trace Context puts it",
        "W3C Trace Context of the request that it came with",
    ),
    ("pending_deletions", "delete_after", "when it may be deleted", None),
    ("workers", "bundle_id", "null: it takes no turns", "null: the worker takes no turns"),
)


def upgrade() -> None:
    # Only workers of a version before 0010 swept by this index.
    op.drop_index("ix_jobs_lease_until", "jobs")
    for old, new in TABLES.items():
        op.rename_table(old, new)
        _rename_constraints(new, old, new)
    for table, old, new in COLUMNS:
        op.alter_column(table, old, new_column_name=new)
    for old, new in INDEXES.items():
        op.execute(f"ALTER INDEX {old} RENAME TO {new}")
    for table, column, _, comment in COMMENTS:
        _comment(table, column, comment)
    _rename_consent("keep_voice_summary", "keep_audio_summary")
    _rename_tasks(TASKS)
    _rename_lane("ingest", "recording")
    # Jobs that were added by a version before 0010.
    op.execute(
        "UPDATE jobs SET webhook_id = deliveries.webhook_id FROM deliveries "
        "WHERE jobs.delivery_id = deliveries.id AND jobs.webhook_id IS NULL"
    )


def downgrade() -> None:
    _rename_lane("recording", "ingest")
    _rename_tasks({new: old for old, new in TASKS.items()})
    _rename_consent("keep_audio_summary", "keep_voice_summary")
    for table, column, comment, _ in COMMENTS:
        _comment(table, column, comment)
    for old, new in INDEXES.items():
        op.execute(f"ALTER INDEX {new} RENAME TO {old}")
    for table, old, new in COLUMNS:
        op.alter_column(table, new, new_column_name=old)
    for old, new in TABLES.items():
        op.rename_table(new, old)
        _rename_constraints(old, new, old)
    open_job = sa.text("status IN ('queued', 'running')")
    op.create_index("ix_jobs_lease_until", "jobs", ["lease_until"], postgresql_where=open_job)


def _rename_constraints(table: str, old: str, new: str) -> None:
    """Rename a table's constraints after it, also those of NOT NULL, which have names since Postgres 18."""
    names = sa.text("SELECT conname FROM pg_constraint WHERE conrelid = CAST(:relation AS regclass)")
    for name in op.get_bind().execute(names, {"relation": table}).scalars().all():
        if old in name:
            op.execute(f'ALTER TABLE {table} RENAME CONSTRAINT "{name}" TO "{name.replace(old, new)}"')


def _comment(table: str, column: str, comment: str | None) -> None:
    literal = "NULL" if comment is None else "'" + comment.replace("'", "''") + "'"
    op.execute(f"COMMENT ON COLUMN {table}.{column} IS {literal}")


def _rename_consent(old: str, new: str) -> None:
    op.execute(
        f"UPDATE sessions SET consent = (consent - '{old}') || jsonb_build_object('{new}', consent -> '{old}') "
        f"WHERE jsonb_exists(consent, '{old}')"
    )


def _rename_tasks(names: dict[str, str]) -> None:
    for old, new in names.items():
        op.execute(f"UPDATE outbox SET task = '{new}' WHERE task = '{old}'")


def _rename_lane(old: str, new: str) -> None:
    op.execute(f"UPDATE jobs SET lane = '{new}' WHERE lane = '{old}'")
    op.execute(f"UPDATE outbox SET queue = '{new}' WHERE queue = '{old}'")
