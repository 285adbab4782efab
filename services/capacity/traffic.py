"""What one spoken turn makes Postgres, Redis and the processes do, counted on an embedded run."""

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx2 as httpx
import psutil
import psycopg
import redis

from services.capacity.costs import Traffic
from services.embedded import EmbeddedServers, free_port
from services.supervisor import Supervisor
from shared.domain.access import KeyRole
from shared.settings import Settings
from shared.store.database import Database

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
    counted: list[Traffic] = []
    with tempfile.TemporaryDirectory() as folder:
        settings = settings.model_copy(update={"data_dir": Path(folder)})
        with EmbeddedServers(settings.data_dir) as servers:
            key = _key(servers)
            supervisor = Supervisor(settings, servers, "127.0.0.1", free_port())

            def count() -> None:
                headers = {"Authorization": f"Bearer {key}"}
                with httpx.Client(base_url=supervisor.url, headers=headers, timeout=60) as client:
                    counted.extend(_counted(client, settings, servers, files, turns))
                supervisor.stop()

            supervisor.run(on_ready=count)
    per_turn, idle = counted
    return per_turn, idle


def _counted(
    client: httpx.Client, settings: Settings, servers: EmbeddedServers, files: Sequence[Path], turns: int
) -> tuple[Traffic, Traffic]:
    _send(client, files, len(files))  # what is done but once
    _wait_for(servers, len(files))
    counter = _Counter(settings, servers)
    before, began = counter.read(), time.monotonic()
    time.sleep(IDLE_S)
    idle, then = counter.read(), time.monotonic()
    per_s = _less(idle, before, 1 / (then - began))
    _send(client, files, turns)
    _wait_for(servers, len(files) + turns)
    after = counter.read()
    quiet = {name: value * (time.monotonic() - then) for name, value in per_s.items()}
    busy = _less(_less(after, idle), quiet, 1 / turns)
    return _traffic(busy), _traffic(per_s)


def _send(client: httpx.Client, files: Sequence[Path], turns: int) -> None:
    for number in range(turns):
        file = files[number % len(files)]
        session_id = client.post("/v1/sessions", json={}).raise_for_status().json()["id"]
        sound = {"audio": (file.name, file.read_bytes(), "application/octet-stream")}
        client.post(f"/v1/sessions/{session_id}/turns", files=sound).raise_for_status()


def _wait_for(servers: EmbeddedServers, turns: int) -> None:
    """Until so many have ended, and all that was counted has been reported."""
    deadline = time.monotonic() + PATIENCE_S
    # One transaction, so that asking counts but once.
    with psycopg.connect(servers.database_url.get_secret_value()) as connection:
        while (ended := _ended(connection)) < turns:
            if time.monotonic() > deadline:
                raise RuntimeError(f"{ended} of {turns} turns ended within {PATIENCE_S:g} s")
            time.sleep(0.2)
    time.sleep(SETTLE_S)


def _ended(connection: psycopg.Connection[Any]) -> int:
    row = connection.execute("SELECT count(*) FROM jobs WHERE status NOT IN ('queued', 'running')").fetchone()
    assert row is not None
    return row[0]


class _Counter:
    """Reads all that is counted, by its name in `Traffic`; every number only grows."""

    def __init__(self, settings: Settings, servers: EmbeddedServers) -> None:
        logs = settings.data_dir / "logs"
        self._servers = servers
        self._broker = redis.Redis.from_url(servers.broker_url.get_secret_value())
        postgres, valkey = servers.pids
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
    process = psutil.Process(pid)
    times = [each.cpu_times() for each in (process, *process.children(recursive=True))]
    ended = [getattr(process.cpu_times(), name, 0.0) for name in ("children_user", "children_system")]
    return sum(each.user + each.system for each in times) + sum(ended)


def _less(counted: dict[str, float], before: dict[str, float], share: float = 1.0) -> dict[str, float]:
    return {name: float(value - before[name]) * share for name, value in counted.items()}


def _traffic(counted: dict[str, float]) -> Traffic:
    return Traffic(**{name: float(f"{max(0.0, value):.3g}") for name, value in counted.items()})


def _key(servers: EmbeddedServers) -> str:
    database = Database(servers.database_url, pool_size=1)
    database.migrate()
    with database.transaction() as transaction:
        key = transaction.accounts.create_key(transaction.accounts.ensure_tenant("bench"), "bench", KeyRole.admin)
    database.close()
    return key
