"""`tenor bench chain`: from recording to emotion, against what one would write without Tenor."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from itertools import chain
from pathlib import Path
from statistics import median

from services.bench.figures import Figure
from services.bench.service import Client, Service, embedded
from shared.errors import BenchmarkFailed
from shared.settings import Settings

Seconds = Callable[[list[Path]], list[float]]
"""How long each of some files takes."""


def against_plain_chain(settings: Settings, files: list[Path], rounds: int, clients: int) -> list[Figure]:
    """An embedded run by turns with the plain chain, which takes one clip at a time.

    In each round, every file goes through the plain chain, through Tenor from one client, and through Tenor once from
    each of many clients, who each wait for one turn before they send the next. Neither side is told the language.

    Args:
        settings: of Tenor.
        files: spoken clips.
        rounds: of all three.
        clients: how many there are at once.
    """

    def measure(service: Service) -> Generator[Figure]:
        with _plain_chain() as plain, ExitStack() as stack:
            many = [stack.enter_context(service.client()) for _ in range(clients)]
            for seconds in (plain, many[0].seconds):
                seconds(files[:1])
            measured = [(plain(files), many[0].seconds(files), _rate(many, files)) for _ in range(rounds)]
        yield from _figures(*zip(*measured, strict=True), clients=clients)

    return embedded(settings, measure)


def _figures(
    chained: Sequence[list[float]], served: Sequence[list[float]], rates: Sequence[float], clients: int
) -> Generator[Figure]:
    """Of each round: the plain chain's seconds, those of one client of Tenor, and many clients' clips a second."""
    plain_rates = [len(seconds) / sum(seconds) for seconds in chained]
    yield Figure.of("plain chain", "clips/s", plain_rates)
    yield Figure.of(f"Tenor, {clients} clients", "clips/s", list(rates))
    yield Figure.of("Tenor to plain chain", "times", [ours / its for ours, its in zip(rates, plain_rates, strict=True)])
    yield Figure.of("plain chain, a clip", "s", list(chain(*chained)))
    yield Figure.of("Tenor, one client's clip", "s", list(chain(*served)))
    shares = [median(ours) / median(its) for its, ours in zip(chained, served, strict=True)]
    yield Figure.of("Tenor's median to the plain chain's", "times", shares)


def _rate(clients: list[Client], files: list[Path]) -> float:
    """Clips a second where each client sends every file, each from another one on."""

    def send(number: int) -> None:
        first = number % len(files)
        clients[number].seconds(files[first:] + files[:first])

    started = time.perf_counter()
    with ThreadPoolExecutor(len(clients)) as pool:
        list(pool.map(send, range(len(clients))))
    return len(clients) * len(files) / (time.perf_counter() - started)


@contextmanager
def _plain_chain() -> Iterator[Seconds]:
    """The plain chain in a process of its own, loaded; it does nothing but when it is asked."""
    command = [sys.executable, "-m", "services.bench.plain_chain"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        asked, answers = process.stdin, process.stdout

        def seconds(files: list[Path]) -> list[float]:
            asked.write(json.dumps([str(file) for file in files]) + "\n")
            asked.flush()
            answer = answers.readline()
            if not answer:
                raise BenchmarkFailed("the plain chain ended: its reason stands above")
            return json.loads(answer)

        try:
            yield seconds
        finally:
            asked.close()
