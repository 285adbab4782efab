"""`tenor bench dispatch`: what the queue, the threads and the micro-batches are worth, whatever the model."""

import os
import subprocess
import sys
import time
from collections.abc import Generator

import redis

from services.bench.figures import Figure
from services.bench.service import servers
from services.embedded.servers import EmbeddedServers
from shared.domain.job import Lane
from shared.errors import BenchmarkFailed
from shared.messaging.broker import STANDIN, STANDIN_DONE, celery_app
from shared.settings import Settings

THREADS = 32
TASKS = 200
"""Of the stand-in for each of its threads, and half as many of them in all."""


def dispatch(settings: Settings, rounds: int) -> Generator[Figure]:
    """Tasks through Celery whose model is a pause of 20 ms: 32 threads in batches, by turns with one task at a time."""
    with servers(settings) as (_, running):
        pairs = [(_rate(running, THREADS, TASKS * THREADS // 2), _rate(running, 1, TASKS)) for _ in range(rounds)]
    yield Figure.of(f"dispatch, {THREADS} at a time", "tasks/s", [many for many, _ in pairs])
    yield Figure.of("dispatch, 1 at a time", "tasks/s", [one for _, one in pairs])
    yield Figure.of(f"dispatch, {THREADS} to 1", "times", [many / one for many, one in pairs])


def _rate(running: EmbeddedServers, threads: int, count: int) -> float:
    broker = redis.Redis.from_url(running.broker_url.get_secret_value())
    broker.flushdb()
    app = celery_app(running.broker_url)
    for number in range(count):
        app.send_task(STANDIN, args=[str(number)], queue=Lane.interactive.value)
    env = {**os.environ, "TENOR_BROKER_URL": running.broker_url.get_secret_value()}
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
            raise BenchmarkFailed(f"the stand-in did {done} of {count} tasks in two minutes")
        time.sleep(0.005)
    return done
