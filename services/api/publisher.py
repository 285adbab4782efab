"""Messages of accepted turns are sent with nobody waiting for it."""

import threading
from collections.abc import Sequence
from queue import SimpleQueue

from shared.domain.job import Message
from shared.messaging import publish
from shared.messaging.broker import Broker
from shared.store.database import Database

_MOST = 64
"""Batches of turns whose messages are sent in one go."""
_PATIENCE_S = 2.0
"""Longest that the end of the process waits for the last messages, which the sweeper would send too."""


class Publisher:
    """Sends messages on a thread of its own, all that wait in one go."""

    def __init__(self, database: Database, queue: Broker) -> None:
        self._database = database
        self._queue = queue
        self._waiting = SimpleQueue[Sequence[Message] | None]()
        self._thread = threading.Thread(target=self._run, name="sending", daemon=True)
        self._thread.start()

    def send(self, messages: Sequence[Message]) -> None:
        """Send messages soon. Their transaction must be committed."""
        self._waiting.put(messages)

    def close(self) -> None:
        """Send what waits, and end."""
        self._waiting.put(None)
        self._thread.join(_PATIENCE_S)

    def _run(self) -> None:
        ending = False
        while not ending:
            some = [self._waiting.get()]
            while len(some) < _MOST and not self._waiting.empty():
                some.append(self._waiting.get())
            ending = None in some
            publish.send([message for messages in some for message in messages or ()], self._database, self._queue)
