"""Webhooks: an event for every turn that ends, signed, repeated until it is received, sent to public addresses only."""

import asyncio
import logging
import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import httpx2 as httpx
import psycopg
import pytest
import redis
import trustme
from fastapi.testclient import TestClient
from standardwebhooks.webhooks import WebhookVerificationError

from services.api.app import create_app
from shared.domain.access import KeyRole
from shared.domain.job import OPEN, TURN_LANES, Job, JobStatus, Lane, ListedJob, Message
from shared.domain.webhook import Delivery
from shared.errors import AudioUndecodable, StageTimeout, TenorError, WebhookForbidden
from shared.messaging.broker import Broker
from shared.settings import Settings
from shared.store.database import Database, Transaction
from shared.store.webhooks import MAX_WEBHOOKS
from tests.conftest import wait_for
from tests.integration.conftest import MakeKey
from tests.webhook_receiver import Receiver
from workers.delivery_lane import DeliveryLane
from workers.job_runner import JobRunner, ResultWriter, StageEntered
from workers.sweeper import Sweeper
from workers.webhook_client import PublicNetwork

LEASE = timedelta(seconds=30)
SECRET = "my father has died"
AddTurn = Callable[[], Job]
Deliver = Callable[..., ListedJob | None]
MakeLane = Callable[..., DeliveryLane]


class Analysis:
    """A turn's, that ends as it is told to."""

    error: Exception | None = None

    def read(self, transaction: Transaction, job: Job) -> None: ...

    def do(self, job: Job, details: None, on_stage: StageEntered) -> ResultWriter:
        if self.error is not None:
            raise self.error
        return lambda _: ()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    yield receiver
    receiver.close()


@pytest.fixture
def other_receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    yield receiver
    receiver.close()


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.updated(webhooks={"allow_private": True})


@pytest.fixture
def webhook(api: TestClient, receiver: Receiver) -> dict[str, Any]:
    created = api.post("/v1/webhooks", json={"url": f"http://127.0.0.1:{receiver.port}/tenor?token=hunter2"})
    assert created.status_code == 201, created.text
    return created.json()


@pytest.fixture
def analysis() -> Analysis:
    return Analysis()


@pytest.fixture
def runner(settings: Settings, database: Database, analysis: Analysis) -> JobRunner:
    return JobRunner(settings, database, Broker(settings.broker.url), dict.fromkeys(TURN_LANES, analysis))


@pytest.fixture
def make_lane(settings: Settings, database: Database, runner: JobRunner) -> Iterator[MakeLane]:
    """A delivery lane, as every worker has one, with the settings of webhooks changed as given."""
    lanes = list[DeliveryLane]()

    def make(lease_s: float = settings.jobs.lease_s, **changes: Any) -> DeliveryLane:  # noqa: ANN401
        changed = settings.updated(jobs={"lease_s": lease_s}, webhooks=changes)
        lanes.append(DeliveryLane(changed, database, JobRunner(changed, database, Broker(changed.broker.url), {})))
        return lanes[-1]

    yield make
    for lane in lanes:
        lane.stop()
        lane.join()


@pytest.fixture
def add_turn(api: TestClient, database: Database) -> AddTurn:
    """A turn of `call-7`, in a session of its own."""

    def add() -> Job:
        session_id = api.post("/v1/sessions", json={"external_ref": "call-7"}).json()["id"]
        turn = api.post(f"/v1/sessions/{session_id}/turns", json={"text": SECRET}).json()
        (job,) = (job for job in jobs(database) if str(job.turn_id) == turn["id"])
        return job

    return add


@pytest.fixture
def deliver(make_lane: MakeLane, database: Database, settings: Settings) -> Deliver:
    """One attempt at every delivery that has not ended; the newest as it is then, None once it is made.

    Pauses, of the delivery and of its webhook, are not waited for.
    """

    def deliver(**changes: Any) -> ListedJob | None:  # noqa: ANN401
        before = {job.id: job.attempts for job in deliveries(database) if job.status in OPEN}
        end_pauses(settings)
        lane = make_lane(**changes)
        lane.start()
        wait_for(
            lambda: all(job.attempts > before.get(job.id, -1) for job in deliveries(database)) and not lane.running_jobs
        )
        lane.stop()
        lane.join()
        return next(iter(deliveries(database)), None)

    return deliver


def jobs(database: Database) -> list[ListedJob]:
    with database.transaction() as transaction:
        return transaction.job_admin.find()


def deliveries(database: Database) -> list[ListedJob]:
    return [job for job in jobs(database) if job.lane is Lane.delivery]


def claim(database: Database, job: Job) -> Job:
    with database.transaction() as transaction:
        return transaction.jobs.claim(job.id, LEASE) or pytest.fail("it cannot be claimed")


def end_pauses(settings: Settings) -> None:
    with psycopg.connect(settings.database.url.get_secret_value()) as connection:
        connection.execute("UPDATE webhooks SET paused_until = now() WHERE paused_until IS NOT NULL")
        connection.execute("UPDATE jobs SET lease_until = now() WHERE lane = 'delivery' AND status = 'queued'")


