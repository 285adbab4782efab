"""`tenor bench accepts`: turns that the API accepts durably per second, compared with a route that inserts one row."""

import statistics
import subprocess
import sys
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from uuid import uuid4

import httpx2 as httpx

from benchmarks import bare_route
from benchmarks.embedded_service import TEXT, admin_headers, create_session, embedded_servers, serve, serve_api
from benchmarks.figures import Figure
from benchmarks.load_generator import Load, Result
from services.embedded.servers import EmbeddedServers
from shared.errors import BenchmarkFailed
from shared.settings import Settings

WARM_UP_S = 1.0


@dataclass(frozen=True)
class Target:
    """A server that accepts turns: one URL for each connection."""

    urls: list[str]
    headers: dict[str, str]

    def measure(self, seconds: float, rate: float | None = None) -> Result:
        """Load the target from a separate process.

        Args:
            seconds: how long.
            rate: requests per second; None sends each request as soon as the one before on its connection is answered.

        Raises:
            BenchmarkFailed: the load generator failed.
        """
        load = Load(urls=self.urls, headers=self.headers, body={"text": TEXT}, seconds=seconds, rate=rate)
        command = [sys.executable, "-m", "benchmarks.load_generator"]
        process = subprocess.run(command, input=load.model_dump_json(), capture_output=True, text=True, check=False)
        if process.returncode:
            raise BenchmarkFailed(f"the load generator failed: {process.stderr.strip().splitlines()[-1]}")
        return Result.model_validate_json(process.stdout)


def measure_accepts(settings: Settings, connections: int, seconds: float, rounds: int) -> Generator[Figure]:
    """Yield the rates of the API and of the bare route, measured alternately, and both latencies at half the rate.

    No worker runs: accepted turns stay in the queue.

    Args:
        settings: of the API; the benchmark uses a data folder of its own.
        connections: concurrent clients; each sends one turn after another into a session of its own.
        seconds: how long each server is loaded in a round.
        rounds: how often each server is loaded.
    """
    with embedded_servers(settings) as (own_settings, servers), ExitStack() as stack:
        tenor = stack.enter_context(_tenor(own_settings, servers, connections))
        bare = stack.enter_context(_bare_route(servers, connections))
        for target in (tenor, bare):
            target.measure(WARM_UP_S)
        pairs = [(tenor.measure(seconds).rate, bare.measure(seconds).rate) for _ in range(rounds)]
        accepts, inserts = ([pair[side] for pair in pairs] for side in (0, 1))
        yield Figure.of("accepts", "turns/s", accepts)
        yield Figure.of("inserts of the bare route", "rows/s", inserts)
        yield Figure.of("accepts to inserts", "times", [accepted / inserted for accepted, inserted in pairs])
        yield _latency_at_half_rate("an accept", tenor, accepts, seconds)
        yield _latency_at_half_rate("an insert", bare, inserts, seconds)


def _latency_at_half_rate(name: str, target: Target, rates: list[float], seconds: float) -> Figure:
    half = statistics.median(rates) / 2
    latencies = target.measure(seconds, half).latencies
    return Figure.of(f"{name}, at {half:.0f} a second", "ms", [1000 * latency for latency in latencies])


@contextmanager
def _tenor(settings: Settings, servers: EmbeddedServers, connections: int) -> Generator[Target]:
    headers = admin_headers(servers)
    with serve_api(settings, servers) as url:
        with httpx.Client(base_url=url, headers=headers, timeout=60, trust_env=False) as http:
            urls = [f"{url}/v1/sessions/{create_session(http)}/turns" for _ in range(connections)]
        yield Target(urls, headers)


@contextmanager
def _bare_route(servers: EmbeddedServers, connections: int) -> Generator[Target]:
    env = {bare_route.DATABASE_URL: servers.database_url.get_secret_value()}
    with serve(["benchmarks.bare_route"], env) as url:
        yield Target([f"{url}/sessions/{uuid4()}/turns" for _ in range(connections)], {})
