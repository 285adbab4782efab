"""Counts the work of Postgres, Redis and the processes for one audio turn, on an embedded run."""

# redis is not fully typed.
# pyright: reportUnknownMemberType=false

import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx2 as httpx
import psutil
import psycopg
import redis

from benchmarks.capacity.costs import Traffic
from benchmarks.embedded_service import Service, create_session, measure_service, post_audio
from services.embedded.servers import EmbeddedServers
from shared.errors import BenchmarkFailed
from shared.settings import Settings

IDLE_S = 20.0
"""How long the traffic without turns is counted."""
SETTLE_S = 12.0
"""Postgres' processes report their statistics within ten idle seconds."""
TIMEOUT_S = 600.0

_POSTGRES_COUNTERS = ("transactions", "rows", "wal_bytes", "table_bytes", "index_bytes")
_POSTGRES_QUERY = """
    SELECT xact_commit, tup_inserted + tup_updated + tup_deleted AS rows,
        pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')::float AS wal,
        (SELECT sum(pg_table_size(oid)) FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace)
            ::float AS tables,
        (SELECT sum(pg_indexes_size(oid)) FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace)
            ::float AS indexes
    FROM pg_stat_database WHERE datname = current_database()
"""


def measure_traffic(settings: Settings, files: Sequence[Path], turns: int) -> tuple[Traffic, Traffic]:
    """Return the traffic of an audio turn, and the traffic of a second without turns.

    Args:
        settings: of Tenor; the measurement uses a data folder of its own.
        files: audio clips, which are sent in turn, each into a new session; no client waits for a result.
        turns: how many are sent.

    Raises:
        BenchmarkFailed: the turns were not done in time.
    """
    per_turn, idle = measure_service(settings, lambda service: _measure(service, files, turns))
    return per_turn, idle


def _measure(service: Service, files: Sequence[Path], turns: int) -> tuple[Traffic, Traffic]:
    with service.connect() as http:
        _send(http, files, len(files))  # warm up
        _wait_for(service.servers, len(files))
        counters = _Counters(service)
        first, started = counters.read(), time.monotonic()
        time.sleep(IDLE_S)
        second, idle_until = counters.read(), time.monotonic()
        idle = _difference(second, first, 1 / (idle_until - started))
        _send(http, files, turns)
        _wait_for(service.servers, len(files) + turns)
        third = counters.read()
    idle_part = {name: value * (time.monotonic() - idle_until) for name, value in idle.items()}
    per_turn = _difference(_difference(third, second), idle_part, 1 / turns)
    return _traffic(per_turn), _traffic(idle)


def _send(http: httpx.Client, files: Sequence[Path], turns: int) -> None:
    for number in range(turns):
        post_audio(http, create_session(http), files[number % len(files)]).raise_for_status()


def _wait_for(servers: EmbeddedServers, turns: int) -> None:
    """Wait until `turns` jobs have ended and Postgres has reported its statistics."""
    deadline = time.monotonic() + TIMEOUT_S
    # One transaction, so that all these queries count as one.
    with psycopg.connect(servers.database_url.get_secret_value()) as connection:
        while (ended := _ended(connection)) < turns:
            if time.monotonic() > deadline:
                raise BenchmarkFailed(f"{ended} of {turns} turns ended within {TIMEOUT_S:g} s")
            time.sleep(0.2)
    time.sleep(SETTLE_S)


def _ended(connection: psycopg.Connection[Any]) -> int:
    row = connection.execute("SELECT count(*) FROM jobs WHERE status NOT IN ('queued', 'running')").fetchone()
    assert row is not None
    return row[0]


class _Counters:
    """Reads the counters of `Traffic`, by its field names. They only grow."""

    def __init__(self, service: Service) -> None:
        logs = service.data_dir / "logs"
        self._servers = service.servers
        self._broker = redis.Redis.from_url(service.servers.broker_url.get_secret_value())
        postgres, valkey = service.servers.pids
        api, worker = (int((logs / f"{name}.pid").read_text()) for name in ("api", "worker"))
        self._pids = {"postgres": postgres, "redis": valkey, "api": api, "worker": worker}

    def read(self) -> dict[str, float]:
        with psycopg.connect(self._servers.database_url.get_secret_value()) as connection:
            row = connection.execute(_POSTGRES_QUERY).fetchone()
        assert row is not None
        stats: Any = self._broker.info("stats")
        counted: dict[str, float] = dict(zip(_POSTGRES_COUNTERS, row, strict=True))
        counted["redis_commands"] = stats["total_commands_processed"]
        counted["redis_bytes"] = stats["total_net_input_bytes"] + stats["total_net_output_bytes"]
        return counted | {f"{name}_cpu_s": _cpu_s(pid) for name, pid in self._pids.items()}


def _cpu_s(pid: int) -> float:
    """Return the CPU seconds of a process and its children, those that have ended included."""
    process, seconds = psutil.Process(pid), 0.0
    for child in process.children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # it has ended, and counts among the ended children
            times = child.cpu_times()
            seconds += times.user + times.system
    names = ("user", "system", "children_user", "children_system")
    return seconds + sum(getattr(process.cpu_times(), name, 0.0) for name in names)


def _difference(after: dict[str, float], before: dict[str, float], scale: float = 1.0) -> dict[str, float]:
    return {name: float(value - before[name]) * scale for name, value in after.items()}


def _traffic(counted: dict[str, float]) -> Traffic:
    return Traffic(**{name: float(f"{max(0.0, value):.3g}") for name, value in counted.items()})
