"""`tenor status`: the state of the database, the broker, the workers and the jobs, and what is wrong with them."""

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import typer
from pydantic import BaseModel
from rich.table import Table

from services.cli.database import reachable_settings
from services.cli.output import EXIT_FAILURE, Format, Output, exit_on_error, print_error, print_json, print_table
from services.embedded.folder import MIN_FREE_BYTES
from shared.domain.job import TURN_LANES, JobCount, JobStatus, Lane, QueueDepth, Worker
from shared.errors import Unavailable
from shared.messaging.broker import Broker
from shared.settings import Settings
from shared.store.database import Database
from shared.version import VERSION

app = typer.Typer()

_DELETION_PATIENCE_S = 600.0


class StoredState(BaseModel):
    """The state of the workers and jobs in the database. A worker is alive if it was seen within a lease."""

    migration: str | None
    workers_alive: int
    workers: list[Worker]
    waiting: list[QueueDepth]
    jobs: list[JobCount]
    quarantined: int
    turns_last_minute: int
    turns_last_hour: int


class Status(BaseModel):
    """The output of `tenor status --format json`.

    Attributes:
        database: `ok`, or what is wrong with it.
        broker: likewise.
        stored: None where the database cannot be reached.
        problems: what is wrong, one sentence each.
    """

    version: str
    database: str
    broker: str
    stored: StoredState | None
    problems: list[str]


@app.command(epilog="Example: `tenor status --patience 10 --format json`")
def status(
    patience: Annotated[
        float, typer.Option(min=0, help="Seconds that an interactive turn may wait before it counts as a problem.")
    ] = 60,
    output: Output = Format.table,
) -> None:
    """Show the state of the database, the broker, the workers and the jobs.

    The exit status is 1 if there is a problem, which stderr names. Quarantined jobs are not a problem.
    """
    with exit_on_error():
        current = collect_status(reachable_settings(), patience)
    if output is Format.json:
        print_json(current)
    else:
        for table in status_tables(current):
            print_table(table)
    for problem in current.problems:
        print_error(problem)
    raise typer.Exit(EXIT_FAILURE if current.problems else 0)


def collect_status(settings: Settings, patience_s: float) -> Status:
    """Return the status.

    Args:
        settings: with the URLs of the database and the broker.
        patience_s: how long the oldest interactive turn may wait before it is a problem. A bulk turn may wait.

    Raises:
        SetupError: the tables are those of an earlier version, or do not exist.
    """
    database = Database(settings.database.url, pool_size=1)
    stored, database_problem = None, None
    try:
        stored = _stored_state(database, settings)
        database.check_room()
    except Unavailable as error:
        database_problem = error.detail
    finally:
        database.close()
    broker_problem = _broker_problem(Broker(settings.broker.url))
    found = (database_problem, broker_problem, _disk_problem(settings.data_dir))
    return Status(
        version=VERSION,
        database=database_problem or "ok",
        broker=broker_problem or "ok",
        stored=stored,
        problems=[*filter(None, found), *(problems(stored, patience_s) if stored else ())],
    )


def problems(stored: StoredState, patience_s: float) -> Iterator[str]:
    """Yield what is wrong with the workers and the jobs."""
    if not stored.workers_alive:
        yield "no worker is alive: start `tenor worker`"
    for waiting in stored.waiting:
        if waiting.lane is Lane.interactive and waiting.oldest_s > patience_s:
            yield f"the oldest interactive turn has waited {waiting.oldest_s:.0f} s, more than {patience_s:g} s"
        if waiting.lane is Lane.maintenance and waiting.oldest_s > _DELETION_PATIENCE_S:
            yield f"audio has waited {waiting.oldest_s:.0f} s to be deleted, more than {_DELETION_PATIENCE_S:g} s"


def status_tables(status: Status) -> Iterator[Table]:
    """Yield the tables of `tenor status`."""
    summary = Table(show_header=False)
    summary.add_row("version", status.version)
    summary.add_row("database", status.database + (f", migration {status.stored.migration}" if status.stored else ""))
    summary.add_row("broker", status.broker)
    stored = status.stored
    if stored is None:
        yield summary
        return
    summary.add_row("turns", f"{stored.turns_last_minute} in a minute, {stored.turns_last_hour} in an hour")
    summary.add_row("quarantined", str(stored.quarantined))
    yield summary
    yield _workers_table(stored.workers)
    yield _jobs_table(stored)


def _stored_state(database: Database, settings: Settings) -> StoredState:
    database.check_tables()
    migration = database.revision()
    with database.transaction() as transaction:
        counts = transaction.job_admin.counts()
        turns = [count for count in counts if count.lane in TURN_LANES]
        return StoredState(
            migration=migration,
            workers_alive=transaction.workers.count(seen_within=settings.jobs.lease),
            workers=transaction.workers.all(),
            waiting=transaction.job_admin.queue_depths(),
            jobs=counts,
            quarantined=sum(count.jobs for count in counts if count.status is JobStatus.quarantined),
            turns_last_minute=sum(count.last_minute for count in turns),
            turns_last_hour=sum(count.last_hour for count in turns),
        )


def _broker_problem(broker: Broker) -> str | None:
    try:
        broker.ping()
    except Unavailable as error:
        return error.detail
    return None


def _disk_problem(folder: Path) -> str | None:
    """Return that the disk of a folder is full, if this machine has the folder and its disk is full."""
    if not folder.is_dir():
        return None
    free = shutil.disk_usage(folder).free
    return f"the disk of {folder} is full: {free // 2**20} MB are left" if free < MIN_FREE_BYTES else None


def _workers_table(workers: Sequence[Worker]) -> Table:
    table = Table("worker", "host", "device", "bundle", "last seen")
    for worker in workers:
        seen = f"{worker.unseen_s:.0f} s ago"
        table.add_row(str(worker.id), worker.host or "", worker.device or "", worker.bundle_id or "", seen)
    return table


def _jobs_table(stored: StoredState) -> Table:
    """Return a table with a row for each status and a column for each lane, which fits a narrow terminal."""
    table = Table("jobs", *(waiting.lane.value for waiting in stored.waiting))
    counted = {(count.lane, count.status): count.jobs for count in stored.jobs}
    for status in JobStatus:
        table.add_row(status.value, *(str(counted.get((waiting.lane, status), 0)) for waiting in stored.waiting))
    waits = (f"{waiting.oldest_s:.0f} s" if waiting.jobs else "" for waiting in stored.waiting)
    table.add_row("oldest waiting", *waits)
    return table
