"""When a worker's process ends, and how."""

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence

from shared.errors import EX_TEMPFAIL, Unavailable
from shared.observability.tracing import stop_tracing
from shared.settings import Settings
from workers.consumer import ConsumerThread
from workers.deliveries import DeliveryLane
from workers.job_runner import JobRunner

_log = logging.getLogger(__name__)

_LOOK_S = 1.0
_CELERYS_S = 5.0
"""Celery ends an idle process by itself, unless its broker says nothing."""


class Lifetime:
    """A background thread that drains the process when it is told to end, or where half the threads of a lane hang.

    A thread that hangs in native code cannot be ended, only its process can: so such a process takes no more jobs up,
    finishes the others, and ends with EX_TEMPFAIL for its supervisor to start it again.
    """

    def __init__(
        self,
        settings: Settings,
        engine: JobRunner,
        deliveries: DeliveryLane,
        lanes: Sequence[ConsumerThread],
        leave: Callable[[], None],
    ) -> None:
        self._settings = settings
        self._engine = engine
        self._deliveries = deliveries
        self._lanes = lanes
        self._leave = leave
        self._status = 0
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._live, name="lifetime", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def end(self) -> None:
        """Take no more jobs up, and drain. May be called by a signal handler."""
        self._ending.set()

    def _live(self) -> None:
        while not self._ending.wait(_LOOK_S):
            self._look()
        self._engine.close()
        self._deliveries.stop()
        for thread in self._lanes:
            thread.stop()
        self._drain()
        stop_tracing()
        logging.shutdown()
        os._exit(self._status)

    @property
    def _busy(self) -> bool:
        return self._engine.busy or bool(self._deliveries.held)

    def _look(self) -> None:
        try:
            self._engine.give_up_stuck()
        except Unavailable as error:
            _log.warning("jobs that take too long are not yet given up: %s", error.detail)
        for lane, stuck in self._engine.stuck.items():
            threads = self._settings.threads[lane]
            if stuck * 2 >= threads and not self._status:
                _log.error("%d of %d threads of the %s lane hang: this worker ends", stuck, threads, lane.value)
                self._status = EX_TEMPFAIL
                os.kill(os.getpid(), signal.SIGTERM)

    def _drain(self) -> None:
        """Wait for what is running, then hand the rest to others."""
        deadline = time.monotonic() + self._settings.drain_s
        while self._busy and time.monotonic() < deadline:
            time.sleep(0.05)
        if not self._busy and not self._engine.stuck:
            time.sleep(_CELERYS_S)
        try:
            self._engine.give_back([*self._engine.held, *self._deliveries.held])
        except Unavailable as error:
            _log.warning("what is not finished is done anew after its lease: %s", error.detail)
        self._leave()
