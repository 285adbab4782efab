"""Publishes the messages of accepted jobs in the background, so that no request waits for the broker."""

import threading
from collections.abc import Sequence
from queue import SimpleQueue

from shared.domain.job import Message
from shared.messaging.broker import Broker
from shared.messaging.publish import publish_messages
from shared.store.database import Database

_MAX_MERGED = 64
"""The most `publish` calls whose messages are published together."""
_CLOSE_TIMEOUT_S = 2.0
"""How long `close` waits for the last messages. The workers' sweeper publishes whatever is left."""


class Publisher:
    """Publishes messages on a thread of its own. Messages that wait at the same time are published together."""

    def __init__(self, database: Database, broker: Broker) -> None:
        self._database = database
        self._broker = broker
        self._waiting = SimpleQueue[Sequence[Message] | None]()
        self._thread = threading.Thread(target=self._run, name="publisher", daemon=True)
        self._thread.start()

    def publish(self, messages: Sequence[Message]) -> None:
        """Hand over messages whose transaction is committed, and return at once."""
        self._waiting.put(messages)

    def close(self) -> None:
        """Publish what waits, then end the thread."""
        self._waiting.put(None)
        self._thread.join(_CLOSE_TIMEOUT_S)

    def _run(self) -> None:
        closing = False
        while not closing:
            taken = [self._waiting.get()]
            while len(taken) < _MAX_MERGED and not self._waiting.empty():
                taken.append(self._waiting.get())
            closing = None in taken
            messages = [message for part in taken if part is not None for message in part]
            publish_messages(messages, self._database, self._broker)
