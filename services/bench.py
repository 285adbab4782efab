"""`tenor bench`: how fast and how large this Tenor is, on this machine, on the recordings given."""

import contextlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator
from pathlib import Path

import httpx2 as httpx
import psutil
from pydantic import BaseModel

from services.embedded import EmbeddedServers, free_port
from services.supervisor import Supervisor
from shared.domain.access import KeyRole
from shared.settings import Settings
from shared.store.database import Database

TEXT = "I have been waiting for an hour and nobody calls me back!"
_MB = 2**20


class Figure(BaseModel):
    """One measured quantity: the median and the worst of `count` values."""

    name: str
    unit: str
    median: float
    worst: float
    count: int

    @classmethod
    def of(cls, name: str, unit: str, values: list[float]) -> "Figure":
        return cls(name=name, unit=unit, median=statistics.median(values), worst=max(values), count=len(values))


def in_process(settings: Settings, files: list[Path], rounds: int) -> Generator[Figure]:
    """`tenor analyze`'s own way, models loaded: one clip or text at a time."""
    from services.analyze import Analyzer  # its models must not count as the service's

    analyzer = Analyzer(settings, "speaker", None)

    def analyze(file: Path) -> None:
        for _, rows in analyzer.files([file]):
            if isinstance(rows, Exception):
                raise rows

    analyze(files[0])
    clips = [_timed(lambda file=file: analyze(file)) for _ in range(rounds) for file in files]
    yield Figure.of("analyze, a clip", "s", clips)
    texts = [_timed(lambda: analyzer.text(TEXT)) * 1000 for _ in range(10 * rounds)]
    yield Figure.of("analyze, a text", "ms", texts)


def api_start(rounds: int) -> Figure:
    """From the start of `tenor serve` until /healthz answers."""
    return Figure.of("API start", "s", [_timed(_start_api) for _ in range(rounds)])


def as_a_service(settings: Settings, files: list[Path], rounds: int) -> list[Figure]:
    """An embedded run: from the POST of a turn until its prediction is read, and the memory all of it takes."""
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory() as folder:
        settings = settings.model_copy(update={"data_dir": Path(folder)})
        with EmbeddedServers(settings.data_dir) as servers:
            key = _key(servers)
            supervisor = Supervisor(settings, servers, "127.0.0.1", free_port())

            def measure() -> None:
                figures.extend(_turns(supervisor.url, key, files, rounds))
                figures.append(_memory(servers))
                supervisor.stop()

            supervisor.run(on_ready=measure)
    return figures


def _turns(url: str, key: str, files: list[Path], rounds: int) -> Generator[Figure]:
    with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=60) as client:
        turns = f"/v1/sessions/{client.post('/v1/sessions', json={}).json()['id']}/turns"

        def say(file: Path) -> httpx.Response:
            return client.post(turns, files={"audio": (file.name, file.read_bytes(), "application/octet-stream")})

        def write() -> httpx.Response:
            return client.post(turns, json={"text": TEXT})

        _done(client, write)
        spoken = [_timed(lambda file=file: _done(client, lambda: say(file))) for _ in range(rounds) for file in files]
        yield Figure.of("service, a spoken turn", "s", spoken)
        written = [_timed(lambda: _done(client, write)) * 1000 for _ in range(10 * rounds)]
        yield Figure.of("service, a text turn", "ms", written)


def _done(client: httpx.Client, send: Callable[[], httpx.Response]) -> None:
    location = send().raise_for_status().headers["Location"]
    turn = client.get(location, params={"wait": 30}).raise_for_status().json()
    if turn["status"] != "succeeded":
        raise RuntimeError(f"a turn of the benchmark {turn['status']}: {turn['error']}")


def _memory(servers: EmbeddedServers) -> Figure:
    """Proportional set size where there is one, so that memory which processes share counts once."""
    processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
    for pid in servers.pids:
        processes += [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    total = 0
    for process in processes:
        with contextlib.suppress(psutil.Error):
            memory = process.memory_full_info()
            total += getattr(memory, "pss", memory.rss)
    return Figure.of("service, resident memory", "MiB", [total / _MB])


def _key(servers: EmbeddedServers) -> str:
    database = Database(servers.database_url, pool_size=1)
    database.migrate()
    with database.transaction() as transaction:
        key = transaction.accounts.create_key(transaction.accounts.ensure_tenant("bench"), "bench", KeyRole.admin)
    database.close()
    return key


def _start_api() -> None:
    port = free_port()
    command = [sys.executable, "-m", "services.cli", "serve", "--port", str(port)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"http://127.0.0.1:{port}/healthz").is_success:
                    return
            time.sleep(0.01)
        raise RuntimeError("the API did not start within a minute")
    finally:
        process.terminate()
        process.wait()


def _timed(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start
