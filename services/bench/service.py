"""An embedded run to be measured, and the turns that its clients send."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import httpx2 as httpx

from services.bench.figures import timed
from services.embedded.servers import EmbeddedServers, free_port
from services.embedded.supervisor import Supervisor
from shared.domain.access import KeyRole
from shared.domain.job import OPEN, Lane
from shared.errors import BenchmarkFailed
from shared.settings import Settings
from shared.store.database import Database

Measured = TypeVar("Measured")

TEXT = "I have been waiting for an hour and nobody calls me back!"
START_S = 60.0
"""Longest that a server may take to answer."""
PATIENCE_S = 300.0
"""Longest that a turn of a benchmark may take."""


@dataclass(frozen=True)
class Service:
    """A Tenor that answers.

    Attributes:
        headers: with a key that may do everything.
        data_dir: holds its logs, and its processes' ids.
    """

    url: str
    headers: dict[str, str]
    servers: EmbeddedServers
    data_dir: Path

    def connection(self) -> httpx.Client:
        """Its API, for a caller who closes it."""
        return httpx.Client(base_url=self.url, headers=self.headers, timeout=60, trust_env=False)  # through no proxy

    @contextmanager
    def client(self) -> Iterator["Client"]:
        """A caller with a connection and a session of its own."""
        with self.connection() as http:
            yield Client(http)


class Client:
    """Sends one turn after another into a session, and waits for each one's prediction.

    Raises:
        BenchmarkFailed: a turn has none in the end.
    """

    def __init__(self, http: httpx.Client) -> None:
        self._http = http
        self.begin_session()

    def begin_session(self) -> None:
        """What is sent from now on belongs to another conversation."""
        self._turns = turns_of_new_session(self._http)

    def say(self, file: Path, lane: Lane = Lane.interactive) -> None:
        self._wait(post_sound(self._http, self._turns, file, lane))

    def write(self, text: str = TEXT) -> None:
        self._wait(self._http.post(self._turns, json={"text": text}))

    def seconds(self, files: list[Path], rounds: int = 1) -> list[float]:
        """How long each file takes, from its POST until its prediction is read."""
        return [timed(lambda file=file: self.say(file)) for _ in range(rounds) for file in files]

    def _wait(self, accepted: httpx.Response) -> None:
        location = accepted.raise_for_status().headers["Location"]
        deadline = time.monotonic() + PATIENCE_S
        turn = {"status": "queued"}
        while turn["status"] in OPEN and time.monotonic() < deadline:
            turn = self._http.get(location, params={"wait": 30}).raise_for_status().json()
        if turn["status"] != "succeeded":
            raise BenchmarkFailed(f"a turn of the benchmark {turn['status']}: {turn['error']}")


def turns_of_new_session(http: httpx.Client) -> str:
    """Where a new session's turns go."""
    return f"/v1/sessions/{http.post('/v1/sessions', json={}).raise_for_status().json()['id']}/turns"


def post_sound(http: httpx.Client, turns: str, file: Path, lane: Lane = Lane.interactive) -> httpx.Response:
    """Send a spoken turn, without waiting for its prediction."""
    sound = {"audio": (file.name, file.read_bytes(), "application/octet-stream")}
    return http.post(turns, files=sound, data={"lane": lane.value})


def embedded(settings: Settings, measure: Callable[[Service], Iterable[Measured]]) -> list[Measured]:
    """What is measured of an embedded run with data of its own."""
    found: list[Measured] = []
    with servers(settings) as (own, running):
        supervisor = Supervisor(own, running, "127.0.0.1", free_port())

        def measured() -> None:
            found.extend(measure(Service(supervisor.url, authorization(running), running, own.data_dir)))
            supervisor.stop()

        supervisor.run(on_ready=measured)
    return found


@contextmanager
def servers(settings: Settings) -> Generator[tuple[Settings, EmbeddedServers]]:
    """A migrated database and an empty broker, and the settings whose data are theirs."""
    with tempfile.TemporaryDirectory() as folder:
        own = settings.model_copy(update={"data_dir": Path(folder)})
        with EmbeddedServers(own.data_dir) as running:
            database = Database(running.database_url, pool_size=1)
            database.migrate()
            database.close()
            yield own, running


@contextmanager
def serving_api(settings: Settings, running: EmbeddedServers) -> Generator[str]:
    """The URL of an API alone, on these servers."""
    env = {
        "TENOR_DATA_DIR": str(settings.data_dir),
        "TENOR_DATABASE_URL": running.database_url.get_secret_value(),
        "TENOR_BROKER_URL": running.broker_url.get_secret_value(),
    }
    with serving(["services.cli", "serve", "--port"], env) as url:
        yield url


@contextmanager
def serving(module: list[str], env: dict[str, str]) -> Generator[str]:
    """The URL of an HTTP server in a process of its own, which takes its port last, once it answers.

    Raises:
        BenchmarkFailed: it does not.
    """
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    process = subprocess.Popen(
        [sys.executable, "-m", *module, str(port)], env=os.environ | env, stderr=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + START_S
        while not _answers(url):
            if time.monotonic() > deadline or process.poll() is not None:
                raise BenchmarkFailed(f"{module[0]} did not start: it ended, or did not answer for {START_S:.0f} s")
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


def authorization(servers: EmbeddedServers) -> dict[str, str]:
    """The headers of one who may do everything."""
    database = Database(servers.database_url, pool_size=1)
    with database.transaction() as transaction:
        tenant_id = transaction.accounts.ensure_tenant("bench")
        key = transaction.accounts.create_key(tenant_id, "bench", KeyRole.admin)
    database.close()
    return {"Authorization": f"Bearer {key}"}
