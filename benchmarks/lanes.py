"""`tenor bench lanes`: latency of interactive turns, alone and while bulk turns keep the worker busy."""

import threading
import time
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from benchmarks.embedded_service import Service, measure_service
from benchmarks.figures import Figure
from shared.domain.job import Lane
from shared.settings import Settings

BULK_CLIENTS = 8
"""Bulk turns in progress at any time: more than a worker's default number of bulk threads."""


def measure_lanes(settings: Settings, files: list[Path], rounds: int) -> list[Figure]:
    """Return the latency of interactive audio turns, alone and beside a bulk lane that is never empty."""

    def measure(service: Service) -> Generator[Figure]:
        with service.client() as client:
            client.send_audio(files[0])
            alone = Figure.of("interactive, alone", "s", client.time_files(files, rounds))
            with _bulk_load(service, files) as done:
                started = time.perf_counter()
                beside = Figure.of("interactive, beside bulk", "s", client.time_files(files, rounds))
                rate = len(done) / (time.perf_counter() - started)
        yield alone
        yield beside
        yield Figure.of("interactive's 95 %, beside bulk to alone", "times", [beside.p95 / alone.p95])
        yield Figure.of("bulk meanwhile", "turns/s", [rate])

    return measure_service(settings, measure)


@contextmanager
def _bulk_load(service: Service, files: list[Path]) -> Generator[list[int]]:
    """Keep `BULK_CLIENTS` bulk turns in progress, each in a new session; the yielded list grows by one for each."""
    done: list[int] = []
    stop = threading.Event()

    def send(number: int) -> None:
        with service.client() as client:
            while not stop.is_set():
                client.send_audio(files[(number + len(done)) % len(files)], Lane.bulk)
                client.start_session()
                done.append(number)

    with ThreadPoolExecutor(BULK_CLIENTS) as pool:
        clients = [pool.submit(send, number) for number in range(BULK_CLIENTS)]
        try:
            yield done
        finally:
            stop.set()
    for client in clients:
        client.result()
