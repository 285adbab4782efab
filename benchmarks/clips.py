"""`tenor bench clips`: time per clip and per text, in process and as a service, and the service's memory."""

import contextlib
import time
from collections.abc import Generator
from pathlib import Path

import psutil

from benchmarks.embedded_service import TEXT, Service, embedded_servers, measure_service, serve_api
from benchmarks.figures import Figure, timed
from services.embedded.servers import EmbeddedServers
from shared.settings import Settings

_MIB = 2**20


def measure_in_process(settings: Settings, files: list[Path], rounds: int) -> Generator[Figure]:
    """Yield the time of a clip and of a text in `tenor analyze`, one at a time and with the models loaded."""
    # Imported after the service was measured, since they are not part of the service's memory.
    from services.analyzer import Analyzer, InputTurn
    from services.turn_sources import read_recordings
    from shared.audio.sandbox import AudioSandbox
    from shared.modeling.model_selection import load_pipeline

    analyzer = Analyzer(load_pipeline(settings))

    def analyze(file: Path) -> None:
        for _, turn, _ in read_recordings([file], ["speaker"], audio):
            if isinstance(turn, Exception):
                raise turn
            analyzer.analyze(turn)

    with contextlib.closing(AudioSandbox()) as audio:
        analyze(files[0])
        clips = [timed(lambda file=file: analyze(file)) for _ in range(rounds) for file in files]
    yield Figure.of("analyze, a clip", "s", clips)
    texts = [timed(lambda: analyzer.analyze(InputTurn("speaker", TEXT))) * 1000 for _ in range(10 * rounds)]
    yield Figure.of("analyze, a text", "ms", texts)


def measure_api_start(settings: Settings, rounds: int) -> Figure:
    """Return the seconds from the start of `tenor serve` until it answers."""
    with embedded_servers(settings) as (own_settings, servers):

        def start() -> float:
            started = time.perf_counter()
            with serve_api(own_settings, servers):
                return time.perf_counter() - started

        return Figure.of("API start", "s", [start() for _ in range(rounds)])


def measure_as_service(settings: Settings, files: list[Path], rounds: int) -> list[Figure]:
    """Return the times from the POST of a turn until its prediction is read, and the memory of an embedded run."""

    def measure(service: Service) -> Generator[Figure]:
        with service.client() as client:
            client.send_text()
            yield Figure.of("service, an audio turn", "s", client.time_files(files, rounds))
            yield Figure.of("service, a text turn", "ms", [timed(client.send_text) * 1000 for _ in range(10 * rounds)])
        yield _memory(service.servers)

    return measure_service(settings, measure)


def _memory(servers: EmbeddedServers) -> Figure:
    """Return the memory of all processes of the run.

    It is the proportional set size where the system tells it, so that memory which processes share counts once.
    """
    processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
    for pid in servers.pids:
        processes += [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    total = 0
    for process in processes:
        with contextlib.suppress(psutil.Error):
            memory = process.memory_full_info()
            total += getattr(memory, "pss", memory.rss)
    return Figure.of("service, resident memory", "MiB", [total / _MIB])
