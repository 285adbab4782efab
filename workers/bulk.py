"""The bulk lane's own threads, so that bulk turns never hold those that interactive ones need.

Celery's pool takes whatever comes from any of its queues, and a million turns of bulk would hold all of it. So its pool
serves the interactive lane alone, and each thread here takes one bulk turn after another from a connection of its own.
Which of the two the models serve first is the micro-batchers' affair.
"""

import threading
from collections.abc import Callable
from typing import Any
from uuid import UUID

from celery import Celery
from kombu import Message
from kombu.mixins import ConsumerMixin

from shared.domain.job import Lane
from shared.queue import QUEUES


class BulkThread(ConsumerMixin):
    """Takes up the bulk lane's jobs, one at a time. A lost connection is made anew for as long as it takes."""

    def __init__(self, app: Celery, run: Callable[[UUID], None]) -> None:
        self.connection = app.connection_for_read()
        self._run = run
        self._thread = threading.Thread(target=self.run, name="bulk", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Take up no more."""
        self.should_stop = True

    def join(self) -> None:
        """Wait for the job in hand to end."""
        if self._thread.is_alive():
            self._thread.join()

    def get_consumers(self, Consumer: Callable[..., Any], channel: Any) -> list[Any]:  # noqa: ANN401, N803 - kombu's
        return [Consumer([QUEUES[Lane.bulk]], on_message=self._take, prefetch_count=1, accept=["json"])]

    def _take(self, message: Message) -> None:
        (job_id,), *_ = message.payload
        self._run(UUID(job_id))
        message.ack()
