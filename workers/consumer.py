"""A lane's own threads, so that what is in one lane never holds those that another needs.

Celery's pool takes whatever comes from any of its queues, and a million turns of bulk would hold all of it. So its pool
serves one lane alone, and each thread here takes one job of another lane after the other, from a connection of its own.
Which of two turns the models serve first is the micro-batchers' affair.
"""

import logging
import threading
from collections.abc import Callable
from typing import Any
from uuid import UUID

from celery import Celery
from kombu.message import Message
from kombu.mixins import ConsumerMixin

from shared.domain.job import Lane
from shared.messaging.broker import QUEUES
from shared.observability.logging import type_and_traceback

_log = logging.getLogger(__name__)


class ConsumerThread(ConsumerMixin):
    """Takes up a lane's jobs, one at a time. A lost connection is made anew for as long as it takes.

    Args:
        app: of the queue.
        lane: whose jobs are taken up.
        run: does a job. False where it takes no more of them up: the message then goes back for another worker.
    """

    def __init__(self, app: Celery, lane: Lane, run: Callable[[UUID], bool]) -> None:
        self.connection = app.connection_for_read()
        self._lane = lane
        self._run = run
        self._thread = threading.Thread(target=self._live, name=lane.value, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Take up no more."""
        self.should_stop = True

    def join(self) -> None:
        """Wait for the job in hand to end."""
        if self._thread.is_alive():
            self._thread.join()

    def _live(self) -> None:
        # What is no message at all comes as an error from kombu's depths, and is gone by then.
        while not self.should_stop:
            try:
                self.run()
            except Exception as error:
                _log.error("the %s lane is connected anew: %s", self._lane.value, type_and_traceback(error))

    def get_consumers(self, Consumer: Callable[..., Any], channel: Any) -> list[Any]:  # noqa: ANN401, N803 - kombu's
        return [Consumer([QUEUES[self._lane]], on_message=self._take, prefetch_count=1, accept=["json"])]

    def on_connection_error(self, exc: Exception, interval: float) -> None:
        reason = type(exc).__name__
        _log.warning("the %s lane cannot reach the broker (%s): next try in %.1f s", self._lane.value, reason, interval)

    def on_decode_error(self, message: Message, exc: Exception) -> None:
        dropped = "a message of the %s lane is dropped, as it names no job: %s"
        _log.error(dropped, self._lane.value, type_and_traceback(exc))
        message.reject()

    def _take(self, message: Message) -> None:
        try:
            (job_id,), *_ = message.payload
            job = UUID(job_id)
        except Exception as error:
            self.on_decode_error(message, error)
            return
        if self._run(job):
            message.ack()
        else:
            message.requeue()
