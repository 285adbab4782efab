"""Jobs: claimed once, ended once, and never lost."""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from uuid import UUID, uuid4

import psycopg
import pytest
import redis
import time_machine
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from pydantic import SecretStr
from sqlalchemy import create_engine, make_url

from shared.domain.access import KeyRole, key_hash
from shared.domain.emotion import EKMAN7, EmotionScores, Modality
from shared.domain.job import OPEN, TURN_LANES, Job, JobStatus, Lane, NewJob
from shared.domain.prediction import Prediction
from shared.domain.recording import Recording
from shared.domain.session import Consent
from shared.domain.speaker import SpeakerRole
from shared.domain.transcript import Transcript
from shared.domain.turn import AnalyzedTurn, NewTurn, Turn
from shared.errors import AudioUndecodable, SessionNotFound, TenorError, TurnNotFound, Unavailable, WrongJobStatus
from shared.messaging.broker import Broker
from shared.settings import JobSettings, Settings
from shared.storage.blobs import BlobFolder, new_uri
from shared.store.database import Database, Transaction
from shared.store.tables import metadata
from tests.conftest import wait_for
from tests.integration.conftest import end_with, read_turn
from workers.job_runner import JobRunner
from workers.sweeper import Sweeper
from workers.tasks.delete_audio import DeleteAudio

LEASE = timedelta(seconds=30)
NO_TIME = timedelta(0)

SCORES = EmotionScores(
    label_space=EKMAN7.name,
    categories={name: 0.4 if name == "joy" else 0.1 for name in EKMAN7.categories},
    dimensions={"valence": 0.5},
)
PREDICTION = Prediction(
    scores=SCORES,
    text_only=SCORES,
    audio_only=None,
    confidence=0.4,
    abstained=False,
    incongruence=None,
    modalities_used=(Modality.text,),
)

AddTurn = Callable[..., Job]


@pytest.fixture
def tenant_id(database: Database) -> UUID:
    with database.transaction() as transaction:
        return transaction.accounts.ensure_tenant("acme")


@pytest.fixture
def add_turn(database: Database, tenant_id: UUID) -> AddTurn:
    def add(lease: timedelta = LEASE, lane: Lane = Lane.interactive) -> Job:
        with database.transaction() as transaction:
            session = transaction.sessions.create(tenant_id, Consent())
            turn = transaction.turns.add(tenant_id, session.id, speaker="Ana", role=SpeakerRole.user, text="good news")
            new = NewJob(turn_id=turn.id, lane=lane)
            ((job, _),) = transaction.jobs.enqueue([new], lease=lease)
            return job

    return add


def claim(database: Database, job: Job, lease: timedelta = LEASE) -> Job | None:
    with database.transaction() as transaction:
        return transaction.jobs.claim(job.id, lease)


def succeed(database: Database, job: Job, bundle_id: str = "bundle") -> bool:
    with database.transaction() as transaction:
        ended = end_with(transaction, job, Transcript.provided("good news"), PREDICTION, bundle_id=bundle_id)
        return ended is not None


def read(database: Database, tenant_id: UUID, job: Job) -> AnalyzedTurn:
    return read_turn(database, tenant_id, job.turn_id)


def sweep(database: Database, max_attempts: int = 5) -> int:
    with database.transaction() as transaction:
        return transaction.jobs.sweep(
            lease=LEASE, retries=Settings(jobs=JobSettings(max_attempts=max_attempts)).retries
        )


def unsent(database: Database) -> list[UUID]:
    with database.transaction() as transaction:
        return [message.job_id for message in transaction.outbox.unsent(NO_TIME)]


def forget_outbox(database: Database) -> None:
    with database.transaction() as transaction:
        transaction.outbox.remove(transaction.outbox.unsent(NO_TIME))


def test_the_result_is_read_back_as_it_was_written(database: Database, add_turn: AddTurn, tenant_id: UUID) -> None:
    job = claim(database, add_turn())
    assert job is not None
    assert succeed(database, job)
    found = read(database, tenant_id, job)
    assert found.job.status is JobStatus.succeeded
    assert found.transcript == Transcript.provided("good news")
    assert found.prediction is not None
    assert found.prediction.scores == SCORES
    assert list(found.prediction.model_dump()["scores"]["categories"]) == list(EKMAN7.categories)
    assert found.prediction.audio_only is None
    assert found.prediction.emotion == "joy"
    assert found.prediction.modalities_used == (Modality.text,)


