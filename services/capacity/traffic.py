"""What one spoken turn makes Postgres, Redis and the processes do, counted on an embedded run."""

import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx2 as httpx
import psutil
import psycopg
import redis

from services.bench.service import Service, embedded, post_sound, turns_of_new_session
from services.capacity.costs import Traffic
from services.embedded.servers import EmbeddedServers
from shared.errors import BenchmarkFailed
from shared.settings import Settings

IDLE_S = 20.0
"""For so long it is counted what goes on with nothing to do."""
SETTLE_S = 12.0
"""Postgres' processes report what they counted after ten idle seconds at the latest."""
PATIENCE_S = 600.0

_POSTGRES = ("transactions", "rows", "wal_bytes", "table_bytes", "index_bytes")
_COUNTED = """
    SELECT xact_commit, tup_inserted + tup_updated + tup_deleted AS rows,
        pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')::float AS wal,
        (SELECT sum(pg_table_size(oid)) FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace)
            ::float AS tables,
        (SELECT sum(pg_indexes_size(oid)) FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace)
            ::float AS indexes
    FROM pg_stat_database WHERE datname = current_database()
"""


def count_traffic(settings: Settings, files: Sequence[Path], turns: int) -> tuple[Traffic, Traffic]:
    """What a spoken turn takes, and what a second takes in which nothing is to be done.

    Args:
        files: spoken clips, which are sent by turns, each into a session of its own. Nobody waits for them.
        turns: that are sent.
    """
    per_turn, idle = embedded(settings, lambda service: _counted(service, files, turns))
    return per_turn, idle


def _counted(service: Service, files: Sequence[Path], turns: int) -> tuple[Traffic, Traffic]:
    with service.connection() as http:
        _send(http, files, len(files))  # what is done but once
        _wait_for(service.servers, len(files))
        counter = _Counter(service)
        before, began = counter.read(), time.monotonic()
        time.sleep(IDLE_S)
        idle, then = counter.read(), time.monotonic()
        per_s = _less(idle, before, 1 / (then - began))
        _send(http, files, turns)
        _wait_for(service.servers, len(files) + turns)
        after = counter.read()
    quiet = {name: value * (time.monotonic() - then) for name, value in per_s.items()}
    busy = _less(_less(after, idle), quiet, 1 / turns)
    return _traffic(busy), _traffic(per_s)


def _send(http: httpx.Client, files: Sequence[Path], turns: int) -> None:
    for number in range(turns):
        post_sound(http, turns_of_new_session(http), files[number % len(files)]).raise_for_status()


def _wait_for(servers: EmbeddedServers, turns: int) -> None:
    """Until so many have ended, and all that was counted has been reported."""
    deadline = time.monotonic() + PATIENCE_S
    # One transaction, so that asking counts but once.
    with psycopg.connect(servers.database_url.get_secret_value()) as connection:
        while (ended := _ended(connection)) < turns:
            if time.monotonic() > deadline:
                raise BenchmarkFailed(f"{ended} of {turns} turns ended within {PATIENCE_S:g} s")
            time.sleep(0.2)
    time.sleep(SETTLE_S)


def _ended(connection: psycopg.Connection[Any]) -> int:
    row = connection.execute("SELECT count(*) FROM jobs WHERE status NOT IN ('queued', 'running')").fetchone()
    assert row is not None
    return row[0]


class _Counter:
    """Reads all that is counted, by its name in `Traffic`; every number only grows."""

    def __init__(self, service: Service) -> None:
        logs = service.data_dir / "logs"
        self._servers = service.servers
        self._broker = redis.Redis.from_url(service.servers.broker_url.get_secret_value())
        postgres, valkey = service.servers.pids
        api, worker = (int((logs / f"{name}.pid").read_text()) for name in ("api", "worker"))
        self._pids = {"postgres": postgres, "redis": valkey, "api": api, "worker": worker}

    def read(self) -> dict[str, float]:
        with psycopg.connect(self._servers.database_url.get_secret_value()) as connection:
            row = connection.execute(_COUNTED).fetchone()
        assert row is not None
        stats: Any = self._broker.info("stats")
        counted: dict[str, float] = dict(zip(_POSTGRES, row, strict=True))
        counted["redis_commands"] = stats["total_commands_processed"]
        counted["redis_bytes"] = stats["total_net_input_bytes"] + stats["total_net_output_bytes"]
        return counted | {f"{name}_cpu_s": _cpu_s(pid) for name, pid in self._pids.items()}


def _cpu_s(pid: int) -> float:
    """Of a process and its children, also of those that have ended."""
    process, seconds = psutil.Process(pid), 0.0
    for child in process.children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # it ended just now, and counts among those that have
            times = child.cpu_times()
            seconds += times.user + times.system
    names = ("user", "system", "children_user", "children_system")
    return seconds + sum(getattr(process.cpu_times(), name, 0.0) for name in names)


def _less(counted: dict[str, float], before: dict[str, float], share: float = 1.0) -> dict[str, float]:
    return {name: float(value - before[name]) * share for name, value in counted.items()}


def _traffic(counted: dict[str, float]) -> Traffic:
    return Traffic(**{name: float(f"{max(0.0, value):.3g}") for name, value in counted.items()})
