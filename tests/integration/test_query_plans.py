"""Query plans on filled tables: no statement of claiming, sweeping or paging through a history scans a whole table."""

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any
from uuid import UUID

import psycopg
import pytest
from sqlalchemy import Engine, event

from services.embedded.servers import EmbeddedServers
from shared.settings import Settings
from shared.store.database import Database
from tests.conftest import fresh_settings

SESSIONS, TURNS = 1_000, 50
LEASE = timedelta(seconds=30)

FILL = f"""
SET session_replication_role = replica; -- no foreign key is checked row by row
INSERT INTO tenants (name) VALUES ('acme');
INSERT INTO sessions (tenant_id, consent, turn_count)
    SELECT id, '{{}}', {TURNS} FROM tenants, generate_series(1, {SESSIONS});
INSERT INTO recordings (session_id, sha256, media_type) SELECT id, '', 'audio/wav' FROM sessions;
INSERT INTO turns (session_id, index, speaker, role, recording_id, occurred_at, scope_id, position)
    SELECT session_id, number, 'Ada', 'customer', id, now(), session_id, number
    FROM recordings, generate_series(0, {TURNS - 1}) AS number;
INSERT INTO jobs (turn_id, status, lease_until)
    SELECT id, CASE index WHEN {TURNS - 1} THEN 'queued' ELSE 'succeeded' END,
        now() - interval '1 hour'
    FROM turns;
"""
"""50,000 turns, each with a job. The job of each session's last turn is queued, and its lease has run out."""

Scans = list[tuple[str, str]]
"""The kind of each scan of a plan and its table."""


@pytest.fixture(scope="module")
def settings(servers: EmbeddedServers, template_database: str, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Settings of a filled database, which the tests of this module share."""
    settings = fresh_settings(servers, template_database, tmp_path_factory.mktemp("data"))
    with psycopg.connect(settings.database.url.get_secret_value(), autocommit=True) as connection:
        connection.execute(FILL.encode())
        connection.execute("ANALYZE")
    return settings


@pytest.fixture
def read(settings: Settings) -> Callable[[str], UUID]:
    def value(query: str) -> UUID:
        with psycopg.connect(settings.database.url.get_secret_value()) as connection:
            row = connection.execute(query.encode()).fetchone()
        assert row is not None
        return row[0]

    return value


def scans_of(plan: dict[str, Any]) -> Iterator[tuple[str, str]]:
    if "Relation Name" in plan:
        yield plan["Node Type"], plan["Relation Name"]
    elif plan["Node Type"] == "Bitmap Index Scan":
        yield plan["Node Type"], plan["Index Name"]
    for part in plan.get("Plans", ()):
        yield from scans_of(part)


@contextmanager
def explained() -> Generator[Scans]:
    """Explains each statement just before it is executed; yields the list that the scans are added to."""
    found: Scans = []

    def explain(_: Any, cursor: Any, statement: str, parameters: Any, *others: object) -> None:  # noqa: ANN401 - SQLAlchemy's own types
        if statement.lstrip().upper().startswith(("SELECT", "INSERT", "UPDATE", "DELETE", "WITH")):
            with cursor.connection.cursor() as own:
                for one in parameters if isinstance(parameters, list) else [parameters]:
                    own.execute(f"EXPLAIN (FORMAT JSON) {statement}", one)
                    found.extend(scans_of(own.fetchone()[0][0]["Plan"]))

    event.listen(Engine, "before_cursor_execute", explain)
    try:
        yield found
    finally:
        event.remove(Engine, "before_cursor_execute", explain)


def assert_uses_indexes(scans: Scans, *tables: str) -> None:
    """Every large table is read by an index, and the named ones are read at all."""
    assert [scan for scan in scans if scan[0] == "Seq Scan" and scan[1] in {"jobs", "turns", "sessions"}] == []
    indexed = {table for kind, table in scans if kind in {"Index Scan", "Index Only Scan", "Bitmap Heap Scan"}}
    assert indexed >= set(tables), scans


def test_claiming_a_job_uses_indexes(database: Database, read: Callable[[str], UUID]) -> None:
    job_id = read("SELECT id FROM jobs WHERE status = 'queued' LIMIT 1")
    with database.transaction() as transaction, explained() as scans:
        assert transaction.jobs.claim(job_id, LEASE) is not None
    assert_uses_indexes(scans, "jobs", "turns")


def test_sweeping_uses_indexes(database: Database, settings: Settings) -> None:
    with database.transaction() as transaction, explained() as scans:
        assert transaction.jobs.sweep(lease=LEASE, retries=settings.retries, limit=100) == 100
    assert_uses_indexes(scans, "jobs", "turns")


def test_a_page_of_a_history_uses_indexes(database: Database, read: Callable[[str], UUID]) -> None:
    tenant_id, session_id = read("SELECT id FROM tenants"), read("SELECT id FROM sessions LIMIT 1")
    with database.transaction() as transaction, explained() as scans:
        page = transaction.turns.history(tenant_id, session_id, after_index=9, limit=20)
    assert [turn.turn.index for turn in page] == list(range(10, 30))
    assert_uses_indexes(scans, "turns", "jobs", "sessions")