def let_leases_run_out(settings: Settings) -> None:
    with psycopg.connect(settings.database.url.get_secret_value()) as connection:
        connection.execute("UPDATE jobs SET lease_until = now() - interval '1 s'")


def sweep(settings: Settings, database: Database) -> None:
    Sweeper(settings, database, Broker(settings.broker.url), "bundle").sweep()


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (None, "succeeded", None),
        (AudioUndecodable("damaged"), "failed", "audio_undecodable"),
        (StageTimeout("too slow"), "quarantined", "attempts_exhausted"),
    ],
)
def test_whoever_is_to_be_told_is_told_at_once_how_a_turn_ended_and_nothing_that_was_said(
    runner: JobRunner,
    analysis: Analysis,
    add_turn: AddTurn,
    deliver: Deliver,
    receiver: Receiver,
    webhook: dict[str, Any],
    settings: Settings,
    broker: redis.Redis,
    error: TenorError | None,
    status: str,
    code: str | None,
) -> None:
    turn = add_turn()
    analysis.error = error
    runner._settings = settings.updated(jobs={"max_attempts": 1})
    runner.run(turn.id)
    assert broker.llen(Lane.delivery.value) == 1
    assert deliver() is None
    told = receiver.verified(webhook["secret"])
    assert told["type"] == f"turn.{status}"
    assert told["timestamp"].endswith("Z")
    assert told["data"].pop("session_id")
    wanted = {"turn_id": str(turn.turn_id), "external_ref": "call-7", "index": 0, "status": status, "error_code": code}
    assert told["data"] == wanted
    assert SECRET not in str(receiver.received)
    with pytest.raises(WebhookVerificationError):
        receiver.verified("whsec_aW52YWxpZA==")


def test_a_turn_that_an_operator_or_the_sweeper_ends_is_told_too(
    add_turn: AddTurn,
    deliver: Deliver,
    receiver: Receiver,
    webhook: dict[str, Any],
    settings: Settings,
    database: Database,
) -> None:
    claim(database, add_turn())
    let_leases_run_out(settings)
    sweep(settings.updated(jobs={"max_attempts": 1}), database)
    deliver()
    with database.transaction() as transaction:
        transaction.job_admin.drop(add_turn(), lease=LEASE)
    deliver()
    told = [(event["type"], event["data"]["error_code"]) for event in receiver.events]
    assert told == [("turn.quarantined", "attempts_exhausted"), ("turn.failed", "job_dropped")]


def test_each_webhook_of_the_tenant_is_told_and_no_other(
    api: TestClient,
    make_key: MakeKey,
    runner: JobRunner,
    add_turn: AddTurn,
    deliver: Deliver,
    receiver: Receiver,
    webhook: dict[str, Any],
) -> None:
    key, url = {"Authorization": f"Bearer {make_key('globex', KeyRole.admin)}"}, f"http://127.0.0.1:{receiver.port}/"
    for headers in ({}, key):
        assert api.post("/v1/webhooks", json={"url": url}, headers=headers).status_code == 201
    runner.run(add_turn().id)
    deliver()
    assert len(set(receiver.ids)) == len(receiver.received) == 2
    assert api.delete(f"/v1/webhooks/{webhook['id']}", headers=key).status_code == 404
    assert len(api.get("/v1/webhooks", headers=key).json()["webhooks"]) == 1


@pytest.mark.parametrize("answer", [500, 404, 302])
def test_a_receiver_is_told_again_under_the_same_id_until_it_has_heard(
    runner: JobRunner, add_turn: AddTurn, deliver: Deliver, receiver: Receiver, webhook: dict[str, Any], answer: int
) -> None:
    receiver.answer = answer
    runner.run(add_turn().id)
    waiting = deliver()
    assert waiting is not None
    assert (waiting.status, waiting.error_message) == (JobStatus.queued, f"the receiver answered {answer}")
    receiver.answer = 200
    assert deliver() is None
    assert len(receiver.ids) == 2
    assert len(set(receiver.ids)) == 1
    receiver.verified(webhook["secret"])


def test_a_receiver_that_is_down_or_never_ends_its_answer_is_told_again(
    runner: JobRunner,
    add_turn: AddTurn,
    deliver: Deliver,
    receiver: Receiver,
    webhook: dict[str, Any],
    database: Database,
    settings: Settings,
) -> None:
    runner.run(add_turn().id)
    receiver.drips = True
    slow = deliver(timeout_s=0.3)
    receiver.drips = False
    assert slow is not None
    assert slow.error_message == "the receiver could not be reached (TimeoutError)"
    with psycopg.connect(settings.database.url.get_secret_value()) as connection:
        connection.execute("UPDATE webhooks SET url = 'http://127.0.0.1:1/'")
    down = deliver()
    assert down is not None
    assert down.error_message == "the receiver could not be reached (ConnectError)"


