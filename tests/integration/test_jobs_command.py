"""`tenor jobs`: list, show, retry and drop jobs."""

import json
from collections.abc import Callable, Iterator
from datetime import timedelta
from uuid import UUID, uuid4

import pytest
from typer.testing import CliRunner, Result

from services.cli.main import app
from shared.domain.job import Job, Lane, NewJob
from shared.domain.session import Consent
from shared.domain.speaker import SpeakerRole
from shared.domain.turn import AnalyzedTurn
from shared.errors import TenorError
from shared.settings import Settings, get_settings
from shared.store.database import Database
from tests.integration.conftest import read_turn

LEASE = timedelta(seconds=30)
AddJob = Callable[..., Job]
Tenor = Callable[..., Result]


@pytest.fixture
def tenor(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Tenor]:
    monkeypatch.setenv("TENOR_DATABASE_URL", settings.database.url.get_secret_value())
    get_settings.cache_clear()
    yield lambda *arguments: CliRunner().invoke(app, ["jobs", *map(str, arguments)])
    get_settings.cache_clear()


@pytest.fixture
def add_job(database: Database) -> AddJob:
    def add(tenant: str = "acme", quarantined: bool = True) -> Job:
        with database.transaction() as transaction:
            tenant_id = transaction.accounts.ensure_tenant(tenant)
            session = transaction.sessions.create(tenant_id, Consent())
            turn = transaction.turns.add(tenant_id, session.id, speaker="Ana", role=SpeakerRole.user, text="x")
            new = NewJob(turn_id=turn.id, lane=Lane.interactive, correlation_id="call-17")
            ((job, _),) = transaction.jobs.enqueue([new], lease=LEASE)
            if quarantined:
                claimed = transaction.jobs.claim(job.id, LEASE)
                assert claimed is not None
                transaction.jobs.quarantine(claimed, TenorError("internal error (ValueError)"), lease=LEASE)
            return job

    return add


def read(database: Database, job: Job, tenant: str = "acme") -> AnalyzedTurn:
    with database.transaction() as transaction:
        tenant_id = transaction.accounts.ensure_tenant(tenant)
    return read_turn(database, tenant_id, job.turn_id)


def listed(tenor: Tenor, *arguments: str) -> set[UUID]:
    result = tenor("list", "--format", "json", *arguments)
    assert result.exit_code == 0, result.stderr
    return {UUID(job["id"]) for job in json.loads(result.stdout)}


def test_quarantined_jobs_are_listed_with_their_reason(tenor: Tenor, add_job: AddJob) -> None:
    job, _ = add_job(), add_job(quarantined=False)
    (found,) = json.loads(tenor("list", "--format", "json").stdout)
    assert (found["id"], found["turn_id"], found["tenant"]) == (str(job.id), str(job.turn_id), "acme")
    assert (found["status"], found["attempts"], found["error_code"]) == ("quarantined", 1, "attempts_exhausted")
    assert "ValueError" in found["error_message"]
    shown = tenor("show", job.id)
    assert all(str(word) in shown.stdout for word in (job.id, job.turn_id, "acme", "attempts_exhausted", "call-17"))
    assert json.loads(tenor("show", job.id, "--format", "json").stdout) == found
    assert str(job.id) in tenor("list").stdout


def test_jobs_are_listed_by_status_and_tenant(tenor: Tenor, add_job: AddJob) -> None:
    ours, theirs, waiting = add_job(), add_job("clinic"), add_job(quarantined=False)
    assert listed(tenor) == {ours.id, theirs.id}
    assert listed(tenor, "--tenant", "clinic") == {theirs.id}
    assert listed(tenor, "--status", "queued", "--status", "quarantined") == {ours.id, theirs.id, waiting.id}
    assert len(listed(tenor, "--limit", "1")) == 1
    unknown = tenor("list", "--tenant", "clinik")
    assert (unknown.exit_code, "there is no tenant 'clinik'" in unknown.stderr) == (1, True)


def test_all_quarantined_jobs_of_a_tenant_are_retried(tenor: Tenor, add_job: AddJob, database: Database) -> None:
    ours, theirs = add_job(), add_job("clinic")
    result = tenor("retry", "--all", "--tenant", "clinic", "--format", "json")
    assert (result.exit_code, json.loads(result.stdout)) == (0, [str(theirs.id)])
    assert read(database, theirs, "clinic").job.status == "queued"
    assert listed(tenor) == {ours.id}
    assert tenor("retry", "--all", "--tenant", "clinic", "--format", "json").stdout == "[]\n"


def test_a_dropped_job_fails_for_good(tenor: Tenor, add_job: AddJob, database: Database) -> None:
    job = add_job()
    result = tenor("drop", job.id)
    assert (result.exit_code, result.stdout) == (0, f"{job.id}\n")
    assert read(database, job).job.error_code == "job_dropped"
    assert tenor("retry", job.id).exit_code == 1


def test_jobs_that_cannot_be_retried_are_named_and_the_others_are_retried(
    tenor: Tenor, add_job: AddJob, database: Database
) -> None:
    stuck, waiting = add_job(), add_job(quarantined=False)
    result = tenor("retry", waiting.id, stuck.id)
    assert (result.exit_code, result.stdout) == (1, f"{stuck.id}\n")
    assert f"job {waiting.id} is not quarantined" in result.stderr
    assert read(database, stuck).job.status == "queued"


@pytest.mark.parametrize("command", ["show", "retry", "drop"])
def test_a_job_that_does_not_exist_is_named(tenor: Tenor, command: str) -> None:
    nobody = uuid4()
    result = tenor(command, nobody)
    assert result.exit_code == 1
    assert str(nobody) in result.stderr


def test_a_job_of_another_tenant_is_not_changed(tenor: Tenor, add_job: AddJob, database: Database) -> None:
    job = add_job("clinic")
    add_job()
    assert tenor("drop", job.id, "--tenant", "acme").exit_code == 1
    assert read(database, job, "clinic").job.status == "quarantined"


def test_retry_takes_either_job_ids_or_all(tenor: Tenor) -> None:
    assert tenor("retry").exit_code == 2
    assert tenor("retry", uuid4(), "--all").exit_code == 2


def test_without_a_database_the_message_says_what_to_start(
    tenor: Tenor, monkeypatch: pytest.MonkeyPatch, settings: Settings
) -> None:
    monkeypatch.delenv("TENOR_DATABASE_URL")
    monkeypatch.setenv("TENOR_DATA_DIR", str(settings.data_dir))
    get_settings.cache_clear()
    result = tenor("list")
    assert result.exit_code == 78
    assert "no embedded Tenor runs" in result.stderr