def test_a_job_is_claimed_by_one_worker_at_a_time(database: Database, add_turn: AddTurn) -> None:
    job = add_turn()
    assert claim(database, job) is not None
    assert claim(database, job) is None


def test_an_ended_job_cannot_be_claimed(database: Database, add_turn: AddTurn) -> None:
    job = claim(database, add_turn())
    assert job is not None
    assert succeed(database, job)
    assert claim(database, job) is None
    assert not succeed(database, job)


def test_a_worker_whose_claim_was_superseded_cannot_write(
    database: Database, add_turn: AddTurn, tenant_id: UUID
) -> None:
    slow = claim(database, add_turn(), lease=NO_TIME)
    assert slow is not None
    quick = claim(database, slow)
    assert quick is not None
    assert succeed(database, quick, "the quick one's")
    assert not succeed(database, slow, "the slow one's")
    prediction = read(database, tenant_id, slow).prediction
    assert prediction is not None
    assert prediction.bundle_id == "the quick one's"


def test_a_renewed_lease_keeps_other_workers_out(database: Database, add_turn: AddTurn) -> None:
    job = claim(database, add_turn(), lease=NO_TIME)
    assert job is not None
    with database.transaction() as transaction:
        transaction.jobs.renew([job], LEASE)
    assert sweep(database) == 0
    assert claim(database, job) is None


@pytest.mark.parametrize("minutes", [5, -5])
def test_leases_do_not_depend_on_the_workers_clock(
    database: Database, add_turn: AddTurn, tenant_id: UUID, settings: Settings, minutes: int
) -> None:
    def lease_s() -> float:
        with psycopg.connect(settings.database.url.get_secret_value()) as connection:
            row = connection.execute("SELECT extract(epoch FROM lease_until - now()) FROM jobs").fetchone()
        assert row is not None
        return float(row[0])

    with time_machine.travel(time.time() + 60 * minutes, tick=True):
        job = claim(database, add_turn())
        assert job is not None
        assert 0 < lease_s() <= LEASE.total_seconds()
        with database.transaction() as transaction:
            transaction.jobs.renew([job], 2 * LEASE)
        assert LEASE.total_seconds() < lease_s() <= 2 * LEASE.total_seconds()
        assert sweep(database) == 0
        with database.transaction() as transaction:
            transaction.jobs.retry(job, TenorError("broken"), LEASE)
        assert 0 < lease_s() <= LEASE.total_seconds()


def test_a_dead_workers_job_is_published_again(database: Database, add_turn: AddTurn) -> None:
    job = claim(database, add_turn(), lease=NO_TIME)
    assert job is not None
    forget_outbox(database)
    assert sweep(database) == 1
    assert unsent(database) == [job.id]
    again = claim(database, job)
    assert again is not None
    assert again.attempts == 2


@pytest.mark.parametrize("lane", [lane for lane in Lane if lane is not Lane.delivery])
def test_a_job_is_always_published_to_its_own_lane(database: Database, add_turn: AddTurn, lane: Lane) -> None:
    def queues() -> list[str]:
        with database.transaction() as transaction:
            messages = transaction.outbox.unsent(NO_TIME)
            transaction.outbox.remove(messages)
            return [message.queue for message in messages]

    job = add_turn(lease=NO_TIME, lane=lane)
    assert job.lane is lane
    assert queues() == [lane.value]
    assert sweep(database) == 1
    assert queues() == [lane.value]
    claimed = claim(database, job)
    assert claimed is not None
    with database.transaction() as transaction:
        (message,) = transaction.jobs.release([claimed], lease=LEASE)
    assert (message.queue, queues()) == (lane.value, [lane.value])
    quarantined(database, job)
    requeue(database, job)
    assert queues() == [lane.value]


