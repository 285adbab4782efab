"""A whole Tenor for each test: real processes, real models, servers of its own."""

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import redis
from fastapi.testclient import TestClient

from services.api.app import create_app
from shared.domain.access import KeyRole
from shared.domain.job import Lane
from shared.settings import Settings
from shared.store.database import Database
from tests.conftest import wait_for

ASSETS = Path(__file__).parents[1] / "assets"


@dataclass
class Tenor:
    """An API, and workers that a test starts and kills."""

    api: TestClient
    settings: Settings
    database: Database
    env: dict[str, str]

    def start_worker(self, **settings: object) -> "subprocess.Popen[bytes]":
        """A worker that is ready; `settings` by their names, where they are not everyone's."""
        log = self.settings.data_dir / "worker.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        # A killed worker counts as alive until its last sign of life is old.
        wait_for(lambda: self.alive() == 0, seconds=30)
        with log.open("ab") as file:
            env = self.env | {f"TENOR_{name.upper()}": str(value) for name, value in settings.items()}
            worker = subprocess.Popen([sys.executable, "-m", "workers"], env=env, stdout=file, stderr=file)
        try:
            wait_for(lambda: self.alive() > 0 or worker.poll() is not None, seconds=90)
            assert worker.poll() is None, log.read_text()
        except AssertionError:
            worker.kill()
            raise
        return worker

    def alive(self) -> int:
        """How many workers gave a sign of life lately, whatever they take."""
        with self.database.transaction() as transaction:
            return sum(worker.unseen_s < self.settings.jobs.lease_s for worker in transaction.workers.all())

    def workers(self) -> int:
        """How many of them take turns."""
        return self.api.get("/readyz").json()["workers"]

    def broker(self) -> redis.Redis:
        return redis.Redis.from_url(self.settings.broker.url.get_secret_value())

    def session(self) -> str:
        return self.api.post("/v1/sessions", json={}).json()["id"]

    def say(self, session_id: str, recording: Path, lane: Lane = Lane.interactive) -> None:
        files = {"audio": (recording.name, recording.read_bytes(), "audio/ogg")}
        response = self.api.post(f"/v1/sessions/{session_id}/turns", files=files, data={"lane": lane.value})
        assert response.status_code == 202, response.text

    def turns(self, session_id: str) -> list[dict[str, Any]]:
        return self.api.get(f"/v1/sessions/{session_id}/history", params={"limit": 200}).json()["turns"]

    def count(self, session_id: str, status: str) -> int:
        return sum(turn["status"] == status for turn in self.turns(session_id))

    def predictions(self, session_id: str) -> int:
        """Rows, not turns: twice the same prediction would show."""
        import psycopg

        query = "SELECT count(*) FROM predictions JOIN turns ON turns.id = turn_id WHERE session_id = %s"
        with psycopg.connect(self.settings.database.url.get_secret_value()) as connection:
            row = connection.execute(query, [session_id]).fetchone()
        assert row is not None
        return row[0]


@pytest.fixture
def tenor(settings: Settings, database: Database) -> Iterator[Tenor]:
    with database.transaction() as transaction:
        key = transaction.accounts.create_key(transaction.accounts.ensure_tenant("acme"), "test", KeyRole.admin)
    env = {
        **os.environ,
        "TENOR_DATA_DIR": str(settings.data_dir),
        "TENOR_DATABASE_URL": settings.database.url.get_secret_value(),
        "TENOR_BROKER_URL": settings.broker.url.get_secret_value(),
        "TENOR_JOBS_LEASE_S": str(settings.jobs.lease_s),
        "TENOR_WORKER_SWEEP_INTERVAL_S": str(settings.worker.sweep_interval_s),
    }
    with TestClient(create_app(settings), headers={"Authorization": f"Bearer {key}"}) as api:
        yield Tenor(api, settings, database, env)
