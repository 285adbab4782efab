"""All tables. Times are UTC by the database's clock, ids are UUIDs. A row's tenant is found by its session or its own
`tenant_id`.
"""

from sqlalchemy import (
    JSON,
    Boolean,
    Column,
    DateTime,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    Uuid,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

from shared.domain.language import MAX_TAG_LENGTH

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)

OPEN_JOB = "status IN ('queued', 'running')"


def _id() -> Column[object]:
    return Column("id", Uuid, primary_key=True, server_default=text("gen_random_uuid()"))


def _tenant() -> Column[object]:
    return Column("tenant_id", Uuid, ForeignKey("tenants.id", ondelete="CASCADE"), nullable=False)


def _warnings() -> Column[object]:
    return Column("warnings", JSONB, nullable=False, server_default=text("'[]'::jsonb"))


def _now(name: str = "created_at") -> Column[object]:
    return Column(name, DateTime(timezone=True), nullable=False, server_default=func.now())


tenants = Table(
    "tenants",
    metadata,
    _id(),
    Column("name", String(200), nullable=False, unique=True),
    _now(),
)

api_keys = Table(
    "api_keys",
    metadata,
    _id(),
    _tenant(),
    Column("name", String(200), nullable=False),
    Column("role", String(20), nullable=False),
    Column("hash", String(64), nullable=False, unique=True, comment="sha256 of the key, in hex"),
    _now(),
    Column("revoked_at", DateTime(timezone=True)),
    Index(None, "tenant_id"),
)

subjects = Table(
    "subjects",
    metadata,
    _id(),
    _tenant(),
    Column("external_ref", String(200), nullable=False),
    Column("turn_count", Integer, nullable=False, server_default=text("0"), comment="number of the turns in its scope"),
    _now(),
    UniqueConstraint("tenant_id", "external_ref"),
)

sessions = Table(
    "sessions",
    metadata,
    _id(),
    _tenant(),
    Column("subject_id", Uuid, ForeignKey("subjects.id")),
    Column("external_ref", String(200)),
    Column("language_hint", String(MAX_TAG_LENGTH)),
    Column("consent", JSONB, nullable=False),
    Column("context", Boolean, nullable=False, server_default=text("true"), comment="whether turns have a context"),
    Column("turn_count", Integer, nullable=False, server_default=text("0")),
    _now(),
    Column("closed_at", DateTime(timezone=True)),
    Index(None, "tenant_id", "created_at"),
    Index(None, "subject_id"),
)

recordings = Table(
    "recordings",
    metadata,
    _id(),
    Column("session_id", Uuid, ForeignKey("sessions.id", ondelete="CASCADE"), nullable=False),
    Column("uri", String(500), comment="null once the audio was deleted"),
    Column("sha256", String(64), nullable=False),
    Column("media_type", String(100), nullable=False),
    Column("duration_s", Float),
    Column("channel_count", Integer),
    Column("expires_at", DateTime(timezone=True)),
    Column(
        "source_id",
        Uuid,
        ForeignKey("recordings.id", ondelete="CASCADE"),
        comment="the long recording that it was cut from",
    ),
    _warnings(),
    _now(),
    Index(None, "session_id"),
    Index(None, "source_id", postgresql_where=text("source_id IS NOT NULL")),
    Index(None, "expires_at", postgresql_where=text("uri IS NOT NULL")),
)

long_recordings = Table(
    "long_recordings",
    metadata,
    Column("recording_id", Uuid, ForeignKey("recordings.id", ondelete="CASCADE"), primary_key=True),
    Column("channels", JSONB, nullable=False, comment="speaker and role on each channel, or one for all together"),
    Column("lane", String(20), nullable=False, comment="where its turns are queued"),
    _now("started_at"),
)

