"""Whatever dies under `tenor run`: every accepted turn ends exactly once, soon, and without a person's help.

The settings are the defaults. Several tests disturb the same run, one after the other, each with a session of its own.
`make chaos` sends 500 turns in each test (`CHAOS_TURNS=500`); by default there are fewer.
"""

import os
import resource
import signal
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, LiteralString

import httpx2 as httpx
import psutil
import psycopg
import pytest

from services.embedded.servers import running_urls
from shared.settings import Settings
from tests.acceptance.conftest import ASSETS
from tests.acceptance.test_embedded_run import running
from tests.audio_clips import tone, wav
from tests.conftest import PATIENCE, wait_for

TURNS = int(os.environ.get("CHAOS_TURNS", "100"))
RECOVERY_S = float(os.environ.get("CHAOS_RECOVERY_S", "120"))
"""How long a repair may take. `make chaos`, which has the machine for itself, holds it at 30 s."""
TURNS_OF_SESSION = "FROM turns WHERE session_id = %(session)s"
JOBS = "FROM jobs JOIN turns ON turns.id = jobs.turn_id WHERE turns.session_id = %(session)s"
PRODUCT = {"TENOR_JOBS_LEASE_S": "15"}
"""The default: named, because `running` else shortens it."""


@dataclass
class StartedRun:
    """A `tenor run`."""

    process: "subprocess.Popen[str]"
    client: httpx.Client
    data_dir: Path

    def with_session(self) -> "Run":
        """Returns the run with a new session in it."""
        wait_for(lambda: self.client.get("/readyz").is_success, RECOVERY_S)
        session_id = self.client.post("/v1/sessions", json={}).json()["id"]
        return Run(self.process, self.client, self.data_dir, session_id)


@dataclass
class Run(StartedRun):
    """A `tenor run`, and one session in it."""

    session_id: str

    def child(self, word: str) -> psutil.Process:
        children = psutil.Process(self.process.pid).children()
        running = (child for child in children if child.status() != psutil.STATUS_ZOMBIE)
        (found,) = (child for child in running if word in " ".join(child.cmdline()))
        return found

    def server(self, pidfile: str) -> psutil.Process:
        return psutil.Process(int((self.data_dir / pidfile).read_text().split()[0]))

    @property
    def url(self) -> str:
        return f"/v1/sessions/{self.session_id}/turns"

    def say(self, number: int) -> str:
        """A turn's id once it is accepted, however often that has to be asked for."""
        deadline = time.monotonic() + RECOVERY_S * PATIENCE
        while True:
            try:
                response = self.client.post(self.url, json={"text": f"I have been waiting for {number} hours!"})
                if response.status_code == 202:
                    return response.json()["id"]
                assert response.json()["retryable"], response.text
            except httpx.TransportError:
                pass  # the API is being started again
            assert time.monotonic() < deadline, "nothing was accepted any more"
            time.sleep(0.2)

    @contextmanager
    def talking(self) -> Iterator[list["Future[str]"]]:
        """Turns that come by the hundreds meanwhile; on leaving, all are accepted."""
        with ThreadPoolExecutor(8) as pool:
            yield [pool.submit(self.say, number) for number in range(TURNS)]

    def rows(self, query: LiteralString) -> list[tuple[Any, ...]]:
        """Returns the rows of a query, in which `%(session)s` is the id of the session."""
        url = running_urls(Settings(data_dir=self.data_dir)).database.url.get_secret_value()
        with psycopg.connect(url) as connection:
            return connection.execute(query, {"session": self.session_id}).fetchall()

    def ended(self) -> int:
        return self.rows(f"SELECT count(*) {JOBS} AND jobs.status NOT IN ('queued', 'running')")[0][0]

    def waits_until_a_fifth_is_done(self) -> None:
        wait_for(lambda: self.ended() >= TURNS / 5, RECOVERY_S)

    def nothing_is_left(self) -> bool:
        with suppress(psycopg.OperationalError):  # while Postgres is away
            return self.rows(f"SELECT jobs.id {JOBS} AND jobs.status IN ('queued', 'running')") == []
        return False

    def assert_every_turn_ended_once(self, accepted: list["Future[str]"]) -> None:
        wait_for(self.nothing_is_left, RECOVERY_S)
        turns = {str(row[0]) for row in self.rows(f"SELECT id {TURNS_OF_SESSION}")}
        assert {future.result() for future in accepted} <= turns
        statuses = self.rows(f"SELECT jobs.status {JOBS} GROUP BY jobs.status")
        assert statuses == [("succeeded",)], self.rows(f"SELECT jobs.status, error_code, error_message {JOBS}")
        once = self.rows(
            "SELECT count(*), count(DISTINCT turn_id), count(DISTINCT bundle_id) FROM predictions "
            f"WHERE turn_id IN (SELECT id {TURNS_OF_SESSION})"
        )
        assert once == [(len(turns), len(turns), 1)]