def test_the_sweeper_leaves_a_delivery_to_its_own_count_of_attempts_and_it_is_made_in_time_without_a_message(
    runner: JobRunner,
    add_turn: AddTurn,
    deliver: Deliver,
    make_lane: MakeLane,
    receiver: Receiver,
    webhook: dict[str, Any],
    database: Database,
    settings: Settings,
    broker: redis.Redis,
) -> None:
    receiver.answer = 503
    runner.run(add_turn().id)
    for _ in range(settings.jobs.max_attempts + 1):
        deliver()
    sweep(settings, database)
    broker.flushdb()
    let_leases_run_out(settings)
    sweep(settings, database)
    (waiting,) = deliveries(database)
    assert (waiting.status, waiting.attempts) == (JobStatus.queued, settings.jobs.max_attempts + 1)
    receiver.answer = 204
    end_pauses(settings)
    make_lane().start()
    wait_for(lambda: not deliveries(database))
    assert broker.llen(Lane.delivery.value) == 0


def test_an_event_that_could_never_be_told_is_quarantined_and_can_be_tried_again(
    api: TestClient,
    runner: JobRunner,
    add_turn: AddTurn,
    deliver: Deliver,
    receiver: Receiver,
    webhook: dict[str, Any],
    database: Database,
    settings: Settings,
) -> None:
    receiver.answer = 503
    turn = add_turn()
    runner.run(turn.id)
    deliver(max_attempts=2)
    stuck = deliver(max_attempts=2)
    assert stuck is not None
    assert (stuck.status, stuck.error_code, stuck.tenant) == (JobStatus.quarantined, "attempts_exhausted", "acme")
    (shown,) = api.get("/v1/webhooks").json()["webhooks"]
    assert shown["undelivered"]["turn_id"] == str(turn.turn_id)
    assert (shown["undelivered"]["status"], shown["undelivered"]["attempts"]) == ("quarantined", 2)
    assert "the receiver answered 503" in shown["undelivered"]["error_message"]
    receiver.answer = 200
    with database.transaction() as transaction:
        transaction.job_admin.requeue(stuck, lease=LEASE)
    assert deliver() is None
    assert len(set(receiver.ids)) == 1
    assert api.get("/v1/webhooks").json()["webhooks"][0]["undelivered"] is None


def test_a_receiver_that_is_gone_is_told_nothing_any_more(
    api: TestClient, runner: JobRunner, add_turn: AddTurn, deliver: Deliver, receiver: Receiver, webhook: dict[str, Any]
) -> None:
    receiver.answer = 410
    first, second, third = add_turn(), add_turn(), add_turn()
    runner.run(first.id)
    runner.run(second.id)
    ended = deliver(in_flight_per_webhook=1)
    assert ended is not None
    assert (ended.status, ended.error_code) == (JobStatus.failed, "webhook_gone")
    runner.run(third.id)
    deliver()
    assert len(receiver.received) == 1
    (shown,) = api.get("/v1/webhooks").json()["webhooks"]
    assert shown["disabled_at"]
    assert shown["state"] == "disabled"
    assert shown["disabled_reason"] == "it answered 410"


@pytest.mark.parametrize("what", ["session", "webhook"])
def test_with_a_session_or_a_webhook_goes_all_that_has_still_to_be_told(
    api: TestClient,
    runner: JobRunner,
    add_turn: AddTurn,
    deliver: Deliver,
    webhook: dict[str, Any],
    database: Database,
    what: str,
) -> None:
    turn = add_turn()
    runner.run(turn.id)
    (waiting,) = deliveries(database)
    gone = {"session": f"/v1/sessions/{waiting.session_id}", "webhook": f"/v1/webhooks/{webhook['id']}"}
    assert api.delete(gone[what]).status_code == 204
    assert deliveries(database) == []
    assert deliver() is None


def test_whoever_ends_a_turn_does_not_wait_for_those_who_delete_a_webhook(
    add_turn: AddTurn, webhook: dict[str, Any], database: Database
) -> None:
    turn = claim(database, add_turn())
    with database.transaction() as deleting:
        tenant_id = deleting.accounts.ensure_tenant("acme")
        deleting.webhooks.delete(tenant_id, UUID(webhook["id"]))
        with database.transaction() as transaction:
            assert transaction.jobs.succeed(turn, lease=LEASE) == []


def test_a_webhook_may_be_deleted_while_it_is_told(
    api: TestClient,
    runner: JobRunner,
    add_turn: AddTurn,
    webhook: dict[str, Any],
    database: Database,
    settings: Settings,
) -> None:
    runner.run(add_turn().id)
    told = claim(database, deliveries(database)[0])
    with ThreadPoolExecutor(1) as pool:
        with database.transaction() as ending:
            ending.webhooks.record_failure(UUID(webhook["id"]), settings.webhooks.pauses, trial=False)
            deletion = pool.submit(api.delete, f"/v1/webhooks/{webhook['id']}")
            time.sleep(0.3)  # by then it waits for us
            assert ending.deliveries.succeed(told)
        assert deletion.result(10).status_code == 204
    assert deliveries(database) == []


