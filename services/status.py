"""Whether Tenor works, for a person or for a program that watches it."""

import shutil
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path

from pydantic import BaseModel
from rich.table import Table

from shared.domain.job import TURN_LANES, JobCount, JobStatus, Lane, QueueDepth, Worker
from shared.errors import Unavailable
from shared.messaging.broker import Broker
from shared.settings import Settings
from shared.store.database import Database

_UNTIL_DELETED_S = 600.0
_LITTLE_ROOM_MB = 64
"""Postgres takes 16 MB at a time for its log, and ends where it cannot."""


class Stored(BaseModel):
    """What the database knows. Of the workers, those alive gave a sign of life within a lease."""

    migration: str | None
    workers_alive: int
    workers: list[Worker]
    waiting: list[QueueDepth]
    jobs: list[JobCount]
    quarantined: int
    turns_last_minute: int
    turns_last_hour: int


class Status(BaseModel):
    """What `tenor status --format json` prints; `stored` is null where the database is away."""

    version: str
    database: str
    broker: str
    stored: Stored | None
    wrong: list[str]


def look(settings: Settings, patience_s: float) -> Status:
    """How everything stands.

    Args:
        patience_s: for how long the oldest interactive turn may have waited before that is wrong. A bulk turn may wait.

    Raises:
        SetupError: the tables are an earlier version's, or there are none.
    """
    database = Database(settings.database_url, pool_size=1)
    stored, trouble = None, None
    try:
        stored = _stored(database, settings)
        database.check_room()
    except Unavailable as error:
        trouble = error.detail
    finally:
        database.close()
    queue_trouble = _ping(Broker(settings.broker_url))
    troubles = (trouble, queue_trouble, _disk_trouble(settings.data_dir))
    wrong = [*filter(None, troubles), *(_worrying(stored, patience_s) if stored else ())]
    return Status(
        version=version("tenor"),
        database=trouble or "ok",
        broker=queue_trouble or "ok",
        stored=stored,
        wrong=wrong,
    )


def tables(status: Status) -> Iterator[Table]:
    """The same for a person."""
    rests = Table(show_header=False)
    rests.add_row("version", status.version)
    rests.add_row("database", status.database + (f", migration {status.stored.migration}" if status.stored else ""))
    rests.add_row("broker", status.broker)
    if status.stored is None:
        yield rests
        return
    rests.add_row("turns", f"{status.stored.turns_last_minute} in a minute, {status.stored.turns_last_hour} in an hour")
    rests.add_row("quarantined", str(status.stored.quarantined))
    yield rests
    yield _workers(status.stored.workers)
    yield _jobs(status.stored)


def _stored(database: Database, settings: Settings) -> Stored:
    database.check_tables()
    migration = database.revision()
    with database.transaction() as transaction:
        counts = transaction.job_admin.counts()
        turns = [count for count in counts if count.lane in TURN_LANES]
        return Stored(
            migration=migration,
            workers_alive=transaction.workers.count(seen_within=settings.lease),
            workers=transaction.workers.all(),
            waiting=transaction.job_admin.queue_depths(),
            jobs=counts,
            quarantined=sum(count.jobs for count in counts if count.status is JobStatus.quarantined),
            turns_last_minute=sum(count.last_minute for count in turns),
            turns_last_hour=sum(count.last_hour for count in turns),
        )


def _ping(queue: Broker) -> str | None:
    try:
        queue.ping()
    except Unavailable as error:
        return error.detail
    return None


def _disk_trouble(folder: Path) -> str | None:
    """Says that the disk of a folder is full, where this machine has the folder."""
    if not folder.is_dir():
        return None
    free = shutil.disk_usage(folder).free // 2**20
    return f"the disk of {folder} is full: {free} MB are left" if free < _LITTLE_ROOM_MB else None


def _worrying(stored: Stored, patience_s: float) -> Iterator[str]:
    if not stored.workers_alive:
        yield "no worker is alive: start `tenor worker`"
    for waiting in stored.waiting:
        if waiting.lane is Lane.interactive and waiting.oldest_s > patience_s:
            yield f"the oldest interactive turn has waited {waiting.oldest_s:.0f} s, more than {patience_s:g} s"
        if waiting.lane is Lane.maintenance and waiting.oldest_s > _UNTIL_DELETED_S:
            yield f"sound that must go has waited {waiting.oldest_s:.0f} s to be deleted"


def _workers(workers: Sequence[Worker]) -> Table:
    table = Table("worker", "host", "device", "bundle", "last seen")
    for worker in workers:
        seen = f"{worker.unseen_s:.0f} s ago"
        table.add_row(str(worker.id), worker.host or "", worker.device or "", worker.bundle_id or "", seen)
    return table


def _jobs(stored: Stored) -> Table:
    """A row for each status, a column for each lane, which fits a narrow terminal."""
    table = Table("jobs", *(waiting.lane.value for waiting in stored.waiting))
    counted = {(count.lane, count.status): count.jobs for count in stored.jobs}
    for status in JobStatus:
        table.add_row(status.value, *(str(counted.get((waiting.lane, status), 0)) for waiting in stored.waiting))
    waits = (f"{waiting.oldest_s:.0f} s" if waiting.jobs else "" for waiting in stored.waiting)
    table.add_row("oldest waiting", *waits)
    return table