def test_a_lost_message_is_published_again_at_growing_intervals(
    settings: Settings, database: Database, add_turn: AddTurn, tenant_id: UUID
) -> None:
    job = add_turn(lease=NO_TIME)
    waits: list[float] = []
    for _ in range(3):
        forget_outbox(database)
        _let_lease_run_out(settings, job)
        assert sweep(database) == 1
        assert unsent(database) == [job.id]
        found = read(database, tenant_id, job).job
        waits.append((found.lease_until - found.updated_at) / LEASE)
    assert waits == [1.0, 2.0, 4.0]


def test_a_job_without_attempts_left_ends_with_its_reason(
    database: Database, add_turn: AddTurn, tenant_id: UUID
) -> None:
    job = claim(database, add_turn())
    assert job is not None
    with database.transaction() as transaction:
        transaction.jobs.retry(job, TenorError("internal error (ValueError)"), NO_TIME)
    assert sweep(database, max_attempts=1) == 1
    found = read(database, tenant_id, job).job
    assert (found.status, found.error_code) == (JobStatus.quarantined, "attempts_exhausted")
    assert "ValueError" in (found.error_message or "")
    assert found.ended


def quarantined(database: Database, job: Job) -> Job:
    claimed = claim(database, job)
    assert claimed is not None
    with database.transaction() as transaction:
        ended = transaction.jobs.quarantine(claimed, TenorError("internal error (ValueError)"), lease=LEASE)
        assert ended is not None
    return claimed


def requeue(database: Database, job: Job) -> None:
    with database.transaction() as transaction:
        transaction.job_admin.requeue(job, lease=LEASE)


def test_a_quarantined_job_runs_only_after_an_operator_requeues_it_with_new_attempts(
    database: Database, add_turn: AddTurn, tenant_id: UUID
) -> None:
    job = add_turn(lease=NO_TIME)
    stuck = quarantined(database, job)
    assert (claim(database, job), sweep(database)) == (None, 0)
    forget_outbox(database)
    requeue(database, job)
    assert unsent(database) == [job.id]
    again = claim(database, job)
    assert again is not None
    assert (again.attempts, again.error_code) == (1, None)
    assert not succeed(database, stuck)  # which was the first attempt, too
    assert succeed(database, again)
    assert read(database, tenant_id, job).job.status is JobStatus.succeeded


def test_only_quarantined_jobs_can_be_requeued(database: Database, add_turn: AddTurn) -> None:
    with pytest.raises(WrongJobStatus, match="not quarantined"):
        requeue(database, add_turn())


def test_a_dropped_job_fails_permanently_and_its_turn_is_kept(
    database: Database, add_turn: AddTurn, tenant_id: UUID
) -> None:
    job = quarantined(database, add_turn())
    with database.transaction() as transaction:
        transaction.job_admin.drop(job, lease=LEASE)
    found = read(database, tenant_id, job)
    assert (found.job.status, found.job.error_code) == (JobStatus.failed, "job_dropped")
    assert found.turn.text == "good news"
    with pytest.raises(WrongJobStatus), database.transaction() as transaction:
        transaction.job_admin.drop(job, lease=LEASE)
    with pytest.raises(WrongJobStatus):
        requeue(database, job)


def test_a_turn_deleted_while_it_is_analysed_leaves_nothing(
    database: Database, add_turn: AddTurn, tenant_id: UUID
) -> None:
    job = claim(database, add_turn())
    assert job is not None
    session_id = read(database, tenant_id, job).turn.session_id
    with database.transaction() as transaction:
        transaction.sessions.delete(tenant_id, session_id)
    assert not succeed(database, job)


def test_a_subject_is_deleted_with_their_last_session(database: Database, tenant_id: UUID) -> None:
    def subject_of_new_session() -> tuple[UUID, UUID | None]:
        with database.transaction() as transaction:
            session = transaction.sessions.create(tenant_id, Consent(), subject_ref="p-17")
            return session.id, session.subject_id

    (first, subject), (second, same) = subject_of_new_session(), subject_of_new_session()
    assert subject == same
    for session_id in (first, second):
        with database.transaction() as transaction:
            transaction.sessions.delete(tenant_id, session_id)
    assert subject_of_new_session()[1] != subject


