"""`tenor bench dispatch`: tasks per second through the broker, the threads and the micro-batches, with a stub model."""

# redis-py is not fully typed.
# pyright: reportUnknownMemberType=false

import os
import subprocess
import sys
import time
from collections.abc import Generator
from uuid import uuid4

import redis

from benchmarks.embedded_service import embedded_servers
from benchmarks.figures import Figure
from benchmarks.stub_worker import COUNTER
from services.embedded.servers import EmbeddedServers
from shared.domain.job import Lane, Message
from shared.errors import BenchmarkFailed
from shared.messaging.broker import Broker
from shared.settings import Settings

THREADS = 32
TASKS = 200
"""Tasks that one thread does alone; with more threads, half as many for each thread."""
TIMEOUT_S = 120.0


def measure_queue_overhead(settings: Settings, rounds: int) -> Generator[Figure]:
    """Yield the tasks per second of 32 threads that batch, and of one thread that does not, measured alternately.

    The model of each task is a pause of 20 ms.
    """
    with embedded_servers(settings) as (_, servers):
        pairs = [(_rate(servers, THREADS, TASKS * THREADS // 2), _rate(servers, 1, TASKS)) for _ in range(rounds)]
    yield Figure.of(f"dispatch, {THREADS} at a time", "tasks/s", [many for many, _ in pairs])
    yield Figure.of("dispatch, 1 at a time", "tasks/s", [one for _, one in pairs])
    yield Figure.of(f"dispatch, {THREADS} to 1", "times", [many / one for many, one in pairs])


def _rate(servers: EmbeddedServers, threads: int, count: int) -> float:
    broker = redis.Redis.from_url(servers.broker_url.get_secret_value())
    broker.flushdb()
    messages = [Message(id=uuid4(), task="stub", job_id=uuid4(), queue=Lane.interactive.value) for _ in range(count)]
    if not Broker(servers.broker_url).publish(messages):
        raise BenchmarkFailed("the tasks could not be published")
    env = {**os.environ, "TENOR_BROKER_URL": servers.broker_url.get_secret_value()}
    process = subprocess.Popen([sys.executable, "-m", "benchmarks.stub_worker", str(threads)], env=env)
    try:
        done_before = _wait_for(broker, 1)
        started = time.perf_counter()
        _wait_for(broker, count)
        return (count - done_before) / (time.perf_counter() - started)
    finally:
        process.terminate()
        process.wait()


def _wait_for(broker: redis.Redis, count: int) -> int:
    """Wait until the stub worker has done `count` tasks, and return how many it has done by then.

    Raises:
        BenchmarkFailed: it did not do them in time.
    """
    deadline = time.monotonic() + TIMEOUT_S
    while (done := int(broker.get(COUNTER) or 0)) < count:  # pyright: ignore[reportArgumentType] - its async union
        if time.monotonic() > deadline:
            raise BenchmarkFailed(f"the stub worker did {done} of {count} tasks within {TIMEOUT_S:.0f} s")
        time.sleep(0.005)
    return done
