"""Events reach their receivers although workers are killed and stopped."""

import signal
import subprocess
import time
from collections.abc import Iterator

import pytest

from shared.domain.job import Lane
from tests.acceptance.conftest import Tenor
from tests.conftest import wait_for
from tests.webhook_receiver import Receiver

DELIVERIES_ALONE = {
    "worker_interactive_threads": 0,
    "worker_bulk_threads": 0,
    "worker_recording_threads": 0,
    "worker_maintenance_threads": 0,
    "webhooks_allow_private": True,
    "observability_log_format": "json",
}


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    yield receiver
    receiver.close()


def end_turns(tenor: Tenor, count: int) -> None:
    """End turns, each of which is an event."""
    session_id = tenor.session()
    for _ in range(count):
        tenor.api.post(f"/v1/sessions/{session_id}/turns", json={"text": "hello"})
    with tenor.database.transaction() as transaction:
        for job in transaction.job_admin.find():
            transaction.job_admin.drop(job, lease=tenor.settings.jobs.lease)


def undelivered(tenor: Tenor) -> int:
    with tenor.database.transaction() as transaction:
        return sum(job.lane is Lane.delivery for job in transaction.job_admin.find())


def test_deliveries_of_a_killed_worker_are_sent_again_and_a_stopped_worker_finishes_its_own(
    tenor: Tenor, receiver: Receiver
) -> None:
    with tenor.database.transaction() as transaction:
        tenant_id = transaction.accounts.ensure_tenant("acme")
        transaction.webhooks.create(tenant_id, f"http://127.0.0.1:{receiver.port}/")
    receiver.answers.clear()
    end_turns(tenor, 3)
    workers = list[subprocess.Popen[bytes]]()
    try:
        workers.append(tenor.start_worker(**DELIVERIES_ALONE))
        wait_for(lambda: len(receiver.received) == 3)
        workers[-1].kill()
        workers[-1].wait()
        workers.append(tenor.start_worker(**DELIVERIES_ALONE))
        wait_for(lambda: len(receiver.received) == 6)
        workers[-1].send_signal(signal.SIGTERM)
        time.sleep(1)
        assert workers[-1].poll() is None
        receiver.answers.set()
        assert workers[-1].wait(60) == 0
    finally:
        for worker in workers:
            worker.kill()
    assert undelivered(tenor) == 0
    assert len(set(receiver.ids)) == 3