def test_a_subject_is_kept_while_another_session_is_being_created(database: Database, tenant_id: UUID) -> None:
    with database.transaction() as transaction:
        last = transaction.sessions.create(tenant_id, Consent(), subject_ref="p-17").id
    with ThreadPoolExecutor(1) as pool:
        with database.transaction() as opening:
            new = opening.sessions.create(tenant_id, Consent(), subject_ref="p-17").id
            deletion = pool.submit(_delete_session, database, tenant_id, last)
            time.sleep(0.3)  # by then it waits for us
        deletion.result(10)
    with database.transaction() as transaction:
        assert transaction.sessions.get(tenant_id, new).subject_id is not None


def test_an_upload_claimed_while_its_session_is_deleted_is_deleted_too(
    database: Database, tenant_id: UUID, settings: Settings
) -> None:
    with database.transaction() as transaction:
        session_id = transaction.sessions.create(tenant_id, Consent()).id
    uri = new_uri(tenant_id, session_id)
    with ThreadPoolExecutor(1) as pool:
        with database.transaction() as claiming:
            claiming.sessions.lock_session(tenant_id, session_id)
            deletion = pool.submit(_delete_session, database, tenant_id, session_id)
            time.sleep(0.3)
            _claim_recording(claiming, session_id, uri, None)
        assert list(deletion.result(10)) == [uri]


def _delete_session(database: Database, tenant_id: UUID, session_id: UUID) -> Sequence[str]:
    with database.transaction() as transaction:
        return transaction.sessions.delete(tenant_id, session_id)


def _claim_recording(
    transaction: Transaction, session_id: UUID, uri: str, retention: timedelta | None, sha256: str = "0" * 64
) -> Recording:
    return transaction.recordings.add(
        session_id,
        uri=uri,
        sha256=sha256,
        media_type="audio/wav",
        duration_s=1.0,
        channel_count=1,
        retention=retention,
    )


def test_indexes_are_gapless_when_many_turns_arrive_at_once(database: Database, tenant_id: UUID) -> None:
    with database.transaction() as transaction:
        session_id = transaction.sessions.create(tenant_id, Consent()).id

    def add(_: int) -> int:
        with database.transaction() as transaction:
            return transaction.turns.add(tenant_id, session_id, speaker="Ana", role=SpeakerRole.user, text="x").index

    with ThreadPoolExecutor(8) as pool:
        assert sorted(pool.map(add, range(40))) == list(range(40))


def test_one_invalid_turn_of_a_batch_does_not_affect_the_others(database: Database, tenant_id: UUID) -> None:
    with database.transaction() as transaction:
        mine = [transaction.sessions.create(tenant_id, Consent()).id for _ in range(2)]
        other_tenant = transaction.accounts.ensure_tenant("globex")
        theirs = transaction.sessions.create(other_tenant, Consent()).id
    places = [mine[0], mine[1], theirs, mine[0], uuid4(), mine[0]]
    with database.transaction() as transaction:
        new = [NewTurn(tenant_id, place, "Ana", SpeakerRole.user, text=str(n)) for n, place in enumerate(places)]
        added = transaction.turns.add_all(new)
        turns = [turn for turn in added if isinstance(turn, Turn)]
        assert [(turn.session_id, turn.index, turn.text) for turn in turns] == [
            (mine[0], 0, "0"),
            (mine[1], 0, "1"),
            (mine[0], 1, "3"),
            (mine[0], 2, "5"),
        ]
        assert [isinstance(turn, SessionNotFound) for turn in added] == [place not in mine for place in places]
        jobs = [
            NewJob(turn_id=turn.id, lane=lane, correlation_id=f"call {lane}")
            for turn, lane in zip(turns, [*TURN_LANES, *TURN_LANES], strict=True)
        ]
        queued = transaction.jobs.enqueue(jobs, lease=LEASE)
    assert [(job.turn_id, job.lane, job.correlation_id) for job, _ in queued] == [
        (job.turn_id, job.lane, job.correlation_id) for job in jobs
    ]
    assert all(message and (message.job_id, message.queue) == (job.id, job.lane) for job, message in queued)
    with database.transaction() as transaction:
        (turn,) = transaction.turns.add_all([new[0]])
    assert isinstance(turn, Turn)
    assert turn.index == 3


