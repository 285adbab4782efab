"""The worker's heartbeat, and the repair of whatever a crash anywhere left undone.

Every worker sweeps; rows are locked as they are taken, so that several sweepers share the work.
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
    """A background thread that renews this worker's leases and sweeps, every `sweep_interval_s`."""

    def __init__(
        self,
        settings: Settings,
        database: Database,
        queue: Broker,
        bundle_id: str | None,
        device: str | None = None,
        held: Callable[[], list[Job]] = list,
    ) -> None:
        self._settings = settings
        self._database = database
        self._queue = queue
        self._bundle_id = bundle_id
        self._device = device
        self._held = held
        self._worker_id: UUID = uuid4()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="sweeper", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Stop sweeping and take leave. Leases still held run out by themselves."""
        self._stopping.set()
        self._thread.join()
        try:
            with self._database.transaction() as transaction:
                transaction.workers.remove(self._worker_id)
        except Unavailable:
            _log.warning("the database is gone: this worker is forgotten once its sign of life is old")

    def sweep(self) -> None:
        """Send a heartbeat, requeue lost jobs, give up late events, send unsent messages, delete expired audio and
        answers.
        """
        settings = self._settings
        with self._database.transaction() as transaction:
            transaction.workers.record_heartbeat(
                self._worker_id, self._bundle_id, host=socket.gethostname(), device=self._device
            )
            transaction.workers.remove_unseen(settings.lease * 10)
            transaction.jobs.renew(self._held(), settings.lease)
        with self._database.transaction() as transaction:
            lost = transaction.jobs.sweep(lease=settings.lease, retries=settings.retries)
            for job in transaction.deliveries.overdue(settings.delivery_window):
                transaction.jobs.quarantine(job, _waited(job, settings.delivery_window), lease=settings.lease)
        if lost:
            _log.warning("%d jobs were overdue", lost)
        # The API sends its own messages within a moment of the commit; those that are older, it could not send.
        publish_outbox(self._database, self._queue, older_than=timedelta(seconds=1))
        with self._database.transaction() as transaction:
            transaction.recordings.expire_quarantined(quarantined_for=settings.quarantine)
            transaction.recordings.expire()
            transaction.idempotency.expire(settings.idempotency)
            deletion = transaction.jobs.enqueue_deletion(settings.lease)
        publish_messages(deletion, self._database, self._queue)

    def _loop(self) -> None:
        while not self._stopping.is_set():
            try:
                self.sweep()
            except Unavailable as error:
                _log.warning("sweep put off: %s", error.detail)
            except Exception:
                _log.exception("sweep failed; the next one tries again")
            self._stopping.wait(self._settings.sweep_interval_s)


def _waited(job: Job, window: timedelta) -> Unavailable:
    before = f"; before that: {job.error_message}" if job.error_message else ""
    return Unavailable(f"its webhook was paused for {window.total_seconds() / 3600:.0f} hours{before}")
