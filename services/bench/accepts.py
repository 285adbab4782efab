"""`tenor bench accepts`: what a durable accept costs, against a route that inserts one row and promises nothing."""

import statistics
import subprocess
import sys
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from uuid import uuid4

import httpx2 as httpx

from services.bench import bare_route
from services.bench.figures import Figure
from services.bench.load import Load, Result
from services.bench.service import TEXT, authorization, servers, serving, serving_api, turns_of_new_session
from services.embedded.servers import EmbeddedServers
from shared.errors import BenchmarkFailed
from shared.settings import Settings

WARM_UP_S = 1.0


@dataclass(frozen=True)
class Target:
    """A server that takes turns: one place for each connection."""

    places: list[str]
    headers: dict[str, str]

    def take(self, seconds: float, rate: float | None = None) -> Result:
        """Load from a process of its own: as much as goes, or so many turns a second at their own pace."""
        load = Load(places=self.places, headers=self.headers, body={"text": TEXT}, seconds=seconds, rate=rate)
        command = [sys.executable, "-m", "services.bench.load"]
        told = subprocess.run(command, input=load.model_dump_json(), capture_output=True, text=True, check=False)
        if told.returncode:
            last = told.stderr.strip().splitlines()[-1]
            raise BenchmarkFailed(f"the load could not be put on: {last}")
        return Result.model_validate_json(told.stdout)


def accepts(settings: Settings, connections: int, seconds: float, rounds: int) -> Generator[Figure]:
    """Texts into the API, by turns with texts into a route that inserts one row; then each at half of its rate.

    No worker runs, and what is accepted waits in the queue.

    Args:
        settings: of the API; its data are the benchmark's own.
        connections: clients that send one turn after another, each into a session of its own.
        seconds: how long each side is loaded in a round.
        rounds: of both.
    """
    with servers(settings) as (own, running), ExitStack() as stack:
        tenor = stack.enter_context(_tenor(own, running, connections))
        bare = stack.enter_context(_bare(running, connections))
        for target in (tenor, bare):
            target.take(WARM_UP_S)
        pairs = [(tenor.take(seconds).rate, bare.take(seconds).rate) for _ in range(rounds)]
        ours, theirs = ([pair[side] for pair in pairs] for side in (0, 1))
        yield Figure.of("accepts", "turns/s", ours)
        yield Figure.of("inserts of the bare route", "rows/s", theirs)
        yield Figure.of("accepts to inserts", "times", [accepted / stored for accepted, stored in pairs])
        yield _at_half("an accept", tenor, ours, seconds)
        yield _at_half("an insert", bare, theirs, seconds)


def _at_half(name: str, target: Target, rates: list[float], seconds: float) -> Figure:
    half = statistics.median(rates) / 2
    latencies = target.take(seconds, half).latencies
    return Figure.of(f"{name}, at {half:.0f} a second", "ms", [1000 * latency for latency in latencies])


@contextmanager
def _tenor(settings: Settings, running: EmbeddedServers, connections: int) -> Iterator[Target]:
    headers = authorization(running)
    with serving_api(settings, running) as url:
        with httpx.Client(base_url=url, headers=headers, timeout=60, trust_env=False) as http:
            places = [url + turns_of_new_session(http) for _ in range(connections)]
        yield Target(places, headers)


@contextmanager
def _bare(running: EmbeddedServers, connections: int) -> Iterator[Target]:
    env = {bare_route.URL: running.database_url.get_secret_value()}
    with serving(["services.bench.bare_route"], env) as url:
        yield Target([f"{url}/sessions/{uuid4()}/turns" for _ in range(connections)], {})