@pytest.fixture
def sweeper(settings: Settings, database: Database) -> Sweeper:
    return Sweeper(settings, database, Broker(settings.broker.url), "bundle")


@pytest.fixture
def upkeep(settings: Settings, database: Database, sweeper: Sweeper) -> Callable[[], None]:
    """A sweep, and the maintenance that it sends for."""
    deletion = DeleteAudio(database, BlobFolder(settings.blob_dir))
    runner = JobRunner(settings, database, Broker(settings.broker.url), {Lane.maintenance: deletion})

    def upkeep() -> None:
        sweeper.sweep()
        with database.transaction() as transaction:
            waiting = transaction.job_admin.find(statuses=OPEN)
        for job in waiting:
            if job.lane is Lane.maintenance:
                runner.run(job.id)

    return upkeep


def test_deleting_published_messages_does_not_wait_for_a_sweeper(database: Database, add_turn: AddTurn) -> None:
    add_turn()
    with database.transaction() as sweeping:
        messages = sweeping.outbox.unsent(NO_TIME)
        with database.transaction() as transaction:
            transaction.outbox.remove(messages)
        sweeping.outbox.remove(messages)
    with database.transaction() as transaction:
        assert not transaction.outbox.unsent(NO_TIME)


def test_turns_read_in_one_batch_are_visible_to_their_own_tenant_only(
    database: Database, tenant_id: UUID, add_turn: AddTurn
) -> None:
    mine = add_turn()
    assert mine.turn_id is not None
    with database.transaction() as transaction:
        stranger = transaction.accounts.ensure_tenant("globex")
        found, hidden = transaction.turns.get_all([(tenant_id, mine.turn_id), (stranger, mine.turn_id)])
    assert isinstance(found, AnalyzedTurn)
    assert found.job.id == mine.id
    assert isinstance(hidden, TurnNotFound)


def test_keys_looked_up_in_one_batch_are_each_checked(database: Database, tenant_id: UUID) -> None:
    with database.transaction() as transaction:
        valid, revoked = (transaction.accounts.create_key(tenant_id, name, KeyRole.reader) for name in ("one", "two"))
        found = transaction.accounts.key(revoked)
        assert found is not None
        transaction.accounts.revoke_key(found.id)
        keys = transaction.accounts.keys([key_hash(clear) for clear in (revoked, valid, "tnr_unknown")])
    assert [key and key.name for key in keys] == [None, "one", None]


def test_the_sweeper_publishes_messages_that_the_api_could_not(
    sweeper: Sweeper, broker: redis.Redis, database: Database, add_turn: AddTurn
) -> None:
    add_turn()
    time.sleep(1.1)
    sweeper.sweep()
    assert broker.llen(Lane.interactive.value) == 1
    sweeper.sweep()
    assert broker.llen(Lane.interactive.value) == 1


def test_publishing_works_right_after_the_broker_was_flushed(
    settings: Settings, broker: redis.Redis, database: Database, add_turn: AddTurn
) -> None:
    queue = Broker(settings.broker.url)
    for _ in range(2):
        add_turn()
        with database.transaction() as transaction:
            messages = transaction.outbox.unsent(NO_TIME)
            assert queue.publish(messages)
        assert broker.llen(Lane.interactive.value) == len(messages)
        broker.flushall()


def test_an_upload_that_was_never_claimed_is_deleted(
    upkeep: Callable[[], None], settings: Settings, database: Database, tmp_path: Path
) -> None:
    blobs = BlobFolder(settings.blob_dir)
    uri = new_uri(uuid4(), uuid4())
    with database.transaction() as transaction:
        transaction.pending_deletions.add(uri, NO_TIME)
    source = tmp_path / "voice"
    source.write_bytes(b"voice")
    with source.open("rb") as file:
        blobs.put(uri, file)
    upkeep()
    assert list(settings.blob_dir.rglob("*")) == []


