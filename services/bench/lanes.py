"""`tenor bench lanes`: what somebody who waits notices of the bulk lane."""

import threading
import time
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from services.bench.figures import Figure
from services.bench.service import Service, embedded
from shared.domain.job import Lane
from shared.settings import Settings

BULK_CLIENTS = 8
"""Turns of bulk that are always under way: more than a worker takes in hand by default."""


def lanes(settings: Settings, files: list[Path], rounds: int) -> list[Figure]:
    """An embedded run: a spoken turn that somebody waits for, alone and while the bulk lane never runs dry."""

    def measure(service: Service) -> Generator[Figure]:
        with service.client() as client:
            client.say(files[0])
            alone = Figure.of("interactive, alone", "s", client.seconds(files, rounds))
            with _saturated(service, files) as done:
                started = time.perf_counter()
                beside = Figure.of("interactive, beside bulk", "s", client.seconds(files, rounds))
                rate = len(done) / (time.perf_counter() - started)
        yield alone
        yield beside
        yield Figure.of("interactive's 95 %, beside bulk to alone", "times", [beside.p95 / alone.p95])
        yield Figure.of("bulk meanwhile", "turns/s", [rate])

    return embedded(settings, measure)


@contextmanager
def _saturated(service: Service, files: list[Path]) -> Generator[list[int]]:
    """Meanwhile, bulk turns are always under way, each in a session of its own. The list grows with those that end."""
    done: list[int] = []
    ending = threading.Event()

    def feed(number: int) -> None:
        with service.client() as client:
            while not ending.is_set():
                client.say(files[(number + len(done)) % len(files)], Lane.bulk)
                client.begin_session()
                done.append(number)

    with ThreadPoolExecutor(BULK_CLIENTS) as pool:
        feeding = [pool.submit(feed, number) for number in range(BULK_CLIENTS)]
        try:
            yield done
        finally:
            ending.set()
    for fed in feeding:
        fed.result()
