"""`tenor jobs`: list, show, retry and drop jobs."""

from collections.abc import Callable, Sequence
from typing import Annotated
from uuid import UUID

import typer
from rich.table import Table

from services.cli.database import open_database
from services.cli.output import EXIT_FAILURE, Format, Output, exit_on_error, print_error, print_json, print_table
from shared.domain.job import JobStatus, ListedJob
from shared.errors import JobNotFound, WrongJobStatus
from shared.settings import get_settings
from shared.store.database import Transaction

app = typer.Typer()
jobs = typer.Typer(no_args_is_help=True, rich_markup_mode="markdown", help="List, show, retry and drop jobs.")
app.add_typer(jobs, name="jobs")

Tenant = Annotated[str | None, typer.Option(help="Only jobs of this tenant.")]


@jobs.command("list", epilog="Example: `tenor jobs list --status quarantined --tenant clinic --format json`")
def list_jobs(
    status: Annotated[list[JobStatus], typer.Option(help="Only jobs with this status. May be repeated.")] = [  # noqa: B006
        JobStatus.quarantined
    ],
    tenant: Tenant = None,
    limit: Annotated[int, typer.Option(min=1, help="The most jobs to list, the last changed first.")] = 100,
    output: Output = Format.table,
) -> None:
    """List jobs; by default those in quarantine, whose attempts all failed."""
    with exit_on_error(), open_database() as database, database.transaction() as transaction:
        if tenant is not None:
            transaction.accounts.require_tenant(tenant)
        found = transaction.job_admin.find(statuses=status, tenant=tenant, limit=limit)
    if output is Format.json:
        print_json(found)
    else:
        print_table(jobs_table(found))


@jobs.command("show", epilog="Example: `tenor jobs show 0b0c2f3e-7a8e-4c59-9f27-3f8ad2f1d1a4`")
def show_job(
    job_id: Annotated[UUID, typer.Argument(metavar="JOB", help="The id of a job, from `tenor jobs list`.")],
    output: Output = Format.table,
) -> None:
    """Show all fields of a job."""
    with exit_on_error(), open_database() as database, database.transaction() as transaction:
        (job,) = _find_jobs(transaction, [job_id])
    if output is Format.json:
        print_json(job)
    else:
        print_table(job_table(job))


@jobs.command("retry", epilog="Examples: `tenor jobs retry 0b0c2f3e-...`, `tenor jobs retry --all --tenant clinic`")
def retry_jobs(
    job_ids: Annotated[
        list[UUID] | None, typer.Argument(metavar="JOB...", help="Ids of quarantined jobs, from `tenor jobs list`.")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="All quarantined jobs.")] = False,
    tenant: Tenant = None,
    output: Output = Format.table,
) -> None:
    """Queue quarantined jobs again, with all their attempts, and print the ids of the queued jobs.

    Turns of the same speaker that were analysed in the meantime are not analysed again.
    """
    if bool(job_ids) == every:
        raise typer.BadParameter("give either JOB... or --all", param_hint="JOB...")

    def retry(transaction: Transaction, job: ListedJob) -> None:
        transaction.job_admin.requeue(job, lease=get_settings().jobs.lease)

    _change_jobs(job_ids, tenant, retry, output)


@jobs.command("drop", epilog="Example: `tenor jobs drop 0b0c2f3e-7a8e-4c59-9f27-3f8ad2f1d1a4`")
def drop_jobs(
    job_ids: Annotated[list[UUID], typer.Argument(metavar="JOB...", help="Ids of jobs, from `tenor jobs list`.")],
    tenant: Tenant = None,
    output: Output = Format.table,
) -> None:
    """Fail queued, running or quarantined jobs for good, and print the ids of the dropped jobs.

    The turn of a dropped job remains, with the status `failed` and the error code `job_dropped`. Turns that waited for
    it go on.
    """

    def drop(transaction: Transaction, job: ListedJob) -> None:
        transaction.job_admin.drop(job, lease=get_settings().jobs.lease)

    _change_jobs(job_ids, tenant, drop, output)


def jobs_table(jobs: Sequence[ListedJob]) -> Table:
    """Return the table of `tenor jobs list`."""
    table = Table("id", "tenant", "lane", "status", "attempts", "since", "reason")
    for job in jobs:
        since = f"{job.updated_at:%Y-%m-%d %H:%M:%S %Z}"
        cells = (str(job.id), job.tenant or "", job.lane.value, job.status.value, str(job.attempts), since)
        table.add_row(*cells, job.error_message or "")
    return table


def job_table(job: ListedJob) -> Table:
    """Return the table of `tenor jobs show`."""
    table = Table(show_header=False)
    for name, value in job.model_dump(mode="json").items():
        table.add_row(name, "" if value is None else str(value))
    return table


def _change_jobs(
    job_ids: list[UUID] | None, tenant: str | None, change: Callable[[Transaction, ListedJob], None], output: Format
) -> None:
    """Change each job in a transaction of its own, print the ids of the changed jobs, and exit.

    The exit status is 1 if a job could not be changed.
    """
    changed: list[str] = []
    with exit_on_error(), open_database() as database:
        with database.transaction() as transaction:
            found = _find_jobs(transaction, job_ids, tenant)
        for job in found:
            try:
                with database.transaction() as transaction:
                    change(transaction, job)
                changed.append(str(job.id))
            except WrongJobStatus as error:
                print_error(error.detail)
    if output is Format.json:
        print_json(changed)
    else:
        for job_id in changed:
            typer.echo(job_id)
    raise typer.Exit(0 if len(changed) == len(found) else EXIT_FAILURE)


def _find_jobs(transaction: Transaction, job_ids: list[UUID] | None, tenant: str | None = None) -> list[ListedJob]:
    """Return the jobs with these ids, or all quarantined jobs.

    Raises:
        JobNotFound: a job does not exist, or belongs to another tenant.
    """
    if tenant is not None:
        transaction.accounts.require_tenant(tenant)
    if not job_ids:
        return transaction.job_admin.find(statuses=[JobStatus.quarantined], tenant=tenant)
    found = {job.id: job for job in transaction.job_admin.find(ids=job_ids, tenant=tenant)}
    missing = [str(job_id) for job_id in job_ids if job_id not in found]
    if missing:
        raise JobNotFound(f"there is no job {', '.join(missing)}" + (f" of {tenant!r}" if tenant else ""))
    return list(found.values())
