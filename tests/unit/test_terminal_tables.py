"""The tables of the commands on a terminal of 80 columns or fewer."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from uuid import UUID

import pytest
from rich.table import Table
from rich.text import Text

from benchmarks.figures import Figure
from services.cli.audit import audit_table
from services.cli.bench import figures_table
from services.cli.jobs import job_table, jobs_table
from services.cli.keys import keys_table
from services.cli.status import Status, StoredState, status_tables
from shared.domain.access import ApiKey, AuditEvent, KeyRole
from shared.domain.job import JobCount, JobStatus, Lane, ListedJob, QueueDepth, Worker
from tests.printed_tables import assert_readable, printed

NOW = datetime(2026, 11, 21, 17, 9, 53, tzinfo=UTC)
ID = UUID("0b0c2f3e-7a8e-4c59-9f27-3f8ad2f1d1a4")
REASON = "it was tried 5 times and never finished; the last error was: internal error (ValueError)"


def job() -> ListedJob:
    return ListedJob(
        id=ID,
        tenant="north-west-clinic",
        session_id=ID,
        turn_id=ID,
        recording_id=None,
        delivery_id=None,
        lane=Lane.interactive,
        status=JobStatus.quarantined,
        attempts=5,
        claims=5,
        lease_until=NOW,
        created_at=NOW,
        updated_at=NOW,
        error_code="attempts_exhausted",
        error_message=REASON,
        correlation_id="call-17",
        traceparent="00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
    )


def jobs() -> Table:
    return jobs_table([job(), job()])


def one_job() -> Table:
    return job_table(job())


def keys() -> Table:
    key = ApiKey(
        id=ID, tenant_id=ID, name="Dr. Rahman's dashboard", role=KeyRole.reader, created_at=NOW, revoked_at=NOW
    )
    return keys_table([("north-west-clinic", key)])


def audit() -> Table:
    return audit_table(
        [AuditEvent(at=NOW, action="history_read", tenant="north-west-clinic", key_id=ID, session_id=ID)]
    )


def figures() -> Table:
    return figures_table([Figure.of("interactive's 95 %, beside bulk to alone", "times", [1.234, 234.5])])


def status() -> Iterator[Table]:
    worker = Worker(
        id=ID,
        bundle_id="compact-0123456789ab",
        host="node-3.example",
        device="NVIDIA H200",
        started_at=NOW,
        seen_at=NOW,
        unseen_s=1,
    )
    stored = StoredState(
        migration="0012",
        workers_alive=1,
        workers=[worker],
        waiting=[QueueDepth(lane=lane, jobs=1, oldest_s=3) for lane in Lane],
        jobs=[JobCount(lane=Lane.bulk, status=JobStatus.queued, jobs=1_000_000, last_minute=0, last_hour=0)],
        quarantined=0,
        turns_last_minute=0,
        turns_last_hour=0,
    )
    yield from status_tables(Status(version="0.1.0", database="ok", broker="ok", stored=stored, problems=[]))


@pytest.mark.parametrize("make", [jobs, one_job, keys, audit, figures])
def test_a_table_fits_80_columns_and_breaks_no_word(make: Callable[[], Table]) -> None:
    assert_readable(make())


def test_the_status_is_readable_at_80_columns() -> None:
    for table in status():
        assert_readable(table)


def test_a_wide_terminal_shows_a_table_and_a_narrow_one_shows_row_by_row() -> None:
    assert printed(jobs(), width=160).count("┃") == 8
    narrow = printed(jobs())
    assert "┃" not in narrow
    first, second = narrow.split("\n\n")
    assert first.splitlines()[0].split() == ["id", str(ID)] == second.splitlines()[0].split()


def test_a_word_longer_than_the_terminal_continues_on_the_next_line() -> None:
    table = Table(show_header=False)
    table.add_row("traceparent", Text("x" * 100))
    assert printed(table, width=60).count("x") == 100
