"""`python -m workers.health`: whether the worker of this machine takes jobs, for the health check of a container.

A worker touches a file every few seconds while each of its consumers is connected to the broker. So the file grows old
where a consumer hangs, the broker is lost, or the process has ended. Jobs that hang are found by the worker itself,
which ends then (`workers.shutdown`).
"""

import logging
import socket
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from shared.errors import EX_CONFIG, SetupError
from shared.settings import Settings, get_settings
from workers.consumer import Consumer

MAX_AGE_S = 60.0
"""A worker whose file is older takes no jobs."""
_TOUCH_S = 5.0
_log = logging.getLogger(__name__)


def health_file(settings: Settings) -> Path:
    """Return the file that the worker of this machine touches. Several machines may share a data folder."""
    return settings.data_dir / f"worker-{socket.gethostname()}.alive"


class HealthReporter:
    """A background thread that touches the health file while every consumer is connected to the broker."""

    def __init__(self, settings: Settings, consumers: Sequence[Consumer]) -> None:
        self._file = health_file(settings)
        self._consumers = consumers
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._report, name="health", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End the thread, and remove the file."""
        self._stopping.set()
        self._thread.join()
        self._file.unlink(missing_ok=True)

    def _report(self) -> None:
        while not self._stopping.wait(_TOUCH_S):
            if all(consumer.is_polling for consumer in self._consumers):
                _touch(self._file)


def _touch(file: Path) -> None:
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        file.touch(mode=0o600)
    except OSError as error:
        _log.warning("the health file %s cannot be written: %s", file, error.strerror)


def check_health(settings: Settings) -> str | None:
    """Return why the worker of this machine takes no jobs, or None if it does."""
    file = health_file(settings)
    try:
        age_s = time.time() - file.stat().st_mtime
    except FileNotFoundError:
        return f"no worker runs here: there is no {file}"
    if age_s > MAX_AGE_S:
        return f"the worker has taken no jobs for {age_s:.0f} s: it lost the broker, hangs or has ended"
    return None


if __name__ == "__main__":
    try:
        trouble = check_health(get_settings())
    except SetupError as error:
        sys.stderr.write(f"{error.title}: {error.detail}\n")
        sys.exit(EX_CONFIG)
    if trouble is not None:
        sys.exit(trouble)
