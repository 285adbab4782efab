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
from pydantic import SecretStr

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