def test_a_turn_that_could_not_be_ended_tells_nobody(
    add_turn: AddTurn, webhook: dict[str, Any], database: Database
) -> None:
    slow = claim(database, add_turn())
    with database.transaction() as transaction:
        transaction.jobs.release([slow], lease=LEASE)
    quick = claim(database, slow)
    ended: list[list[Message] | None] = []
    for claimed in (slow, quick, quick):
        with database.transaction() as transaction:
            messages = transaction.jobs.succeed(claimed, lease=LEASE)
        ended.append(None if messages is None else list(messages))
    assert [messages and len(messages) for messages in ended] == [None, 1, None]


# many webhooks at once


AddEvents = Callable[[dict[str, Any], int], None]


@pytest.fixture
def add_events(add_turn: AddTurn, settings: Settings) -> AddEvents:
    """Adds events for a webhook, all of one turn, without a message in the queue."""
    turn = add_turn()

    def add(webhook: dict[str, Any], count: int) -> None:
        with psycopg.connect(settings.database.url.get_secret_value()) as connection:
            connection.execute(
                "WITH d AS (INSERT INTO deliveries (webhook_id, turn_id, turn_status)"
                " SELECT %s, %s, 'succeeded' FROM generate_series(1, %s) RETURNING id, webhook_id)"
                " INSERT INTO jobs (delivery_id, webhook_id, lane, lease_until)"
                " SELECT id, webhook_id, 'delivery', now() FROM d",
                [webhook["id"], turn.turn_id, count],
            )

    return add


@pytest.fixture
def others_webhook(api: TestClient, make_key: MakeKey, other_receiver: Receiver) -> dict[str, Any]:
    """A webhook of another tenant, with a receiver of its own."""
    headers = {"Authorization": f"Bearer {make_key('globex', KeyRole.admin)}"}
    url = f"http://127.0.0.1:{other_receiver.port}/"
    return api.post("/v1/webhooks", json={"url": url}, headers=headers).json()


def state(api: TestClient) -> dict[str, Any]:
    (shown,) = api.get("/v1/webhooks").json()["webhooks"]
    return shown


def test_a_receiver_that_does_not_answer_has_few_requests_under_way_and_delays_nobody_else(
    make_lane: MakeLane,
    add_events: AddEvents,
    receiver: Receiver,
    other_receiver: Receiver,
    webhook: dict[str, Any],
    others_webhook: dict[str, Any],
    database: Database,
) -> None:
    receiver.answers.clear()
    add_events(webhook, 300)
    lane = make_lane(in_flight=16, in_flight_per_webhook=4, timeout_s=30)
    lane.start()
    wait_for(lambda: len(receiver.received) == 4)
    for count in (1, 2, 3):
        add_events(others_webhook, 1)
        wait_for(lambda count=count: len(other_receiver.received) == count, 2)
    assert len(receiver.received) == 4
    assert sum(job.attempts for job in deliveries(database)) == 4
    receiver.answers.set()
    wait_for(lambda: not deliveries(database), 30)
    assert len(set(receiver.ids)) == 300


def test_leases_of_events_under_way_are_renewed(
    make_lane: MakeLane,
    add_events: AddEvents,
    receiver: Receiver,
    webhook: dict[str, Any],
    database: Database,
    settings: Settings,
) -> None:
    receiver.answers.clear()
    add_events(webhook, 3)
    lane, other = make_lane(lease_s=1), make_lane(lease_s=1)
    renewing = settings.updated(jobs={"lease_s": 1})
    sweeper = Sweeper(
        renewing,
        database,
        Broker(settings.broker.url),
        "bundle",
        running_jobs=lambda: lane.running_jobs + other.running_jobs,
    )
    for each in (lane, other, sweeper):
        each.start()
    wait_for(lambda: len(receiver.received) == 3)
    time.sleep(2)
    sweeper.stop()
    assert len(receiver.received) == 3
    receiver.answers.set()
    wait_for(lambda: not deliveries(database))
    assert len(receiver.received) == 3


def test_a_lane_that_stops_ends_what_is_under_way_and_takes_nothing_more_up(
    make_lane: MakeLane,
    add_events: AddEvents,
    receiver: Receiver,
    webhook: dict[str, Any],
    database: Database,
) -> None:
    receiver.answers.clear()
    add_events(webhook, 3)
    lane = make_lane(in_flight_per_webhook=2)
    lane.start()
    wait_for(lambda: len(receiver.received) == 2)
    lane.stop()
    assert not lane.wake(uuid4())
    receiver.answers.set()
    lane.join()
    (left,) = deliveries(database)
    assert (left.status, left.attempts, lane.running_jobs) == (JobStatus.queued, 0, [])