@pytest.mark.parametrize(("retention", "kept"), [(None, False), (NO_TIME, False), (timedelta(days=1), True)])
@pytest.mark.parametrize("outcome", ["succeeds", "fails", "is quarantined for too long", "is dropped"])
def test_a_recording_outlives_its_analysis_only_with_consent(
    upkeep: Callable[[], None],
    settings: Settings,
    database: Database,
    tenant_id: UUID,
    tmp_path: Path,
    retention: timedelta | None,
    kept: bool,
    outcome: str,
) -> None:
    source = tmp_path / "voice"
    source.write_bytes(b"voice")
    with database.transaction() as transaction:
        session = transaction.sessions.create(tenant_id, Consent())
        uri = new_uri(tenant_id, session.id)
        with source.open("rb") as file:
            sha256 = BlobFolder(settings.blob_dir).put(uri, file)
        recording = _claim_recording(transaction, session.id, uri, retention, sha256)
        turn = transaction.turns.add(
            tenant_id, session.id, speaker="Ana", role=SpeakerRole.user, text=None, recording_id=recording.id
        )
        new = NewJob(turn_id=turn.id, lane=Lane.interactive)
        ((queued, _),) = transaction.jobs.enqueue([new], lease=LEASE)
    upkeep()
    path = settings.blob_dir / uri
    assert path.exists()
    job = claim(database, queued)
    assert job is not None
    if outcome == "succeeds":
        assert succeed(database, job)
    elif outcome == "fails":
        with database.transaction() as transaction:
            assert transaction.jobs.fail(job, AudioUndecodable("damaged"), lease=LEASE) is not None
    else:
        with database.transaction() as transaction:
            transaction.jobs.quarantine(job, TenorError("broken"), lease=LEASE)
        upkeep()
        assert path.exists() is (retention != NO_TIME)
        if outcome == "is dropped":
            with database.transaction() as transaction:
                transaction.job_admin.drop(job, lease=LEASE)
        else:
            _age(settings, job, timedelta(days=8))
    upkeep()
    assert path.exists() is kept


def test_a_recording_that_cannot_be_deleted_does_not_stop_the_others(
    upkeep: Callable[[], None], settings: Settings, database: Database
) -> None:
    uris = [new_uri(uuid4(), uuid4()) for _ in range(2)]
    with database.transaction() as transaction:
        for uri in uris:
            transaction.pending_deletions.add(uri, NO_TIME)
            (settings.blob_dir / uri).parent.mkdir(parents=True)
    (settings.blob_dir / uris[0]).mkdir()  # no file, so it cannot be deleted as one
    (settings.blob_dir / uris[1]).touch()
    upkeep()
    assert not (settings.blob_dir / uris[1]).exists()
    with database.transaction() as transaction:
        assert list(transaction.pending_deletions.due()) == [uris[0]]


def test_workers_count_as_alive_while_their_heartbeat_is_recent(
    sweeper: Sweeper, settings: Settings, database: Database
) -> None:
    def alive() -> int:
        with database.transaction() as transaction:
            return transaction.workers.count(seen_within=settings.jobs.lease)

    assert alive() == 0
    sweeper.start()
    wait_for(lambda: alive() == 1)
    sweeper.stop()
    assert alive() == 0


def test_an_unreachable_database_raises_unavailable() -> None:
    with pytest.raises(Unavailable), Database(SecretStr("postgresql://127.0.0.1:1/none")).transaction():
        pass


def test_migrations_and_tables_agree(settings: Settings) -> None:
    url = make_url(settings.database.url.get_secret_value()).set(drivername="postgresql+psycopg")
    runner = create_engine(url)
    with runner.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
    runner.dispose()  # else its connection, left to the garbage collector, fails whichever test runs next


def _let_lease_run_out(settings: Settings, job: Job) -> None:
    with psycopg.connect(settings.database.url.get_secret_value()) as connection:
        connection.execute("UPDATE jobs SET lease_until = now() - interval '1 s' WHERE id = %s", [job.id])


def _age(settings: Settings, job: Job, by: timedelta) -> None:
    with psycopg.connect(settings.database.url.get_secret_value()) as connection:
        connection.execute("UPDATE jobs SET updated_at = updated_at - %s WHERE id = %s", [by, job.id])
