"""Publishes messages again as soon as the broker is back, so that no job waits for its lease to run out."""

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
_JOIN_S = 1.0


class BrokerWatch:
    """A background thread that asks the broker twice a second whether it still has its messages.

    When the broker was away, the messages that could not be published meanwhile are published at once. When it lost its
    messages, as by a restart, each queued job gets another one, except in the bulk and the delivery lane. The thread is
    not the sweeper's, because a broker that hangs must not keep the sweeper from renewing leases.
    """

    def __init__(self, settings: Settings, database: Database, broker: Broker) -> None:
        self._settings = settings
        self._database = database
        self._broker = broker
        self._away = False
        self._lost = False
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="broker-watch", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End the thread, or leave it behind if the broker hangs."""
        self._stopping.set()
        self._thread.join(_JOIN_S)

    def check(self) -> None:
        """Ask the broker once, and publish again what it missed or lost.

        Raises:
            Unavailable: the broker or the database cannot be reached. The next call publishes what this one could not.
        """
        try:
            self._lost = self._broker.has_lost_messages() or self._lost
        except Unavailable:
            self._away = True
            raise
        if self._lost:
            with self._database.transaction() as transaction:
                count = transaction.jobs.republish(lease=self._settings.jobs.lease)
            if count:
                _log.warning("the broker had lost its messages: those of %d jobs are published again", count)
        if self._lost or self._away:
            publish_outbox(self._database, self._broker)
        self._lost = self._away = False

    def _run(self) -> None:
        while not self._stopping.wait(_INTERVAL_S):
            was_away = self._away
            try:
                self.check()
            except Unavailable as error:
                if not was_away:
                    _log.warning("%s", error.detail)
            except Exception as error:
                _log.error("the check of the broker failed and is retried: %s", type_and_traceback(error))