def test_what_a_lane_gives_back_is_due_at_once_and_has_used_no_attempt(
    make_lane: MakeLane,
    runner: JobRunner,
    add_events: AddEvents,
    receiver: Receiver,
    webhook: dict[str, Any],
    database: Database,
) -> None:
    receiver.answers.clear()
    add_events(webhook, 1)
    lane = make_lane()
    lane.start()
    wait_for(lambda: len(receiver.received) == 1)
    lane.stop()
    runner.release(lane.running_jobs)
    (left,) = claim_deliveries(database)
    assert left.job.attempts == 1
    receiver.answers.set()


def claim_deliveries(database: Database, limit: int = 100, in_flight: dict[UUID, int] | None = None) -> list[Delivery]:
    with database.transaction() as transaction:
        claim = transaction.deliveries.claim
        return claim(limit, per_webhook=4, in_flight=in_flight or {}, lease=LEASE, trial=LEASE)


def test_webhooks_get_equal_shares_of_what_is_taken_up(
    add_events: AddEvents, webhook: dict[str, Any], others_webhook: dict[str, Any], database: Database
) -> None:
    add_events(webhook, 50)
    add_events(others_webhook, 2)
    ids = [UUID(each["id"]) for each in (webhook, others_webhook)]

    def taken(limit: int, in_flight: dict[UUID, int]) -> list[int]:
        claimed = Counter(delivery.webhook_id for delivery in claim_deliveries(database, limit, in_flight))
        return [claimed[each] for each in ids]

    assert taken(2, {}) == [1, 1]
    assert taken(2, {ids[0]: 3}) == [1, 1]
    assert taken(100, {ids[0]: 1}) == [3, 0]
    assert taken(100, {ids[0]: 4}) == [0, 0]
    assert taken(100, {}) == [4, 0]


def test_workers_that_claim_at_the_same_time_get_different_deliveries(
    add_events: AddEvents, webhook: dict[str, Any], database: Database
) -> None:
    add_events(webhook, 4)
    with database.transaction() as transaction:
        first = transaction.deliveries.claim(2, per_webhook=2, in_flight={}, lease=LEASE, trial=LEASE)
        second = claim_deliveries(database, 2, {})
    assert len({delivery.id for delivery in [*first, *second]}) == 4


# webhooks that keep failing


@pytest.mark.parametrize("fault", ["an error", "no answer"])
def test_a_webhook_that_keeps_failing_is_paused_for_all_until_one_event_is_received(
    api: TestClient,
    make_lane: MakeLane,
    add_events: AddEvents,
    receiver: Receiver,
    webhook: dict[str, Any],
    database: Database,
    settings: Settings,
    fault: str,
) -> None:
    assert (webhook["state"], webhook["consecutive_failures"], webhook["paused_until"]) == ("active", 0, None)
    if fault == "an error":
        receiver.answer = 503
    else:
        receiver.answers.clear()
    add_events(webhook, 20)
    lanes = [make_lane(timeout_s=0.3, in_flight_per_webhook=4, pause_s=60) for _ in range(2)]
    for lane in lanes:
        lane.start()
    wait_for(lambda: state(api)["state"] == "paused" and not any(lane.running_jobs for lane in lanes))
    shown, tried = state(api), len(receiver.received)
    assert shown["paused_until"] is not None
    assert shown["consecutive_failures"] == 5
    assert 5 <= tried <= 12
    time.sleep(4 * settings.worker.sweep_interval_s)
    assert len(receiver.received) == tried
    end_pauses(settings)
    wait_for(lambda: state(api)["consecutive_failures"] == 6)
    assert len(receiver.received) == tried + 1
    receiver.answer = 204
    receiver.answers.set()
    end_pauses(settings)
    wait_for(lambda: not deliveries(database))
    assert (state(api)["state"], state(api)["consecutive_failures"], state(api)["paused_until"]) == ("active", 0, None)
    assert len(set(receiver.ids)) == 20


def test_answers_that_refuse_an_event_pause_nothing(
    api: TestClient, make_lane: MakeLane, add_events: AddEvents, receiver: Receiver, webhook: dict[str, Any]
) -> None:
    receiver.answer = 404
    add_events(webhook, 10)
    make_lane().start()
    wait_for(lambda: len(receiver.received) == 10)
    assert state(api)["state"] == "active"


def test_each_pause_is_twice_as_long_and_none_is_longer_than_an_hour(
    webhook: dict[str, Any], database: Database, settings: Settings
) -> None:
    def fail(*, trial: bool) -> float | None:
        with database.transaction() as transaction:
            pause = transaction.webhooks.record_failure(UUID(webhook["id"]), settings.webhooks.pauses, trial=trial)
        return None if pause is None else pause.total_seconds()

    assert [fail(trial=False) for _ in range(7)] == [None, None, None, None, 10, None, None]
    assert [fail(trial=True) for _ in range(10)] == [20, 40, 80, 160, 320, 640, 1280, 2560, 3600, 3600]


