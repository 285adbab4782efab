"""Starts a Tenor for a benchmark (Postgres, Valkey, API and worker in a temporary data folder) and sends it turns."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar
from uuid import UUID

import httpx2 as httpx

from benchmarks.figures import timed
from services.embedded.servers import EmbeddedServers, free_port
from services.embedded.supervisor import Supervisor
from shared.domain.access import KeyRole
from shared.domain.job import OPEN, Lane
from shared.errors import BenchmarkFailed
from shared.settings import Settings
from shared.store.database import Database

Measured = TypeVar("Measured")

TEXT = "I have been waiting for an hour and nobody calls me back!"
START_TIMEOUT_S = 60.0
TURN_TIMEOUT_S = 300.0


@dataclass(frozen=True)
class Service:
    """A running embedded Tenor.

    Attributes:
        headers: the authorization of an admin key.
        data_dir: contains its logs and pid files.
    """

    url: str
    headers: dict[str, str]
    servers: EmbeddedServers
    data_dir: Path

    def connect(self) -> httpx.Client:
        """Return an HTTP client of the API; the caller closes it."""
        return httpx.Client(base_url=self.url, headers=self.headers, timeout=60, trust_env=False)  # through no proxy

    @contextmanager
    def client(self) -> Generator["Client"]:
        """A client with a connection and a session of its own."""
        with self.connect() as http:
            yield Client(http)


class Client:
    """Sends one turn after another into a session and waits for the prediction of each.

    Raises:
        BenchmarkFailed: a turn did not succeed.
    """

    def __init__(self, http: httpx.Client) -> None:
        self._http = http
        self.start_session()

    def start_session(self) -> None:
        """Create a session, into which all later turns are sent."""
        self._session_id = create_session(self._http)

    def send_audio(self, file: Path, lane: Lane = Lane.interactive) -> None:
        self._wait(post_audio(self._http, self._session_id, file, lane))

    def send_text(self, text: str = TEXT) -> None:
        self._wait(self._http.post(f"/v1/sessions/{self._session_id}/turns", json={"text": text}))

    def time_files(self, files: list[Path], rounds: int = 1) -> list[float]:
        """Return the seconds of each file, from its POST until its prediction is read."""
        return [timed(lambda file=file: self.send_audio(file)) for _ in range(rounds) for file in files]

    def _wait(self, accepted: httpx.Response) -> None:
        location = accepted.raise_for_status().headers["Location"]
        deadline = time.monotonic() + TURN_TIMEOUT_S
        turn = {"status": "queued"}
        while turn["status"] in OPEN and time.monotonic() < deadline:
            turn = self._http.get(location, params={"wait": 30}).raise_for_status().json()
        if turn["status"] != "succeeded":
            raise BenchmarkFailed(f"a turn of the benchmark has the status {turn['status']}: {turn['error']}")


def create_session(http: httpx.Client) -> UUID:
    """Create a session and return its id."""
    return UUID(http.post("/v1/sessions", json={}).raise_for_status().json()["id"])


def post_audio(http: httpx.Client, session_id: UUID, file: Path, lane: Lane = Lane.interactive) -> httpx.Response:
    """Send an audio turn, without waiting for its prediction."""
    audio = {"audio": (file.name, file.read_bytes(), "application/octet-stream")}
    return http.post(f"/v1/sessions/{session_id}/turns", files=audio, data={"lane": lane.value})


def measure_service(settings: Settings, measure: Callable[[Service], Iterable[Measured]]) -> list[Measured]:
    """Run Tenor with an empty data folder, and return what `measure` yields of it."""
    found: list[Measured] = []
    with embedded_servers(settings) as (own_settings, servers):
        supervisor = Supervisor(own_settings, servers, "127.0.0.1", free_port())

        def measure_and_stop() -> None:
            service = Service(supervisor.url, admin_headers(servers), servers, own_settings.data_dir)
            found.extend(measure(service))
            supervisor.stop()

        supervisor.run(on_ready=measure_and_stop)
    return found


@contextmanager
def embedded_servers(settings: Settings) -> Generator[tuple[Settings, EmbeddedServers]]:
    """Start a migrated Postgres and an empty Valkey in a temporary folder.

    Yields:
        the settings with that folder as the data folder, and the servers.
    """
    with tempfile.TemporaryDirectory() as folder:
        own_settings = settings.model_copy(update={"data_dir": Path(folder)})
        with EmbeddedServers(own_settings.data_dir) as servers:
            database = Database(servers.database_url, pool_size=1)
            database.migrate()
            database.close()
            yield own_settings, servers


@contextmanager
def serve_api(settings: Settings, servers: EmbeddedServers) -> Generator[str]:
    """Start `tenor serve` on these servers; yields its URL.

    Raises:
        BenchmarkFailed: it did not start.
    """
    env = {
        "TENOR_DATA_DIR": str(settings.data_dir),
        "TENOR_DATABASE_URL": servers.database_url.get_secret_value(),
        "TENOR_BROKER_URL": servers.broker_url.get_secret_value(),
    }
    with serve(["services.cli", "serve", "--port"], env) as url:
        yield url


@contextmanager
def serve(module: list[str], env: dict[str, str]) -> Generator[str]:
    """Start a module that is an HTTP server, and yield its URL once it answers.

    Args:
        module: name and arguments of the module; the port is appended.
        env: environment variables, added to this process's.

    Raises:
        BenchmarkFailed: it did not start.
    """
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    process = subprocess.Popen(
        [sys.executable, "-m", *module, str(port)], env=os.environ | env, stderr=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not _answers(url):
            if time.monotonic() > deadline or process.poll() is not None:
                raise BenchmarkFailed(f"{module[0]} ended, or did not answer within {START_TIMEOUT_S:.0f} s")
            time.sleep(0.01)
        yield url
    finally:
        process.terminate()
        process.wait()


def _answers(url: str) -> bool:
    try:
        httpx.get(f"{url}/healthz", trust_env=False)
    except httpx.TransportError:
        return False
    return True


def admin_headers(servers: EmbeddedServers) -> dict[str, str]:
    """Create an admin key and return the HTTP headers that carry it."""
    database = Database(servers.database_url, pool_size=1)
    with database.transaction() as transaction:
        tenant_id = transaction.accounts.ensure_tenant("bench")
        key = transaction.accounts.create_key(tenant_id, "bench", KeyRole.admin)
    database.close()
    return {"Authorization": f"Bearer {key}"}
