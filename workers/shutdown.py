"""Decides when a worker process ends, and drains it."""

import logging
import time
from collections.abc import Sequence
from queue import Empty, SimpleQueue

from shared.errors import EX_TEMPFAIL, Unavailable
from shared.settings import Settings
from workers.consumer import Consumer
from workers.delivery_lane import DeliveryLane
from workers.job_runner import JobRunner

_log = logging.getLogger(__name__)

_CHECK_S = 1.0
_JOIN_S = 5.0
"""Longest wait for the consumers to acknowledge their last messages, which they cannot without a broker."""


class Shutdown:
    """Waits until the process has to end, and drains it.

    A process ends when it is told to, or when half the threads of a lane hang. A thread that hangs in native code
    cannot be ended, only its process can: so such a process takes no more jobs, finishes the other ones, and ends with
    EX_TEMPFAIL, so that its supervisor starts it again.
    """

    def __init__(
        self, settings: Settings, runner: JobRunner, deliveries: DeliveryLane, consumers: Sequence[Consumer]
    ) -> None:
        self._settings = settings
        self._runner = runner
        self._deliveries = deliveries
        self._consumers = consumers
        # A signal handler may interrupt the thread that waits. `SimpleQueue` allows that, `Event` may deadlock.
        self._requests = SimpleQueue[None]()

    def request(self) -> None:
        """End the process. A signal handler may call this."""
        self._requests.put(None)

    def wait(self) -> int:
        """Abandon the jobs that take too long until the process has to end. Returns its exit status."""
        while True:
            try:
                self._requests.get(timeout=_CHECK_S)
            except Empty:
                self._abandon_timed_out()
                if self._hangs():
                    return EX_TEMPFAIL
            else:
                return 0

    def drain(self) -> None:
        """Take no more jobs, wait up to `drain_s` for the running ones, and release the others to other workers."""
        deadline = time.monotonic() + self._settings.worker.drain_s
        # The consumers first: they would take the messages again that the closed runner puts back into the lane.
        for consumer in self._consumers:
            consumer.stop()
        self._deliveries.stop()
        self._runner.close()
        while self._is_busy and time.monotonic() < deadline:
            time.sleep(0.05)
        self._release()
        if not self._is_busy and not self._runner.abandoned:
            self._join()

    def _join(self) -> None:
        deadline = time.monotonic() + _JOIN_S
        for thread in (*self._consumers, self._deliveries):
            thread.join(max(0.0, deadline - time.monotonic()))

    @property
    def _is_busy(self) -> bool:
        return self._runner.is_busy or bool(self._deliveries.running_jobs)

    def _abandon_timed_out(self) -> None:
        try:
            self._runner.abandon_timed_out()
        except Unavailable as error:
            _log.warning("jobs that take too long are abandoned later: %s", error.detail)

    def _hangs(self) -> bool:
        """Whether half the threads of a lane hang."""
        for lane, hanging in self._runner.abandoned.items():
            threads = self._settings.worker.threads[lane]
            if hanging * 2 >= threads:
                _log.error("%d of %d threads of the %s lane hang: this worker ends", hanging, threads, lane.value)
                return True
        return False

    def _release(self) -> None:
        try:
            self._runner.release([*self._runner.running_jobs, *self._deliveries.running_jobs])
        except Unavailable as error:
            _log.warning("jobs that did not finish run again after their leases: %s", error.detail)
