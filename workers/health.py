"""`python -m workers.health`: whether the worker of this machine takes up jobs, for the health check of a container.

The worker touches a file every few seconds, from the loop that takes jobs from the broker, while it is connected. So
the file grows old where that loop hangs, the broker is lost, or the process has ended. Threads that hang at a job are
found by the worker itself, which ends then.
"""

import logging
import socket
import sys
import time
from pathlib import Path
from typing import Any, ClassVar

from celery import Celery, bootsteps

from shared.errors import EX_CONFIG, SetupError
from shared.settings import Settings, get_settings

MAX_AGE_S = 60.0
"""A worker whose file is older does not take up jobs."""
_TOUCH_S = 5.0
_log = logging.getLogger(__name__)


def health_file(settings: Settings) -> Path:
    """Return the file that the worker of this machine touches. Machines may share a data folder."""
    return settings.data_dir / f"worker-{socket.gethostname()}.alive"


def report_health(app: Celery, settings: Settings) -> None:
    """Make the worker of `app` touch its health file while it is connected to the broker."""

    class Health(bootsteps.StartStopStep):
        requires: ClassVar = ("celery.worker.consumer.tasks:Tasks",)
        timer: Any = None

        def start(self, parent: Any) -> None:  # noqa: ANN401 - Celery's consumer
            _touch(health_file(settings))
            self.timer = parent.timer.call_repeatedly(_TOUCH_S, _touch, (health_file(settings),))

        def stop(self, parent: Any) -> None:  # noqa: ANN401 - Celery's consumer
            if self.timer is not None:
                self.timer.cancel()

        def shutdown(self, parent: Any) -> None:  # noqa: ANN401 - Celery's consumer
            health_file(settings).unlink(missing_ok=True)

    steps: Any = app.steps
    steps["consumer"].add(Health)


def _touch(file: Path) -> None:
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        file.touch(mode=0o600)
    except OSError as error:
        _log.warning("the health file %s cannot be written: %s", file, error.strerror)


def check_health(settings: Settings) -> str | None:
    """Return why the worker of this machine does not take up jobs, or None if it does."""
    file = health_file(settings)
    try:
        age_s = time.time() - file.stat().st_mtime
    except FileNotFoundError:
        return f"no worker runs here: there is no {file}"
    if age_s > MAX_AGE_S:
        return f"the worker has taken up no jobs for {age_s:.0f} s: it lost the broker, hangs or has ended"
    return None


if __name__ == "__main__":
    try:
        trouble = check_health(get_settings())
    except SetupError as error:
        sys.stderr.write(f"{error.title}: {error.detail}\n")
        sys.exit(EX_CONFIG)
    if trouble is not None:
        sys.exit(trouble)