def test_of_a_paused_webhook_one_event_is_taken_up_once_its_pause_has_ended(
    add_events: AddEvents, webhook: dict[str, Any], database: Database, settings: Settings
) -> None:
    add_events(webhook, 5)
    for _ in range(5):
        with database.transaction() as transaction:
            transaction.webhooks.record_failure(UUID(webhook["id"]), settings.webhooks.pauses, trial=False)
    assert claim_deliveries(database) == []
    end_pauses(settings)
    with ThreadPoolExecutor(4) as pool:
        taken = [each for claimed in pool.map(lambda _: claim_deliveries(database), range(4)) for each in claimed]
    assert [delivery.trial for delivery in taken] == [True]
    assert claim_deliveries(database) == []


def test_an_event_waits_a_day_for_a_paused_webhook_without_using_attempts_and_is_then_quarantined(
    api: TestClient,
    add_events: AddEvents,
    deliver: Deliver,
    webhook: dict[str, Any],
    database: Database,
    settings: Settings,
) -> None:
    def age(hours: float) -> None:
        with psycopg.connect(settings.database.url.get_secret_value()) as connection:
            since = "now() - make_interval(secs => %s)"
            connection.execute(f"UPDATE jobs SET lease_until = {since} WHERE lane = 'delivery'", [hours * 3600])

    add_events(webhook, 1)
    age(30)
    sweep(settings, database)
    assert [job.status for job in deliveries(database)] == [JobStatus.queued]  # it is not paused
    with psycopg.connect(settings.database.url.get_secret_value()) as connection:
        connection.execute("UPDATE webhooks SET consecutive_failures = 9, paused_until = now() + interval '1 h'")
    for hours, status in ((23, JobStatus.queued), (25, JobStatus.quarantined)):
        age(hours)
        sweep(settings, database)
        (waiting,) = deliveries(database)
        assert (waiting.status, waiting.attempts) == (status, 0)
    assert "its webhook was paused for 24 hours" in state(api)["undelivered"]["error_message"]
    with database.transaction() as transaction:
        transaction.job_admin.requeue(waiting, lease=LEASE)
    sweep(settings, database)
    assert [job.status for job in deliveries(database)] == [JobStatus.queued]
    assert deliver() is None


def test_a_turn_that_ends_while_the_state_of_a_webhook_changes_is_told(
    add_turn: AddTurn, webhook: dict[str, Any], database: Database, settings: Settings
) -> None:
    turn = claim(database, add_turn())
    with database.transaction() as changing:
        changing.webhooks.record_failure(UUID(webhook["id"]), settings.webhooks.pauses, trial=False)
        with database.transaction() as transaction:
            assert len(transaction.jobs.succeed(turn, lease=LEASE) or ()) == 1


# what a receiver may do to us


