"""Takes the jobs of one lane from the broker, and runs each on a thread of that lane.

Each lane has a consumer with threads of its own, so a million bulk turns never occupy a thread that an interactive turn
needs. The micro-batchers decide which of two turns the models serve first.
"""

# Celery, kombu and redis-py have no complete types.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any
from uuid import UUID

from celery import Celery
from kombu.connection import Connection
from kombu.message import Message
from kombu.mixins import ConsumerMixin

from shared.domain.job import Lane
from shared.messaging.broker import QUEUES
from shared.observability.logging import type_and_traceback

_log = logging.getLogger(__name__)

_POLL_S = 1.0
"""Longest wait for a message or for the end of a job, before the consumer looks whether it was stopped."""
_POLLING_S = 5 * _POLL_S


class Consumer(ConsumerMixin):
    """Takes the messages of one lane, as many at a time as it has threads, and runs their jobs.

    A message is acknowledged when its job has ended, so a crash leaves it in the broker. Only the consumer's own thread
    uses the connection to the broker: an acknowledgement that fails there makes it connect again. It tries to connect
    until it succeeds or is stopped.

    Args:
        app: whose broker is used.
        lane: whose messages are taken.
        threads: how many jobs run at a time.
        run: runs a job on one of the threads. Returns False if this process takes no more jobs: the message is then
            put into the lane again for another worker.
    """

    def __init__(self, app: Celery, lane: Lane, threads: int, run: Callable[[UUID], bool]) -> None:
        self.connection = app.connection_for_read()
        self._lane = lane
        self._threads = threads
        self._run_job = run
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix=lane.value)
        self._running = 0
        self._ended = SimpleQueue[tuple[Message, bool]]()
        self._channel: Any = None
        self._polled_at = -_POLLING_S
        self._thread = threading.Thread(target=self._consume, name=f"{lane.value}-consumer", daemon=True)

    @property
    def is_polling(self) -> bool:
        """Whether this consumer is connected to the broker, and its loop does not hang."""
        return time.monotonic() - self._polled_at < _POLLING_S

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Take no more messages."""
        self.should_stop = True

    def join(self, timeout_s: float | None = None) -> None:
        """Wait until the running jobs have ended and their messages are acknowledged."""
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def _consume(self) -> None:
        # A message that is no JSON makes kombu raise whatever its parser raises. The broker has dropped it by then.
        while not self.should_stop:
            try:
                self.run()
            except Exception as error:
                _log.error("the %s lane connects to the broker again: %s", self._lane.value, type_and_traceback(error))
        self._pool.shutdown(wait=False)

    # what kombu's loop calls

    def get_consumers(self, Consumer: Callable[..., Any], channel: Any) -> list[Any]:  # noqa: ANN401, N803 - kombu's
        self._channel = channel
        return [Consumer([QUEUES[self._lane]], on_message=self._take, prefetch_count=self._threads, accept=["json"])]

    def on_iteration(self) -> None:
        """Acknowledge the messages of jobs that have ended. Where every thread is busy, wait for one of them."""
        while not self.should_stop:
            self._polled_at = time.monotonic()
            all_busy = self._running == self._threads
            try:
                self._settle(timeout_s=_POLL_S if all_busy else 0)
            except Empty:
                if not all_busy:
                    return

    def on_consume_end(self, connection: Connection, channel: Any) -> None:  # noqa: ANN401 - kombu's
        """Acknowledge the messages of the jobs that were running when this consumer was stopped."""
        # The broker may have answered the last request for a message just now. Kombu then puts it into the lane again.
        with suppress(TimeoutError):
            connection.drain_events(timeout=_POLL_S)
        while self._running:
            self._settle()

    def on_connection_error(self, exc: Exception, interval: float) -> None:
        if self.should_stop:
            raise exc
        reason = type(exc).__name__
        _log.warning("the %s lane cannot reach the broker (%s): next try in %.1f s", self._lane.value, reason, interval)

    def on_decode_error(self, message: Message, exc: Exception) -> None:
        dropped = "a message of the %s lane is dropped, because it names no job: %s"
        _log.error(dropped, self._lane.value, type_and_traceback(exc))
        message.reject()

    def _take(self, message: Message) -> None:
        try:
            (job_id,), *_ = message.payload
            job = UUID(job_id)
        except Exception as error:
            self.on_decode_error(message, error)
            return
        self._running += 1
        self._pool.submit(self._work, message, job)

    def _work(self, message: Message, job_id: UUID) -> None:
        accepted = True
        try:
            accepted = self._run_job(job_id)
        except Exception as error:
            _log.error("a job of the %s lane is left to the sweeper: %s", self._lane.value, type_and_traceback(error))
        self._ended.put((message, accepted))

    def _settle(self, timeout_s: float | None = None) -> None:
        """Acknowledge the message of a job that has ended, or put it into the lane again if the job was not accepted.

        Raises:
            Empty: no job ended in time.
        """
        message, accepted = self._ended.get(timeout=timeout_s)
        self._running -= 1
        if message.channel is not self._channel:
            return  # Its connection was lost. The broker delivers it once more, and by then the job has ended.
        if accepted:
            message.ack()
        else:
            message.requeue()
