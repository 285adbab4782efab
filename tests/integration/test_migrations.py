"""Migrations run once, however many start them, and nothing starts on tables of an earlier version."""

import os
import secrets
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
from alembic import command
from alembic.config import Config
from pydantic import SecretStr
from sqlalchemy import create_engine

from services.embedded.servers import EmbeddedServers
from shared.errors import SetupError
from shared.store import database as store
from shared.store.database import Database

Query = Callable[[str], list[tuple[object, ...]]]


@pytest.fixture
def url(servers: EmbeddedServers) -> str:
    """A database without a table."""
    name = f"empty_{secrets.token_hex(6)}"
    with psycopg.connect(servers.url_of("postgres"), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE template0")  # pyright: ignore[reportArgumentType, reportCallIssue]
    return servers.url_of(name)


@pytest.fixture
def empty(url: str) -> Iterator[Database]:
    database = Database(SecretStr(url))
    yield database
    database.close()


@pytest.fixture
def query(url: str) -> Iterator[Query]:
    with psycopg.connect(url, autocommit=True) as connection:
        yield lambda text: connection.execute(text).fetchall()  # pyright: ignore[reportArgumentType, reportCallIssue]


def run(url: str, *command: str) -> "subprocess.CompletedProcess[str]":
    """A process of Tenor, to its end. It has long, as the worker's libraries load slowly on a busy machine."""
    env = {**os.environ, "TENOR_DATABASE_URL": url}
    python = [sys.executable, "-m", *command]
    return subprocess.run(python, env=env, capture_output=True, text=True, timeout=300, check=False)


def migrate(url: str, change: Callable[[Config, str], None], revision: str) -> None:
    """Upgrade or downgrade the tables to a revision."""
    config = store._alembic()
    engine = create_engine(url.replace("postgresql:", "postgresql+psycopg:", 1))
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        change(config, revision)
    engine.dispose()


def test_many_processes_and_threads_that_start_at_once_migrate_once(url: str, query: Query) -> None:
    def migrate(_: int) -> None:
        database = Database(SecretStr(url), pool_size=1)
        database.migrate()
        database.close()

    with ThreadPoolExecutor(10) as pool:
        processes = [pool.submit(run, url, "services.cli", "migrate") for _ in range(3)]
        list(pool.map(migrate, range(7)))
    ended = [process.result() for process in processes]
    assert [(process.returncode, process.stderr) for process in ended] == [(0, "")] * 3
    assert len(query("SELECT version_num FROM alembic_version")) == 1


def test_a_migration_waits_for_one_that_runs(empty: Database, query: Query) -> None:
    query(f"SELECT pg_advisory_lock({store._MIGRATION_LOCK})")
    migration = threading.Thread(target=empty.migrate)
    migration.start()
    migration.join(0.5)
    assert migration.is_alive()
    assert query("SELECT to_regclass('alembic_version')") == [(None,)]
    query(f"SELECT pg_advisory_unlock({store._MIGRATION_LOCK})")
    migration.join(30)
    empty.check_tables()


def test_a_database_without_tables_is_refused(empty: Database) -> None:
    with pytest.raises(SetupError, match=r"have not been made.*run `tenor migrate`"):
        empty.check_tables()


def test_earlier_tables_are_refused_and_later_ones_are_not(empty: Database, query: Query) -> None:
    empty.migrate()
    empty.check_tables()
    query("UPDATE alembic_version SET version_num = '0001' RETURNING 1")
    with pytest.raises(SetupError, match=r"are at 0001.*run `tenor migrate`"):
        empty.check_tables()
    query("UPDATE alembic_version SET version_num = '9999' RETURNING 1")
    empty.check_tables()


@pytest.mark.parametrize("command", ["services.cli serve --port 0", "workers"])
def test_the_api_and_the_worker_do_not_start_without_tables(url: str, command: str) -> None:
    ended = run(url, *command.split())
    assert ended.returncode == 78, ended.stderr
    assert ended.stderr.splitlines()[-1].endswith("run `tenor migrate`")
    assert "Traceback" not in ended.stderr


def test_the_process_exits_with_status_1_without_a_database() -> None:
    ended = run("postgresql://127.0.0.1:1/tenor", "services.cli", "serve", "--port", "0")
    assert (ended.returncode, ended.stderr) == (1, "Temporarily unavailable: the database cannot be reached\n")


def test_migrating_tables_of_a_later_version_is_refused_and_changes_nothing(
    url: str, empty: Database, query: Query
) -> None:
    empty.migrate()
    query("UPDATE alembic_version SET version_num = '9999' RETURNING 1")
    result = run(url, "services.cli", "migrate")
    assert (result.returncode, result.stderr.count("\n")) == (78, 1), result.stderr
    assert "tables are at 9999, which only a later version of Tenor knows" in result.stderr
    assert "restore a backup" in result.stderr
    assert query("SELECT version_num FROM alembic_version") == [("9999",)]
    empty.check_tables()  # a process of a rolling update goes on


BEFORE_0011 = """
    INSERT INTO tenants (id, name) VALUES (gen_random_uuid(), 'acme');
    INSERT INTO sessions (tenant_id, consent, turn_count) SELECT id, '{"keep_voice_summary": false}', 1 FROM tenants;
    INSERT INTO recordings (session_id, uri, sha256, media_type, channels)
        SELECT id, 'a', '0', 'audio/wav', 2 FROM sessions;
    INSERT INTO calls (recording_id, voices, lane, began_at)
        SELECT id, '[{"speaker": "Ana", "role": "agent"}]', 'bulk', '2026-03-01T10:00:00Z' FROM recordings;
    INSERT INTO doomed_blobs (uri, after) VALUES ('b', '2026-03-02T10:00:00Z');
    INSERT INTO turns (session_id, index, speaker, role, text, occurred_at)
        SELECT id, 0, 'Ana', 'user', 'Hello', now() FROM sessions;
    INSERT INTO voice_summaries (turn_id, bundle_id, summary) SELECT id, 'bundle', 'summary' FROM turns;
    INSERT INTO webhooks (tenant_id, url, secret) SELECT id, 'https://example.com/', 'secret' FROM tenants;
    INSERT INTO deliveries (webhook_id, turn_id, turn_status)
        SELECT webhooks.id, turns.id, 'failed' FROM webhooks, turns;
    INSERT INTO jobs (delivery_id, lane, lease_until) SELECT id, 'delivery', now() FROM deliveries;
    INSERT INTO jobs (recording_id, lane, lease_until) SELECT id, 'ingest', now() FROM recordings;
    INSERT INTO jobs (lane, lease_until) VALUES ('maintenance', now());
    INSERT INTO outbox (job_id, task, queue) SELECT id, 'ingest_recording', lane FROM jobs WHERE lane = 'ingest';
    INSERT INTO outbox (job_id, task, queue) SELECT id, 'delete_sound', lane FROM jobs WHERE lane = 'maintenance';
    SELECT 1
"""


def test_rows_survive_the_renames_of_0011_and_the_way_back(url: str, empty: Database, query: Query) -> None:
    migrate(url, command.upgrade, "0010")
    for statement in BEFORE_0011.split(";"):
        query(f"{statement} RETURNING 1" if "INSERT" in statement else statement)
    empty.migrate()
    empty.check_tables()
    started, due = "2026-03-01T10:00:00Z", "2026-03-02T10:00:00Z"
    assert query("SELECT consent FROM sessions") == [({"keep_audio_summary": False},)]
    assert query("SELECT channel_count FROM recordings") == [(2,)]
    assert query(f"SELECT channels, lane, started_at = '{started}' FROM long_recordings") == [
        ([{"speaker": "Ana", "role": "agent"}], "bulk", True)
    ]
    assert query(f"SELECT uri, delete_after = '{due}' FROM pending_deletions") == [("b", True)]
    assert query("SELECT summary FROM audio_summaries") == [(b"summary",)]
    assert query("SELECT jobs.webhook_id = webhooks.id FROM jobs, webhooks WHERE delivery_id IS NOT NULL") == [(True,)]
    assert query("SELECT task, queue FROM outbox ORDER BY task") == [
        ("delete_audio", "maintenance"),
        ("split_recording", "recording"),
    ]
    assert query("SELECT lane FROM jobs WHERE recording_id IS NOT NULL") == [("recording",)]
    old_names = "'calls|voice_summaries|doomed_blobs|_others'"
    assert query(f"SELECT relname FROM pg_class WHERE relname ~ {old_names}") == []
    assert query(f"SELECT conname FROM pg_constraint WHERE conname ~ {old_names}") == []
    migrate(url, command.downgrade, "0010")
    assert query("SELECT consent FROM sessions") == [({"keep_voice_summary": False},)]
    assert query(f"SELECT began_at = '{started}' FROM calls") == [(True,)]
    assert query(f"SELECT after = '{due}' FROM doomed_blobs") == [(True,)]
    assert query("SELECT summary FROM voice_summaries") == [(b"summary",)]
    assert query("SELECT task, queue FROM outbox ORDER BY task") == [
        ("delete_sound", "maintenance"),
        ("ingest_recording", "ingest"),
    ]


def test_every_revision_is_reached_from_the_others(url: str, empty: Database) -> None:
    empty.migrate()
    migrate(url, command.downgrade, "0001")
    empty.migrate()
    empty.check_tables()
