"""Sends the worker's heartbeat, renews its leases, and repairs what a crash of any process left undone.

Every worker sweeps. Each sweep skips the rows that another one has locked, so several sweepers share the work.
"""

import logging
import socket
import threading
from collections.abc import Callable
from datetime import timedelta
from uuid import UUID, uuid4

from shared.domain.job import Job
from shared.errors import Unavailable
from shared.messaging.broker import Broker
from shared.messaging.publish import publish_messages, publish_outbox
from shared.settings import Settings
from shared.store.database import Database

_log = logging.getLogger(__name__)


class Sweeper:
    """A background thread that sweeps every `sweep_interval_s`.

    Args:
        bundle_id: which bundle this worker loaded; None if it takes no turns.
        device: what the models run on, to be shown to people.
        running_jobs: returns the jobs whose leases are renewed.
    """

    def __init__(
        self,
        settings: Settings,
        database: Database,
        broker: Broker,
        bundle_id: str | None,
        device: str | None = None,
        running_jobs: Callable[[], list[Job]] = list,
    ) -> None:
        self._settings = settings
        self._database = database
        self._broker = broker
        self._bundle_id = bundle_id
        self._device = device
        self._running_jobs = running_jobs
        self._worker_id: UUID = uuid4()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="sweeper", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Stop sweeping, and remove this worker from the list of workers. Its leases run out by themselves."""
        self._stopping.set()
        self._thread.join()
        try:
            with self._database.transaction() as transaction:
                transaction.workers.remove(self._worker_id)
        except Unavailable:
            _log.warning("the database cannot be reached: this worker is listed until its heartbeat is old")

    def sweep(self) -> None:
        """Sweep once.

        Write the heartbeat, renew the leases, enqueue lost jobs again, quarantine events that waited too long, publish
        the messages that no process published, and delete expired audio and the expired answers to idempotency keys.

        Raises:
            Unavailable: the database cannot be reached.
        """
        settings = self._settings
        with self._database.transaction() as transaction:
            transaction.workers.record_heartbeat(
                self._worker_id, self._bundle_id, host=socket.gethostname(), device=self._device
            )
            transaction.workers.remove_unseen(settings.jobs.lease * 10)
            transaction.jobs.renew(self._running_jobs(), settings.jobs.lease)
        with self._database.transaction() as transaction:
            lost = transaction.jobs.sweep(lease=settings.jobs.lease, retries=settings.retries)
            for job in transaction.deliveries.overdue(settings.delivery_window):
                transaction.jobs.quarantine(
                    job, _waited_too_long(job, settings.delivery_window), lease=settings.jobs.lease
                )
        if lost:
            _log.warning("%d jobs were overdue", lost)
        # The API publishes its messages right after the commit. Those that are older, it could not publish.
        publish_outbox(self._database, self._broker, older_than=timedelta(seconds=1))
        with self._database.transaction() as transaction:
            transaction.recordings.expire_quarantined(quarantined_for=settings.jobs.quarantine)
            transaction.recordings.expire()
            transaction.idempotency.expire(settings.api.idempotency_window)
            deletion = transaction.jobs.enqueue_deletion(settings.jobs.lease)
        publish_messages(deletion, self._database, self._broker)

    def _loop(self) -> None:
        while not self._stopping.is_set():
            try:
                self.sweep()
            except Unavailable as error:
                _log.warning("the sweep is retried: %s", error.detail)
            except Exception:
                _log.exception("the sweep failed and is retried")
            self._stopping.wait(self._settings.worker.sweep_interval_s)


def _waited_too_long(job: Job, window: timedelta) -> Unavailable:
    before = f"; before that: {job.error_message}" if job.error_message else ""
    return Unavailable(f"its webhook was paused for {window.total_seconds() / 3600:.0f} hours{before}")