def test_a_connection_is_used_again_and_by_no_other_name(
    runner: JobRunner,
    add_turn: AddTurn,
    make_lane: MakeLane,
    receiver: Receiver,
    certify: Callable[[str], None],
    database: Database,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = socket.getaddrinfo
    names = ("receiver.test", "another.test")

    def look_up(host: str, *args: Any, **kwargs: Any) -> list[Any]:  # noqa: ANN401
        return real("127.0.0.1" if host in names else host, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    certify("receiver.test")
    with database.transaction() as transaction:
        acme = transaction.accounts.ensure_tenant("acme")
        transaction.webhooks.create(acme, f"https://receiver.test:{receiver.port}/")
    make_lane().start()
    for count in (1, 2):
        runner.run(add_turn().id)
        wait_for(lambda count=count: len(receiver.received) == count and not deliveries(database))
    assert receiver.connections == 1
    with database.transaction() as transaction:
        transaction.webhooks.create(acme, f"https://another.test:{receiver.port}/")
    runner.run(add_turn().id)
    wait_for(lambda: len(receiver.received) == 3 and [job.status for job in deliveries(database)] == [JobStatus.queued])
    (refused,) = deliveries(database)
    assert refused.error_message == "the receiver could not be reached (ConnectError)"
    assert {headers["Host"] for headers, _ in receiver.received} == {f"receiver.test:{receiver.port}"}


def test_of_an_answer_neither_endless_headers_nor_a_long_body_are_read(
    runner: JobRunner, add_turn: AddTurn, deliver: Deliver, receiver: Receiver, webhook: dict[str, Any]
) -> None:
    receiver.headers = b"X-Header: " + b"a" * 1000 + b"\r\n"
    runner.run(add_turn().id)
    refused = deliver(timeout_s=30)
    assert refused is not None
    assert refused.error_message == "the receiver could not be reached (RemoteProtocolError)"
    receiver.headers, receiver.body = b"", b"a" * 1000
    assert deliver(timeout_s=30) is None


def test_a_name_that_is_not_resolved_in_time_holds_one_thread_and_nobody_else(
    make_lane: MakeLane,
    add_events: AddEvents,
    receiver: Receiver,
    webhook: dict[str, Any],
    others_webhook: dict[str, Any],
    other_receiver: Receiver,
    database: Database,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real, asked, goes_on = socket.getaddrinfo, list[str](), threading.Event()

    def look_up(host: str, *args: Any, **kwargs: Any) -> list[Any]:  # noqa: ANN401
        if host == "hangs.test":
            asked.append(host)
            goes_on.wait(30)
        return real("127.0.0.1", *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    with psycopg.connect(settings.database.url.get_secret_value()) as connection:
        url = "UPDATE webhooks SET url = %s WHERE id = %s"
        connection.execute(url, [f"http://hangs.test:{receiver.port}/", webhook["id"]])
        connection.execute(url, [f"http://fine.test:{other_receiver.port}/", others_webhook["id"]])
    add_events(webhook, 20)
    make_lane(timeout_s=0.3).start()
    wait_for(lambda: bool(asked))
    add_events(others_webhook, 1)
    wait_for(lambda: len(other_receiver.received) == 1, 2)
    wait_for(lambda: sum(job.attempts == 1 and job.status == JobStatus.queued for job in deliveries(database)) >= 5)
    assert asked == ["hangs.test"]
    goes_on.set()
    errors = {job.error_message for job in deliveries(database) if job.attempts and job.status == JobStatus.queued}
    assert errors == {"the receiver could not be reached (TimeoutError)"}


# where nothing may be sent


Names = Callable[..., None]
Tell = Callable[..., ListedJob | None]


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Names:
    """Lets a name stand for addresses, for one look-up."""
    real = socket.getaddrinfo

    def names(name: str, *addresses: str) -> None:
        stands_for = [addresses]

        def look_up(host: str | bytes, *args: Any, **kwargs: Any) -> list[Any]:  # noqa: ANN401
            its = stands_for.pop() if host in (name, name.encode()) else (host,)
            return [found for address in its for found in real(address, *args, **kwargs)]

        monkeypatch.setattr(socket, "getaddrinfo", look_up)

    return names


@pytest.fixture
def tell(runner: JobRunner, add_turn: AddTurn, deliver: Deliver, database: Database) -> Tell:
    """Tell a URL of a turn, whether or not the API would take it."""

    def tell(url: str, *, private: bool = True) -> ListedJob | None:
        turn = add_turn()
        with database.transaction() as transaction:
            transaction.webhooks.create(transaction.accounts.ensure_tenant("acme"), url)
        runner.run(turn.id)
        return deliver(allow_private=private)

    return tell


@pytest.mark.parametrize("url", ["https://127.0.0.1:{port}/", "https://inside.test:{port}/", "http://93.184.215.14/"])
def test_nothing_is_sent_into_ones_own_network_or_in_clear(
    tell: Tell, names: Names, receiver: Receiver, url: str
) -> None:
    names("inside.test", "93.184.215.14", "127.0.0.1")
    ended = tell(url.format(port=receiver.port), private=False)
    assert ended is not None
    assert (ended.status, ended.error_code) == (JobStatus.failed, "webhook_forbidden")
    assert receiver.received == []


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "2130706433",
        "0.0.0.0",
        "10.0.0.1",
        "100.64.0.1",
        "169.254.169.254",
        "224.0.0.1",
        "[::]",
        "[::1]",
        "[::127.0.0.1]",
        "[::ffff:127.0.0.1]",
        "[64:ff9b::7f00:1]",
        "[2002:7f00:1::]",
        "[fc00::1]",
        "[fe80::1]",
        "[fec0::1]",
        "[ff02::1]",
    ],
)
def test_addresses_that_are_not_everybodys_are_forbidden(host: str) -> None:
    def addresses(host: str) -> list[str]:
        return asyncio.run(PublicNetwork(private=False).addresses(httpx.URL(f"https://{host}/").raw_host.decode(), 443))

    assert addresses("93.184.215.14") == ["93.184.215.14"]
    with pytest.raises(WebhookForbidden):
        addresses(host)


@pytest.fixture
def certify(receiver: Receiver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Has the receiver speak TLS, with a trusted certificate for a name."""

    def certify(name: str) -> None:
        authority, tls = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert(name).configure_cert(tls)
        receiver.server.socket = tls.wrap_socket(receiver.server.socket, server_side=True)
        authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))

    return certify


@pytest.mark.parametrize("certified", ["receiver.test", "another.test"])
def test_the_address_that_was_looked_up_is_called_and_has_to_be_certified_for_the_name(
    tell: Tell, names: Names, receiver: Receiver, certify: Callable[[str], None], certified: str
) -> None:
    certify(certified)
    names("receiver.test", "127.0.0.1")
    ended = tell(f"https://receiver.test:{receiver.port}/tenor")
    if certified == "receiver.test":
        assert ended is None
        assert receiver.received[0][0]["Host"] == f"receiver.test:{receiver.port}"
    else:
        assert ended is not None
        assert ended.error_message == "the receiver could not be reached (ConnectError)"
        assert receiver.received == []


def test_the_next_address_of_a_name_is_called_where_the_first_does_not_answer(
    tell: Tell, names: Names, receiver: Receiver
) -> None:
    names("receiver.test", "127.0.0.2", "127.0.0.1")
    assert tell(f"http://receiver.test:{receiver.port}/") is None
    assert len(receiver.received) == 1


def test_proxies_are_not_used(tell: Tell, receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert tell(f"http://127.0.0.1:{receiver.port}/") is None


def test_a_user_and_a_password_in_the_url_are_sent_as_http_has_it(tell: Tell, receiver: Receiver) -> None:
    assert tell(f"http://ann:s%40fe@127.0.0.1:{receiver.port}/") is None
    (headers, _), *_ = receiver.received
    assert headers["Authorization"] == "Basic YW5uOnNAZmU="
    assert headers["Host"] == f"127.0.0.1:{receiver.port}"


def test_a_receiver_that_fails_is_logged_in_one_line_without_a_traceback(
    runner: JobRunner,
    add_turn: AddTurn,
    deliver: Deliver,
    receiver: Receiver,
    webhook: dict[str, Any],
    caplog: pytest.LogCaptureFixture,
) -> None:
    receiver.answer = 500
    runner.run(add_turn().id)
    caplog.clear()
    deliver()
    told = [record for record in caplog.records if record.getMessage().startswith("attempt ")]
    assert {(record.levelname, record.getMessage()) for record in told} == {
        ("WARNING", f"attempt {number}: the receiver answered 500") for number in range(1, len(told) + 1)
    }
    assert told


@pytest.mark.parametrize("answer", [200, 500, 410])
def test_neither_secrets_nor_a_urls_query_are_logged(
    runner: JobRunner,
    add_turn: AddTurn,
    deliver: Deliver,
    receiver: Receiver,
    webhook: dict[str, Any],
    caplog: pytest.LogCaptureFixture,
    answer: int,
) -> None:
    for package in ("services", "shared", "workers"):
        caplog.set_level(logging.DEBUG, logger=package)
    receiver.answer = answer
    runner.run(add_turn().id)
    left = deliver()
    assert receiver.received
    assert "job" in caplog.text or "attempt" in caplog.text
    for secret in ("hunter2", webhook["secret"], SECRET):
        assert secret not in caplog.text
        assert secret not in str(left)


# the API


def test_a_webhooks_secret_is_shown_once(api: TestClient, webhook: dict[str, Any]) -> None:
    assert webhook["secret"].startswith("whsec_")
    (shown,) = api.get("/v1/webhooks").json()["webhooks"]
    assert shown == {key: value for key, value in webhook.items() if key != "secret"}
    assert api.delete(f"/v1/webhooks/{webhook['id']}").status_code == 204
    assert api.get("/v1/webhooks").json() == {"webhooks": []}


@pytest.mark.parametrize("role", [KeyRole.reader, KeyRole.writer])
def test_webhooks_are_the_admins_affair(
    api: TestClient, make_key: MakeKey, webhook: dict[str, Any], role: KeyRole
) -> None:
    headers = {"Authorization": f"Bearer {make_key('acme', role)}"}
    for answer in (
        api.post("/v1/webhooks", json={"url": "https://example.com/"}, headers=headers),
        api.get("/v1/webhooks", headers=headers),
        api.delete(f"/v1/webhooks/{webhook['id']}", headers=headers),
    ):
        assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")


def test_a_webhook_that_is_not_there_cannot_be_deleted(api: TestClient) -> None:
    answer = api.delete(f"/v1/webhooks/{uuid4()}")
    assert (answer.status_code, answer.json()["code"]) == (404, "webhook_not_found")


def test_a_tenant_has_only_so_many_webhooks(api: TestClient) -> None:
    answers = [api.post("/v1/webhooks", json={"url": "https://example.com/"}) for _ in range(MAX_WEBHOOKS + 1)]
    assert [answer.status_code for answer in answers] == [201] * MAX_WEBHOOKS + [409]
    assert answers[-1].json()["code"] == "webhooks_too_many"


def test_a_webhook_in_clear_is_refused_unless_it_is_in_ones_own_network(settings: Settings, make_key: MakeKey) -> None:
    with TestClient(create_app(settings.updated(webhooks={"allow_private": False}))) as client:
        headers = {"Authorization": f"Bearer {make_key('acme', KeyRole.admin)}"}
        answer = client.post("/v1/webhooks", json={"url": "http://example.com/?token=hunter2"}, headers=headers)
    assert (answer.status_code, answer.json()["detail"]) == (422, "url: should begin with https://")


def test_the_documentation_shows_what_a_webhook_is_told(api: TestClient) -> None:
    (event,) = api.get("/openapi.json").json()["webhooks"].values()
    assert event["post"]["requestBody"]["content"]["application/json"]["schema"]["$ref"].endswith("/Event")


def test_the_documentation_shows_the_state_of_a_webhook(api: TestClient) -> None:
    shown = api.get("/openapi.json").json()["components"]["schemas"]["Webhook"]
    assert shown["properties"]["state"]["enum"] == ["active", "paused", "disabled"]
    assert {"state", "paused_until", "consecutive_failures"} <= set(shown["required"])