turns = Table(
    "turns",
    metadata,
    _id(),
    Column("session_id", Uuid, ForeignKey("sessions.id", ondelete="CASCADE"), nullable=False),
    Column("index", Integer, nullable=False),
    Column("speaker", String(200), nullable=False),
    Column("role", String(20), nullable=False),
    Column("text", Text),
    Column("recording_id", Uuid, ForeignKey("recordings.id")),
    Column("start", Float),
    Column("end", Float),
    Column("occurred_at", DateTime(timezone=True), nullable=False),
    Column("context", Boolean, nullable=False, server_default=text("true"), comment="whether it has a context"),
    Column(
        "scope_id",
        Uuid,
        comment="subject or session within which speaker and role identify one person; null: no baseline",
    ),
    Column("position", Integer, comment="order of the turns within the scope"),
    _now(),
    UniqueConstraint("session_id", "index"),
    UniqueConstraint("scope_id", "speaker", "role", "position"),
    Index(None, "recording_id", postgresql_where=text("recording_id IS NOT NULL")),
)

transcripts = Table(
    "transcripts",
    metadata,
    Column("turn_id", Uuid, ForeignKey("turns.id", ondelete="CASCADE"), primary_key=True),
    Column("language", String(MAX_TAG_LENGTH)),
    Column("language_probability", Float),
    Column("segments", JSONB, nullable=False),
    Column("source", String(20), nullable=False),
    _now(),
)

predictions = Table(
    "predictions",
    metadata,
    _id(),
    Column("turn_id", Uuid, ForeignKey("turns.id", ondelete="CASCADE"), nullable=False),
    Column("bundle_id", String(100), nullable=False),
    Column("scores", JSON(none_as_null=True), comment="not JSONB, which does not keep the order of the categories"),
    Column("text_only", JSON(none_as_null=True)),
    Column("audio_only", JSON(none_as_null=True)),
    Column("confidence", Float, nullable=False),
    Column("abstained", Boolean, nullable=False),
    Column("incongruence", Float),
    Column("modalities_used", ARRAY(String(10)), nullable=False),
    Column("baseline_turns", Integer, nullable=False, server_default=text("0")),
    Column("context_turns", Integer, nullable=False, server_default=text("0")),
    Column("reason", String(30), comment="why no emotion is named; null where one is"),
    Column("level_dbfs", Float, comment="RMS level of the loudest 0.25 s of the audio; null without audio"),
    _warnings(),
    _now(),
    UniqueConstraint("turn_id", "bundle_id"),
)

audio_summaries = Table(
    "audio_summaries",
    metadata,
    Column("turn_id", Uuid, ForeignKey("turns.id", ondelete="CASCADE"), primary_key=True),
    Column("bundle_id", String(100), primary_key=True),
    Column("summary", LargeBinary, nullable=False, comment="float16, little-endian, in the bundle's shape"),
    _now(),
)

webhooks = Table(
    "webhooks",
    metadata,
    _id(),
    _tenant(),
    Column("url", Text, nullable=False),
    Column("secret", String(100), nullable=False, comment="in clear text, as events are signed with it"),
    _now(),
    Column("disabled_at", DateTime(timezone=True)),
    Column("disabled_reason", Text),
    Column("consecutive_failures", Integer, nullable=False, server_default=text("0")),
    Column("paused_until", DateTime(timezone=True), comment="null: not paused"),
    Index(None, "tenant_id"),
    Index(None, "paused_until", postgresql_where=text("paused_until IS NOT NULL")),
)

deliveries = Table(
    "deliveries",
    metadata,
    _id(),
    Column("webhook_id", Uuid, ForeignKey("webhooks.id", ondelete="CASCADE"), nullable=False),
    Column("turn_id", Uuid, ForeignKey("turns.id", ondelete="CASCADE"), nullable=False),
    Column("turn_status", String(20), nullable=False, comment="how the turn ended"),
    Column("turn_error_code", String(50)),
    _now(),
    Index(None, "webhook_id", "created_at"),
    Index(None, "turn_id"),
)

