"""Real servers for the tests: one private Postgres and one private Valkey a test process, from wheels."""

import itertools
import logging
import os
import secrets
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
import redis
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings
from psycopg import sql
from pydantic import SecretStr

from services.embedded.servers import EmbeddedServers
from shared.settings import BrokerSettings, DatabaseSettings, JobSettings, Settings, WorkerSettings
from shared.store.database import Database

_broker_numbers = itertools.count()

# Two test processes share two cores: threads of one matrix product would wait for one another.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A busy machine may take long for one example; how long says nothing about the code.
hypothesis_settings.register_profile("tenor", deadline=None, suppress_health_check=[HealthCheck.too_slow])
hypothesis_settings.load_profile("tenor")

USES_MODELS = {"models", "training", "acceptance"}
"""The folders whose tests all get the marker `models`."""

PATIENCE = float(os.environ.get("TEST_PATIENCE", "1"))
"""How many times longer than on an idle machine things may take."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.relative_to(Path(__file__).parent).parts[0] in USES_MODELS:
            item.add_marker(pytest.mark.models)


def wait_for(condition: Callable[[], bool], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds * PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


@pytest.fixture(autouse=True)
def restored_logging() -> Iterator[None]:
    """Undo a test's changes to the root logger: Celery's test worker leaves it at ERROR."""
    root = logging.getLogger()
    level, handlers = root.level, root.handlers[:]
    yield
    root.setLevel(level)
    root.handlers[:] = handlers


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServers]:
    with EmbeddedServers(tmp_path_factory.mktemp("servers")) as running:
        _write_without_waiting_for_the_disk(running)
        yield running


def _write_without_waiting_for_the_disk(servers: EmbeddedServers) -> None:
    """No test cuts the power: without this, dropping a database waits until hundreds of others are on the disk."""
    with psycopg.connect(servers.url_of("postgres"), autocommit=True) as connection:
        for setting in ("fsync", "full_page_writes", "synchronous_commit"):
            connection.execute(sql.SQL("ALTER SYSTEM SET {} = off").format(sql.Identifier(setting)))
        connection.execute("SELECT pg_reload_conf()")


@pytest.fixture(scope="session")
def template_database(servers: EmbeddedServers) -> str:
    """The name of a migrated, empty database to make copies of."""
    database = Database(servers.database_url)
    database.migrate()
    database.close()
    return "tenor"


@pytest.fixture
def settings(servers: EmbeddedServers, template_database: str, tmp_path: Path) -> Settings:
    """A fresh database, a broker database of its own, and an empty data folder."""
    return fresh_settings(servers, template_database, tmp_path / "data")


def fresh_settings(servers: EmbeddedServers, template_database: str, data_dir: Path) -> Settings:
    """Settings with a copy of the template database and an empty broker database."""
    name = f"test_{secrets.token_hex(6)}"
    with psycopg.connect(servers.url_of("postgres"), autocommit=True) as connection:
        copy = sql.SQL("CREATE DATABASE {} TEMPLATE {}")
        connection.execute(copy.format(sql.Identifier(name), sql.Identifier(template_database)))
    broker = f"{servers.broker_url.get_secret_value().removesuffix('?db=0')}?db={next(_broker_numbers) % 64}"
    redis.Redis.from_url(broker).flushdb()  # there are but 64, and an earlier test may have had this one
    return Settings(
        data_dir=data_dir,
        database=DatabaseSettings(url=SecretStr(servers.url_of(name))),
        broker=BrokerSettings(url=SecretStr(broker)),
        jobs=JobSettings(lease_s=2),
        worker=WorkerSettings(sweep_interval_s=0.2),
    )


@pytest.fixture
def database(settings: Settings) -> Iterator[Database]:
    database = Database(settings.database.url)
    yield database
    database.close()
