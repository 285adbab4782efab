"""`tenor bench chain`: clips per second from audio to emotion, compared with a chain of plain libraries."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from itertools import chain
from pathlib import Path
from statistics import median

from benchmarks.embedded_service import Client, Service, measure_service
from benchmarks.figures import Figure
from shared.errors import BenchmarkFailed
from shared.settings import Settings

TimeFiles = Callable[[list[Path]], list[float]]
"""Analyses files one after another and returns the seconds of each."""


def compare_with_plain_chain(settings: Settings, files: list[Path], rounds: int, clients: int) -> list[Figure]:
    """Return the rates and latencies of an embedded run and of the plain chain, measured alternately.

    In each round every file goes through the plain chain (one clip at a time), through Tenor from one client, and
    through Tenor from each of `clients` concurrent clients, which wait for one turn before they send the next. Neither
    side is given the language.

    Args:
        settings: of Tenor.
        files: audio clips of a few seconds.
        rounds: how often all three are measured.
        clients: concurrent clients of Tenor.
    """

    def measure(service: Service) -> Generator[Figure]:
        with _plain_chain() as time_plain, ExitStack() as stack:
            many = [stack.enter_context(service.client()) for _ in range(clients)]
            for warm_up in (time_plain, many[0].time_files):
                warm_up(files[:1])
            measured = [
                (time_plain(files), many[0].time_files(files), _clips_per_second(many, files)) for _ in range(rounds)
            ]
        yield from _figures(*zip(*measured, strict=True), clients=clients)

    return measure_service(settings, measure)


def _figures(
    plain: Sequence[list[float]], tenor: Sequence[list[float]], tenor_rates: Sequence[float], clients: int
) -> Generator[Figure]:
    """Yield the figures of the rounds: seconds per clip of both sides, and the clips per second of many clients."""
    plain_rates = [len(seconds) / sum(seconds) for seconds in plain]
    rate_ratios = [ours / theirs for ours, theirs in zip(tenor_rates, plain_rates, strict=True)]
    latency_ratios = [median(ours) / median(theirs) for theirs, ours in zip(plain, tenor, strict=True)]
    yield Figure.of("plain chain", "clips/s", plain_rates)
    yield Figure.of(f"Tenor, {clients} clients", "clips/s", list(tenor_rates))
    yield Figure.of("Tenor to plain chain", "times", rate_ratios)
    yield Figure.of("plain chain, a clip", "s", list(chain(*plain)))
    yield Figure.of("Tenor, one client's clip", "s", list(chain(*tenor)))
    yield Figure.of("Tenor's median to the plain chain's", "times", latency_ratios)


def _clips_per_second(clients: list[Client], files: list[Path]) -> float:
    """Return the clips per second of all clients together; each client sends every file, from a different first one."""

    def send(number: int) -> None:
        first = number % len(files)
        clients[number].time_files(files[first:] + files[:first])

    started = time.perf_counter()
    with ThreadPoolExecutor(len(clients)) as pool:
        list(pool.map(send, range(len(clients))))
    return len(clients) * len(files) / (time.perf_counter() - started)


@contextmanager
def _plain_chain() -> Generator[TimeFiles]:
    """Start the plain chain in a separate process, with its models loaded."""
    command = [sys.executable, "-m", "benchmarks.plain_chain"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        requests, answers = process.stdin, process.stdout

        def time_files(files: list[Path]) -> list[float]:
            requests.write(json.dumps([str(file) for file in files]) + "\n")
            requests.flush()
            answer = answers.readline()
            if not answer:
                raise BenchmarkFailed("the process of the plain chain ended: see its message above")
            return json.loads(answer)

        try:
            yield time_files
        finally:
            requests.close()