jobs = Table(
    "jobs",
    metadata,
    _id(),
    Column("turn_id", Uuid, ForeignKey("turns.id", ondelete="CASCADE"), comment="the turn that it analyses"),
    Column(
        "recording_id",
        Uuid,
        ForeignKey("recordings.id", ondelete="CASCADE"),
        comment="the long recording that it splits",
    ),
    Column("delivery_id", Uuid, ForeignKey("deliveries.id", ondelete="CASCADE"), comment="the delivery that it makes"),
    Column("webhook_id", Uuid, comment="the webhook of its delivery"),
    Column("lane", String(20), nullable=False, server_default="interactive", comment="also the name of its queue"),
    Column("status", String(20), nullable=False, server_default="queued"),
    Column(
        "attempts", Integer, nullable=False, server_default=text("0"), comment="claims that count against the limit"
    ),
    Column("claims", Integer, nullable=False, server_default=text("0"), comment="how often a worker claimed it"),
    Column(
        "sends", Integer, nullable=False, server_default=text("0"), comment="how often its message was published again"
    ),
    Column("lease_until", DateTime(timezone=True), nullable=False),
    Column("error_code", String(50)),
    Column("error_message", Text),
    Column("correlation_id", String(128), comment="of the request that it came with"),
    Column("traceparent", String(55), comment="W3C Trace Context of the request that it came with"),
    _now(),
    _now("updated_at"),
    Index(None, "turn_id"),
    Index(None, "recording_id", postgresql_where=text("recording_id IS NOT NULL")),
    Index(None, "delivery_id", postgresql_where=text("delivery_id IS NOT NULL")),
    # For the sweeper.
    Index(None, "lease_until", postgresql_where=text(f"{OPEN_JOB} AND lane <> 'delivery'")),
    # For claims of deliveries.
    Index(None, "webhook_id", "lease_until", postgresql_where=text(f"{OPEN_JOB} AND lane = 'delivery'")),
    Index(None, "updated_at", postgresql_where=text("status = 'quarantined'")),
    Index(None, "lane", "created_at", postgresql_where=text("status = 'queued'")),
    Index("ix_jobs_maintenance", "status", postgresql_where=text("lane = 'maintenance'")),
)

outbox = Table(
    "outbox",
    metadata,
    _id(),
    Column("job_id", Uuid, ForeignKey("jobs.id", ondelete="CASCADE"), nullable=False),
    Column("task", String(100), nullable=False),
    Column("queue", String(50), nullable=False),
    _now(),
    Index(None, "job_id"),
    Index(None, "created_at"),
)

pending_deletions = Table(
    "pending_deletions",
    metadata,
    Column("uri", String(500), primary_key=True),
    Column("delete_after", DateTime(timezone=True), nullable=False),
    Index(None, "delete_after"),
)

workers = Table(
    "workers",
    metadata,
    _id(),
    Column("bundle_id", String(100), comment="null: the worker takes no turns"),
    Column("host", String(255)),
    Column("device", String(100)),
    _now("started_at"),
    _now("seen_at"),
)

audit_events = Table(
    "audit_events",
    metadata,
    _id(),
    _tenant(),
    Column("key_id", Uuid, nullable=False),
    Column("action", String(50), nullable=False),
    Column("session_id", Uuid, nullable=False, comment="kept after the session itself is deleted"),
    _now("at"),
    Index(None, "tenant_id", "session_id", "at"),
)

idempotency_keys = Table(
    "idempotency_keys",
    metadata,
    Column("tenant_id", Uuid, ForeignKey("tenants.id", ondelete="CASCADE"), primary_key=True),
    Column("key", String(255), primary_key=True),
    Column("fingerprint", String(64), nullable=False, comment="sha256 of the request, in hex"),
    Column("status", Integer, nullable=False),
    Column("body", Text, nullable=False),
    Column("location", String(500)),
    Column("session_id", Uuid, ForeignKey("sessions.id", ondelete="CASCADE")),
    Column("webhook_id", Uuid, ForeignKey("webhooks.id", ondelete="CASCADE")),
    _now(),
    Index(None, "session_id", postgresql_where=text("session_id IS NOT NULL")),
    Index(None, "webhook_id", postgresql_where=text("webhook_id IS NOT NULL")),
    Index(None, "created_at"),
)
