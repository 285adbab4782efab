"""`tenor bench`: how fast and how large this Tenor is, on this machine, on the recordings given."""

import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx2 as httpx
import numpy as np
import psutil
import redis
from pydantic import BaseModel

from services.embedded import EmbeddedServers, free_port
from services.supervisor import Supervisor
from shared.domain.access import KeyRole
from shared.domain.job import OPEN, Lane
from shared.queue import STANDIN, STANDIN_DONE, celery_app
from shared.settings import Settings
from shared.store.database import Database

TEXT = "I have been waiting for an hour and nobody calls me back!"
_MB = 2**20
BULK_CLIENTS = 8
"""Turns of bulk that are always under way: more than a worker takes in hand by default."""
PATIENCE_S = 300.0
"""Longest that a turn of a benchmark may take."""
DISPATCHED = 200
"""Tasks of the stand-in for each of its threads, at least and at most 3,200."""


class Figure(BaseModel):
    """One measured quantity: the median, the 95th percentile and the worst of `count` values."""

    name: str
    unit: str
    median: float
    p95: float
    worst: float
    count: int

    @classmethod
    def of(cls, name: str, unit: str, values: list[float]) -> "Figure":
        median, p95 = statistics.median(values), float(np.percentile(values, 95))
        return cls(name=name, unit=unit, median=median, p95=p95, worst=max(values), count=len(values))


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

    def measure(client: httpx.Client, servers: EmbeddedServers) -> Generator[Figure]:
        yield from _turns(client, files, rounds)
        yield _memory(servers)

    return _embedded(settings, measure)


def lanes(settings: Settings, files: list[Path], rounds: int) -> list[Figure]:
    """An embedded run: a spoken turn that somebody waits for, alone and while the bulk lane never runs dry."""

    def measure(client: httpx.Client, servers: EmbeddedServers) -> Generator[Figure]:
        _done(client, lambda: _say(client, _session(client), files[0]))
        yield Figure.of("interactive, alone", "s", _waited_for(client, files, rounds))
        with _saturated(client, files) as done:
            started = time.perf_counter()
            yield Figure.of("interactive, beside bulk", "s", _waited_for(client, files, rounds))
            yield Figure.of("bulk meanwhile", "turns/s", [len(done) / (time.perf_counter() - started)])

    return _embedded(settings, measure)


def dispatch() -> Generator[Figure]:
    """Tasks through Celery whose model is a pause of 20 ms: 32 threads in batches against one task at a time."""
    with tempfile.TemporaryDirectory() as folder, EmbeddedServers(Path(folder)) as servers:
        for threads in (32, 1):
            rate = _dispatched(servers, threads, min(3200, DISPATCHED * threads))
            yield Figure.of(f"dispatch, {threads} at a time", "tasks/s", [rate])


def _dispatched(servers: EmbeddedServers, threads: int, count: int) -> float:
    broker = redis.Redis.from_url(servers.broker_url.get_secret_value())
    broker.flushdb()
    app = celery_app(servers.broker_url)
    for number in range(count):
        app.send_task(STANDIN, args=[str(number)], queue=Lane.interactive.value)
    env = {**os.environ, "TENOR_BROKER_URL": servers.broker_url.get_secret_value()}
    command = [sys.executable, "-m", "workers.standin", str(threads)]
    process = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL)  # where Celery greets
    try:
        begun = _counted(broker, 1)
        started = time.perf_counter()
        _counted(broker, count)
        return (count - begun) / (time.perf_counter() - started)
    finally:
        process.terminate()
        process.wait()


def _counted(broker: redis.Redis, count: int) -> int:
    """Wait until the stand-in has done so many; how many they are by then."""
    deadline = time.monotonic() + 120
    while (done := int(broker.get(STANDIN_DONE) or 0)) < count:  # pyright: ignore[reportArgumentType] - its async union
        if time.monotonic() > deadline:
            raise RuntimeError(f"the stand-in did {done} of {count} tasks in two minutes")
        time.sleep(0.005)
    return done


def _embedded(settings: Settings, measure: Callable[[httpx.Client, EmbeddedServers], Iterable[Figure]]) -> list[Figure]:
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory() as folder:
        settings = settings.model_copy(update={"data_dir": Path(folder)})
        with EmbeddedServers(settings.data_dir) as servers:
            headers = {"Authorization": f"Bearer {_key(servers)}"}
            supervisor = Supervisor(settings, servers, "127.0.0.1", free_port())

            def measured() -> None:
                with httpx.Client(base_url=supervisor.url, headers=headers, timeout=60) as client:
                    figures.extend(measure(client, servers))
                supervisor.stop()

            supervisor.run(on_ready=measured)
    return figures


def _turns(client: httpx.Client, files: list[Path], rounds: int) -> Generator[Figure]:
    turns = _session(client)

    def write() -> httpx.Response:
        return client.post(turns, json={"text": TEXT})

    _done(client, write)
    yield Figure.of("service, a spoken turn", "s", _waited_for(client, files, rounds))
    written = [_timed(lambda: _done(client, write)) * 1000 for _ in range(10 * rounds)]
    yield Figure.of("service, a text turn", "ms", written)


def _waited_for(client: httpx.Client, files: list[Path], rounds: int) -> list[float]:
    turns = _session(client)
    return [
        _timed(lambda file=file: _done(client, lambda: _say(client, turns, file)))
        for _ in range(rounds)
        for file in files
    ]


@contextmanager
def _saturated(client: httpx.Client, files: list[Path]) -> Generator[list[int]]:
    """Meanwhile, bulk turns are always under way, each in a session of its own. The list grows with those that end."""
    done: list[int] = []
    ending = threading.Event()

    def feed(number: int) -> None:
        while not ending.is_set():
            file = files[(number + len(done)) % len(files)]
            _done(client, lambda file=file: _say(client, _session(client), file, Lane.bulk))
            done.append(number)

    with ThreadPoolExecutor(BULK_CLIENTS) as pool:
        feeding = [pool.submit(feed, number) for number in range(BULK_CLIENTS)]
        try:
            yield done
        finally:
            ending.set()
    for fed in feeding:
        fed.result()


def _session(client: httpx.Client) -> str:
    """Where a new session's turns go."""
    return f"/v1/sessions/{client.post('/v1/sessions', json={}).raise_for_status().json()['id']}/turns"


def _say(client: httpx.Client, turns: str, file: Path, lane: Lane = Lane.interactive) -> httpx.Response:
    sound = {"audio": (file.name, file.read_bytes(), "application/octet-stream")}
    return client.post(turns, files=sound, data={"lane": lane.value})


def _done(client: httpx.Client, send: Callable[[], httpx.Response]) -> None:
    location = send().raise_for_status().headers["Location"]
    deadline = time.monotonic() + PATIENCE_S
    turn = {"status": "queued"}
    while turn["status"] in OPEN and time.monotonic() < deadline:
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
