"""`tenor bench clips`: time per clip and text, in process and as a service, and memory."""

import contextlib
import time
from collections.abc import Generator
from pathlib import Path

import psutil

from services.bench.figures import Figure, timed
from services.bench.service import TEXT, Service, embedded, servers, serving_api
from services.embedded.servers import EmbeddedServers
from shared.settings import Settings

_MB = 2**20


def in_process(settings: Settings, files: list[Path], rounds: int) -> Generator[Figure]:
    """`tenor analyze`'s own way, models loaded: one clip or text at a time."""
    from services.analyze import Analyzer  # its models must not count as the service's

    analyzer = Analyzer(settings, "speaker", None)

    def analyze(file: Path) -> None:
        for _, rows in analyzer.files([file]):
            if isinstance(rows, Exception):
                raise rows

    analyze(files[0])
    clips = [timed(lambda file=file: analyze(file)) for _ in range(rounds) for file in files]
    yield Figure.of("analyze, a clip", "s", clips)
    texts = [timed(lambda: analyzer.text(TEXT)) * 1000 for _ in range(10 * rounds)]
    yield Figure.of("analyze, a text", "ms", texts)


def api_start(settings: Settings, rounds: int) -> Figure:
    """From the start of `tenor serve` until it answers."""
    with servers(settings) as (own, running):

        def start() -> float:
            started = time.perf_counter()
            with serving_api(own, running):
                return time.perf_counter() - started

        return Figure.of("API start", "s", [start() for _ in range(rounds)])


def as_a_service(settings: Settings, files: list[Path], rounds: int) -> list[Figure]:
    """An embedded run: from the POST of a turn until its prediction is read, and the memory all of it takes."""

    def measure(service: Service) -> Generator[Figure]:
        with service.client() as client:
            client.write()
            yield Figure.of("service, a spoken turn", "s", client.seconds(files, rounds))
            yield Figure.of("service, a text turn", "ms", [timed(client.write) * 1000 for _ in range(10 * rounds)])
        yield _memory(service.servers)

    return embedded(settings, measure)


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