@contextmanager
def started(data_dir: Path, **settings: str) -> Iterator[StartedRun]:
    with running(data_dir, **PRODUCT, **settings) as (process, client):
        yield StartedRun(process, client, data_dir)


@pytest.fixture(scope="module")
def shared_run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartedRun]:
    with started(tmp_path_factory.mktemp("run") / "data") as run:
        yield run


@pytest.fixture
def run(shared_run: StartedRun) -> Run:
    return shared_run.with_session()


def test_every_turn_ends_once_when_a_worker_is_killed(run: Run) -> None:
    with run.talking() as accepted:
        run.waits_until_a_fifth_is_done()
        run.child("workers").kill()
    run.assert_every_turn_ended_once(accepted)


def test_every_turn_ends_once_when_the_api_is_killed_before_publishing(run: Run) -> None:
    """Without a broker it accepts turns and cannot send them: so it is killed when none of them is sent."""
    run.process.send_signal(signal.SIGSTOP)  # it would start the broker again
    run.server("valkey/valkey.pid").kill()
    with run.talking() as accepted:
        pass
    assert run.rows("SELECT count(*) FROM outbox")[0][0] >= TURNS
    run.child("services.cli").kill()
    run.process.send_signal(signal.SIGCONT)
    run.assert_every_turn_ended_once(accepted)


def test_every_turn_ends_once_when_the_broker_is_flushed_and_restarted(run: Run) -> None:
    with run.talking() as accepted:
        run.waits_until_a_fifth_is_done()
        run.server("valkey/valkey.pid").kill()  # nothing of its memory is kept
    run.assert_every_turn_ended_once(accepted)


def test_every_turn_ends_once_when_postgres_is_restarted(run: Run) -> None:
    with run.talking() as accepted:
        run.waits_until_a_fifth_is_done()
        run.server("postgres/postmaster.pid").send_signal(signal.SIGINT)  # a fast shutdown: every connection ends
    run.assert_every_turn_ended_once(accepted)


def test_every_turn_ends_once_when_the_api_is_killed_while_it_accepts(run: Run) -> None:
    with run.talking() as accepted:
        run.waits_until_a_fifth_is_done()
        run.child("services.cli").kill()
    run.assert_every_turn_ended_once(accepted)


@pytest.mark.parametrize("minutes", [5, -5])
def test_every_turn_ends_once_when_a_workers_clock_is_wrong(tmp_path: Path, minutes: int) -> None:
    """A clock that is wrong from the start, and a lease that is claimed, renewed and run out under it."""
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "if 'workers' in sys.orig_argv:\n"
        "    import time, time_machine\n"
        f"    time_machine.travel(time.time() + {60 * minutes}, tick=True).start()\n"
    )
    with started(tmp_path / "data", PYTHONPATH=str(tmp_path)) as tenor:
        run = tenor.with_session()
        with run.talking() as accepted:
            run.waits_until_a_fifth_is_done()
            wrong = "abs(extract(epoch FROM lease_until - now())) > 60"
            assert run.rows(f"SELECT count(*) FROM jobs WHERE status = 'running' AND {wrong}") == [(0,)]
            run.child("workers").kill()
        run.assert_every_turn_ended_once(accepted)


def test_a_full_disk_refuses_uploads_and_accepts_no_turn_without_its_audio(run: Run) -> None:
    """A limit on every file that the API writes is what a full disk is to it. What needs no disk goes on.

    The longer recording does not even come in; the shorter one does, and is not stored.
    """
    sounds = [{"audio": ("a.wav", wav(tone(seconds)), "audio/wav")} for seconds in (1, 60)]
    limits = resource.prlimit(run.child("services.cli").pid, resource.RLIMIT_FSIZE, (8192, resource.RLIM_INFINITY))
    with run.talking() as accepted:
        refused = [run.client.post(run.url, files=sound) for sound in sounds * 5]
    assert {(answer.status_code, answer.json()["code"]) for answer in refused} == {(507, "storage_full")}
    assert all(answer.json()["retryable"] for answer in refused)
    assert run.rows("SELECT count(*) FROM recordings WHERE session_id = %(session)s") == [(0,)]
    assert run.rows(f"SELECT count(*) {TURNS_OF_SESSION}") == [(TURNS,)]
    assert not [path for path in (run.data_dir / "blobs").rglob("*") if path.is_file()]
    resource.prlimit(run.child("services.cli").pid, resource.RLIMIT_FSIZE, limits)
    recording = {"audio": ("a.ogg", (ASSETS / "english.ogg").read_bytes(), "audio/ogg")}
    assert run.client.post(run.url, files=recording).status_code == 202
    run.assert_every_turn_ended_once(accepted)
