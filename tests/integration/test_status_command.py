"""`tenor status`: the state of Tenor and its problems."""

import json
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
import pytest
from fastapi.testclient import TestClient
from typer.testing import CliRunner, Result

from services.cli.main import app
from shared.domain.job import Lane, NewJob
from shared.errors import TenorError
from shared.settings import Settings, get_settings
from shared.store.database import Database
from shared.version import VERSION

Tenor = Callable[..., Result]
WORKER = UUID(int=7)


@pytest.fixture
def tenor(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Tenor]:
    monkeypatch.setenv("TENOR_DATABASE_URL", settings.database.url.get_secret_value())
    monkeypatch.setenv("TENOR_BROKER_URL", settings.broker.url.get_secret_value())
    monkeypatch.setenv("COLUMNS", "120")
    get_settings.cache_clear()
    yield lambda *arguments: CliRunner().invoke(app, ["status", *map(str, arguments)])
    get_settings.cache_clear()


def see_worker(database: Database) -> None:
    with database.transaction() as transaction:
        transaction.workers.record_heartbeat(WORKER, "compact-0123", host="node-3", device="NVIDIA H200")


def add_turn(api: TestClient, session_id: str, lane: str = "interactive") -> None:
    assert api.post(f"/v1/sessions/{session_id}/turns", json={"text": "hello", "lane": lane}).status_code == 202


def change(settings: Settings, statement: str) -> None:
    with psycopg.connect(settings.database.url.get_secret_value()) as connection:
        connection.execute(statement)  # pyright: ignore[reportArgumentType, reportCallIssue]


def found(result: Result) -> dict[str, Any]:
    return json.loads(result.stdout)


def test_without_problems_the_status_is_ok(tenor: Tenor, database: Database) -> None:
    see_worker(database)
    result = tenor("--format", "json")
    status = found(result)
    assert (result.exit_code, status["problems"], result.stderr) == (0, [], "")
    assert (status["version"], status["database"], status["broker"]) == (VERSION, "ok", "ok")
    assert status["stored"]["migration"] == database.revision()
    (worker,) = status["stored"]["workers"]
    assert (worker["id"], worker["host"], worker["device"]) == (str(WORKER), "node-3", "NVIDIA H200")
    assert worker["bundle_id"] == "compact-0123"
    assert worker["unseen_s"] < 60


def test_the_tables_show_the_same_status(tenor: Tenor, database: Database, api: TestClient, session_id: str) -> None:
    see_worker(database)
    add_turn(api, session_id)
    result = tenor()
    assert result.exit_code == 0, result.stderr
    shown = (database.revision() or "none", "node-3", "NVIDIA H200", *Lane, "1 in a minute", "oldest waiting")
    assert [word for word in shown if word not in result.stdout] == []


def test_jobs_and_turns_are_counted(
    tenor: Tenor, api: TestClient, session_id: str, settings: Settings, database: Database
) -> None:
    for lane in ("interactive", "interactive", "bulk", "bulk", "bulk"):
        add_turn(api, session_id, lane)
    change(settings, "UPDATE jobs SET created_at = now() - interval '10 minutes' WHERE lane = 'bulk'")
    with database.transaction() as transaction:
        lease = timedelta(seconds=30)
        claimed = transaction.jobs.claim(transaction.job_admin.find()[0].id, lease)
        assert claimed is not None
        assert transaction.jobs.quarantine(claimed, TenorError("internal error"), lease=lease) is not None
    stored = found(tenor("--format", "json"))["stored"]
    assert (stored["turns_last_minute"], stored["turns_last_hour"], stored["quarantined"]) == (2, 5, 1)
    assert sum(count["jobs"] for count in stored["jobs"] if count["status"] == "queued") == 4
    waiting = {lane["lane"]: lane["jobs"] for lane in stored["waiting"]}
    assert sum(waiting.values()) == 4
    assert max(lane["oldest_s"] for lane in stored["waiting"]) >= 600


def test_no_live_worker_is_a_problem(tenor: Tenor, database: Database, settings: Settings) -> None:
    result = tenor("--format", "json")
    assert (result.exit_code, "no worker is alive" in result.stderr) == (1, True)
    assert found(result)["problems"] == result.stderr.splitlines()
    see_worker(database)
    change(settings, "UPDATE workers SET seen_at = now() - interval '1 hour'")
    assert tenor().exit_code == 1


def test_an_interactive_turn_that_waits_too_long_is_a_problem_and_a_bulk_turn_is_not(
    tenor: Tenor, api: TestClient, session_id: str, settings: Settings, database: Database
) -> None:
    see_worker(database)
    add_turn(api, session_id, "bulk")
    change(settings, "UPDATE jobs SET created_at = now() - interval '1 hour'")
    assert tenor().exit_code == 0
    add_turn(api, session_id)
    assert tenor().exit_code == 0
    change(settings, "UPDATE jobs SET created_at = now() - interval '30 seconds' WHERE lane = 'interactive'")
    result = tenor("--patience", 20)
    assert (result.exit_code, "the oldest interactive turn has waited 30 s" in result.stderr) == (1, True)


def test_audio_that_is_not_deleted_is_a_problem(tenor: Tenor, settings: Settings, database: Database) -> None:
    see_worker(database)
    with database.transaction() as transaction:
        transaction.jobs.enqueue([NewJob(lane=Lane.maintenance)], lease=timedelta(seconds=30))
    assert tenor().exit_code == 0
    change(settings, "UPDATE jobs SET created_at = now() - interval '11 minutes'")
    result = tenor()
    assert (result.exit_code, "audio has waited 660 s to be deleted" in result.stderr) == (1, True)


def test_an_unreachable_broker_is_a_problem_and_the_rest_is_shown(
    tenor: Tenor, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    see_worker(database)
    monkeypatch.setenv("TENOR_BROKER_URL", "redis://127.0.0.1:1/0")
    result = tenor("--format", "json")
    assert (result.exit_code, result.stderr) == (1, "the broker cannot be reached\n")
    assert (found(result)["database"], len(found(result)["stored"]["workers"])) == ("ok", 1)


def test_an_unreachable_database_is_a_problem(tenor: Tenor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TENOR_DATABASE_URL", "postgresql://127.0.0.1:1/none")
    result = tenor("--format", "json")
    assert (result.exit_code, result.stderr) == (1, "the database cannot be reached\n")
    assert (found(result)["broker"], found(result)["stored"]) == ("ok", None)
    assert tenor().exit_code == 1


def test_tables_of_an_earlier_version_exit_with_status_78(tenor: Tenor, settings: Settings) -> None:
    change(settings, "UPDATE alembic_version SET version_num = '0004'")
    result = tenor()
    assert (result.exit_code, "run `tenor migrate`" in result.stderr) == (78, True)


def test_without_a_running_tenor_the_message_says_what_to_start(
    tenor: Tenor, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("TENOR_DATABASE_URL")
    monkeypatch.setenv("TENOR_DATA_DIR", str(tmp_path))
    result = tenor()
    assert (result.exit_code, "no embedded Tenor runs" in result.stderr) == (78, True)
