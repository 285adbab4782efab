"""Sends messages again as soon as the broker is back, so that nobody waits for a lease to run out."""

import logging
import threading

from shared.errors import Unavailable
from shared.messaging.broker import Broker
from shared.messaging.publish import publish_outbox
from shared.observability.logging import type_and_traceback
from shared.settings import Settings
from shared.store.database import Database

_log = logging.getLogger(__name__)

_INTERVAL_S = 0.5
_LAST_CALL_S = 1.0


class BrokerWatch:
    """A background thread that asks the broker twice a second whether it still has the messages.

    When the broker has been away, the messages that could not be sent meanwhile go out at once. When it has lost its
    memory, every queued job of the lanes that somebody waits for gets another message. It has a thread of its own,
    because a broker that hangs must not keep the sweeper from renewing this worker's leases.
    """

    def __init__(self, settings: Settings, database: Database, queue: Broker) -> None:
        self._settings = settings
        self._database = database
        self._queue = queue
        self._away = False
        self._lost = False
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="broker-watch", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End the thread, or leave it behind where the broker hangs."""
        self._stopping.set()
        self._thread.join(_LAST_CALL_S)

    def check(self) -> None:
        """Ask the broker once, and send again what it has missed or lost.

        Raises:
            Unavailable: the broker or the database cannot be reached. The next call makes up for it.
        """
        try:
            self._lost = self._queue.mark() or self._lost
        except Unavailable:
            self._away = True
            raise
        if self._lost:
            with self._database.transaction() as transaction:
                count = transaction.jobs.republish(lease=self._settings.lease)
            if count:
                _log.warning("the queue was empty: %d jobs are sent again", count)
        if self._lost or self._away:
            publish_outbox(self._database, self._queue)
        self._lost = self._away = False

    def _run(self) -> None:
        while not self._stopping.wait(_INTERVAL_S):
            known = self._away
            try:
                self.check()
            except Unavailable as error:
                if not known:
                    _log.warning("%s", error.detail)
            except Exception as error:
                _log.error("the broker is asked again: %s", type_and_traceback(error))
