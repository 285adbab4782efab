"""The disk of Postgres is full: what cannot be stored says so, and goes on once there is room."""

import os
import secrets
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import psycopg
import pytest
from fastapi.testclient import TestClient
from httpx2 import Response
from psycopg import sql
from pydantic import SecretStr
from typer.testing import CliRunner

from services.api.app import create_app
from services.cli.main import app
from services.embedded.servers import EmbeddedServers
from shared.domain.access import KeyRole
from shared.errors import StorageFull
from shared.settings import Settings, get_settings
from shared.store.database import Database
from tests.audio_clips import wav
from tests.integration.test_api import blobs, problem

_FULL = "BEGIN RAISE EXCEPTION 'could not extend file: No space left on device' USING ERRCODE = 'disk_full'; END"


@contextmanager
def full_disk(settings: Settings, *tables: str) -> Iterator[None]:
    """A database that answers as one on a full disk to whoever inserts into these tables, or creates any."""
    statements = [
        f"CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS $$ {_FULL} $$",
        f"CREATE FUNCTION no_room() RETURNS event_trigger LANGUAGE plpgsql AS $$ {_FULL} $$",
        *(f"CREATE TRIGGER full_disk BEFORE INSERT ON {table} EXECUTE FUNCTION full_disk()" for table in tables),
        "CREATE EVENT TRIGGER no_room ON ddl_command_start WHEN TAG IN ('CREATE TABLE AS') EXECUTE FUNCTION no_room()",
    ]
    with psycopg.connect(settings.database.url.get_secret_value(), autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement)  # pyright: ignore[reportArgumentType, reportCallIssue]
        yield
        connection.execute("DROP EVENT TRIGGER no_room; DROP FUNCTION no_room; DROP FUNCTION full_disk CASCADE")


def test_requests_are_refused_while_the_disk_is_full_and_accepted_afterwards(
    api: TestClient, session_id: str, settings: Settings
) -> None:
    def send_all() -> list[tuple[int, str] | int]:
        session = f"/v1/sessions/{session_id}"
        sound = {"audio": ("a.wav", wav(), "audio/wav")}
        answers = [
            api.post("/v1/sessions", json={}),
            api.post(f"{session}/turns", json={"text": "hello"}),
            api.post(f"{session}/turns", files=sound),
            api.post(f"{session}/recordings", files=sound),
        ]
        return [answer.status_code if answer.is_success else problem(answer) for answer in answers]

    with full_disk(settings, "sessions", "turns", "recordings"):
        assert api.get("/readyz").status_code == 200  # nobody noticed yet
        assert send_all() == [(507, "storage_full")] * 4
        refused = api.post("/v1/sessions", json={})
        assert refused.json()["retryable"] is True
        assert "disk of the database is full" in refused.json()["detail"]
        for _ in range(2):
            unready = api.get("/readyz")
            assert problem(unready) == (503, "unavailable")
            assert "disk of the database is full" in unready.json()["detail"]
        assert api.get(f"/v1/sessions/{session_id}").status_code == 200
        assert blobs(settings) == []
    assert api.get("/readyz").status_code == 200
    assert send_all() == [201, 202, 202, 202]


def test_the_status_names_a_full_disk(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TENOR_DATABASE_URL", settings.database.url.get_secret_value())
    monkeypatch.setenv("TENOR_BROKER_URL", settings.broker.url.get_secret_value())
    get_settings.cache_clear()
    with full_disk(settings):
        result = CliRunner().invoke(app, ["status"])
    get_settings.cache_clear()
    assert result.exit_code == 1
    assert "the disk of the database is full" in result.stderr
    assert "migration" in result.stdout


def test_the_status_names_a_data_folder_without_room(
    small_disk: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TENOR_DATA_DIR", str(small_disk))
    monkeypatch.setenv("TENOR_DATABASE_URL", "postgresql://127.0.0.1:1/tenor")
    monkeypatch.setenv("TENOR_BROKER_URL", settings.broker.url.get_secret_value())
    get_settings.cache_clear()
    result = CliRunner().invoke(app, ["status"])
    get_settings.cache_clear()
    assert result.exit_code == 1
    assert "the database cannot be reached" in result.stderr
    assert f"the disk of {small_disk} is full: 32 MB are left" in result.stderr


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """An empty file system of 32 MB."""
    with tempfile.TemporaryDirectory() as folder:
        mount = ["mount", "-t", "tmpfs", "-o", "size=32m,mode=0777", "tmpfs", folder]
        try:
            mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
        except FileNotFoundError:
            mounted = False
        if not mounted:
            pytest.skip("only root on Linux may mount a file system, and a container often may not")
        yield Path(folder)
        subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.fixture
def on_small_disk(
    settings: Settings, template_database: str, servers: EmbeddedServers, small_disk: Path
) -> Iterator[Settings]:
    """A fresh database whose tables are on the small disk."""
    name, folder = f"small_{secrets.token_hex(6)}", small_disk / "tables"
    folder.mkdir()
    with psycopg.connect(servers.url_of("postgres"), autocommit=True) as connection:
        postgres = psutil.Process(servers.pids[0])
        os.chown(folder, postgres.uids().real, postgres.gids().real)
        its, template = sql.Identifier(name), sql.Identifier(template_database)
        connection.execute(sql.SQL("CREATE TABLESPACE {} LOCATION {}").format(its, str(folder)))
        connection.execute(sql.SQL("CREATE DATABASE {} TEMPLATE {} TABLESPACE {}").format(its, template, its))
        yield settings.updated(database={"url": SecretStr(servers.url_of(name))})
        connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(its))
        connection.execute(sql.SQL("DROP TABLESPACE {}").format(its))


def test_the_api_recovers_from_a_disk_that_is_really_full(on_small_disk: Settings, small_disk: Path) -> None:
    database = Database(on_small_disk.database.url, pool_size=1)
    with database.transaction() as transaction:
        key = transaction.accounts.create_key(transaction.accounts.ensure_tenant("acme"), "test", KeyRole.admin)
    with TestClient(create_app(on_small_disk), headers={"Authorization": f"Bearer {key}"}) as api:
        turns = f"/v1/sessions/{api.post('/v1/sessions', json={}).json()['id']}/turns"

        def say() -> Response:
            return api.post(turns, json={"text": secrets.token_hex(2000)})

        with (small_disk / "filling").open("wb", buffering=0) as file, suppress(OSError):
            while True:
                file.write(bytes(4096))
        answers = [say() for _ in range(20)]  # there was room in the pages that the tables have
        assert problem(answers[-1]) == (507, "storage_full")
        with pytest.raises(StorageFull):
            database.check_room()
        assert problem(api.get("/readyz")) == (503, "unavailable")
        (small_disk / "filling").unlink()
        assert api.get("/readyz").status_code == 200
        assert say().status_code == 202
    database.close()
