"""The supervisor of an embedded run: keeps the servers, the API and one worker running until a signal stops it."""

import contextlib
import logging
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx2 as httpx

from services.embedded.folder import open_private_log, write_private
from services.embedded.processes import child_environment, stop_left_over_child
from services.embedded.servers import EmbeddedServers
from services.listen_address import check_listenable, local_url
from shared.errors import EX_CONFIG, SetupError, Unavailable
from shared.settings import Settings
from shared.store.database import Database

_log = logging.getLogger(__name__)

STEADY_S = 60.0
"""A process that ran for so long before it died is restarted after the shortest pause again."""

_POLL_S = 0.2
"""The time between two checks of all processes."""

_API_STOP_S = 5.0
"""How long the API has to finish open requests at a stop."""

_PROGRESS_S = 5.0
"""The time between two lines about the jobs that a stop waits for."""

_LAST_LINE_BYTES = 8192
"""How much of the end of a log is read for its last line."""

_RELEASE_S = 10.0
"""How long a worker has after its drain to release its unfinished jobs."""


class Child:
    """A process that is restarted when it dies, after a pause that doubles up to half a minute."""

    def __init__(self, name: str, command: list[str], env: dict[str, str], folder: Path) -> None:
        self._name = name
        self._command = command
        self._env = env
        self._log = folder / f"{name}.log"
        self._pidfile = folder / f"{name}.pid"
        self._pause = 1.0
        self._restart_at: float | None = None
        self._log_start = self._log_size()
        self._process = self._spawn()

    def restart_if_dead(self) -> None:
        """Log why the process died, so that the terminal shows it, and restart it when the pause is over.

        Raises:
            SetupError: The process ended with status 78.
        """
        status = self._process.poll()
        if status is None:
            return
        if self._restart_at is None:
            reason = self._last_line() if status > 0 else ""
            if status == EX_CONFIG:
                raise SetupError(reason.removeprefix(f"{SetupError.title}: ") or f"see {self._log}")
            if time.monotonic() - self._spawned_at > STEADY_S:
                self._pause = 1.0
            ended, why = _describe_status(status), f": {reason}" if reason else ""
            line = "the %s %s%s; it is restarted in %.0f s, and its log is %s"
            _log.warning(line, self._name, ended, why, self._pause, self._log)
            self._restart_at = time.monotonic() + self._pause
            self._pause = min(self._pause * 2, 30.0)
        elif time.monotonic() >= self._restart_at:
            try:
                self._log_start = self._log_size()
                self._process = self._spawn()
            except OSError as error:
                _log.warning("the %s cannot be restarted: %s", self._name, error)
                self._restart_at = time.monotonic() + self._pause
                self._pause = min(self._pause * 2, 30.0)
            else:
                self._restart_at = None

    @property
    def is_running(self) -> bool:
        """Whether the process runs."""
        return self._process.poll() is None

    def terminate(self) -> None:
        """Send SIGTERM to the process."""
        self._process.terminate()

    def kill(self) -> None:
        """Kill the process if it still runs, and delete its pid file."""
        if self.is_running:
            self._process.kill()
        self._process.wait()
        self._pidfile.unlink(missing_ok=True)

    def _log_size(self) -> int:
        return self._log.stat().st_size if self._log.exists() else 0

    def _last_line(self) -> str:
        """Return the last line that the process wrote, or "" if it wrote none."""
        with self._log.open("rb") as log:
            log.seek(max(self._log_start, self._log_size() - _LAST_LINE_BYTES))
            return log.read().decode(errors="replace").strip().rpartition("\n")[2].strip()

    def _spawn(self) -> subprocess.Popen[bytes]:
        # In a new session, Ctrl-C in the terminal does not reach it: the supervisor stops all processes in order.
        self._spawned_at = time.monotonic()
        with open_private_log(self._log) as log:
            process = subprocess.Popen(
                self._command,
                env=self._env,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                umask=0o077,
            )
        try:
            write_private(self._pidfile, str(process.pid))
        except OSError:
            # Without its pid file, the next run could not find the process.
            process.kill()
            process.wait()
            raise
        return process


def _describe_status(status: int) -> str:
    return f"was ended by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"


class Supervisor:
    """Runs the API and one worker on embedded servers, after it has stopped those that a killed run left behind.

    Raises:
        SetupError: The host is not an address of this machine, or the port is in use.
    """

    def __init__(self, settings: Settings, servers: EmbeddedServers, host: str, port: int) -> None:
        self.url = local_url(host, port)
        self._servers = servers
        self._database = Database(servers.database_url, pool_size=1)
        self._drain_s = settings.worker.drain_s
        self._stopping = threading.Event()
        self._stopping_at_once = threading.Event()
        folder = settings.data_dir / "logs"
        folder.mkdir(mode=0o700, exist_ok=True)
        env = {
            **child_environment(),
            "TENOR_DATA_DIR": str(settings.data_dir.absolute()),
            "TENOR_DATABASE_URL": servers.database_url.get_secret_value(),
            "TENOR_BROKER_URL": servers.broker_url.get_secret_value(),
        }
        serve = [sys.executable, "-m", "services.cli", "serve", "--host", host, "--port", str(port)]
        for name, module in (("api", "services.cli"), ("worker", "workers")):
            stop_left_over_child(folder / f"{name}.pid", module, settings.data_dir)
        check_listenable(host, port)
        self._api = Child("api", serve, env, folder)
        # The API and the worker cannot both serve metrics on one port.
        if settings.observability.metrics_port is not None:
            env = {**env, "TENOR_OBSERVABILITY_METRICS_PORT": str(settings.observability.metrics_port + 1)}
        try:
            self._worker = Child("worker", [sys.executable, "-m", "workers"], env, folder)
        except OSError:
            self._api.kill()
            raise

    def run(self, on_ready: Callable[[], None]) -> None:
        """Call `on_ready` when a worker is ready, and restart dead processes until SIGINT, SIGTERM or SIGHUP.

        The worker then has time to finish its running jobs. A second signal stops all processes at once.

        Raises:
            SetupError: A process is set up wrongly.
        """
        ends = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        before = {number: signal.signal(number, lambda _number, _frame: self.stop()) for number in ends}
        ready = False
        # trust_env=False: requests to the API on this machine must not go through a proxy of the environment.
        with httpx.Client(base_url=self.url, timeout=5, trust_env=False) as http:
            try:
                while not self._stopping.is_set():
                    self._servers.restart_dead()
                    self._api.restart_if_dead()
                    self._worker.restart_if_dead()
                    if not ready and _has_worker(http):
                        ready = True
                        on_ready()
                    self._stopping.wait(_POLL_S)
            finally:
                self._stop_children()
                self._database.close()
                for number, handler in before.items():
                    signal.signal(number, handler)

    def stop(self) -> None:
        """Make `run` stop all processes and return. A second call makes it do so at once."""
        if self._stopping.is_set():
            self._stopping_at_once.set()
        self._stopping.set()

    def _stop_children(self) -> None:
        """Let the API and the worker finish, print the jobs that this waits for, and kill what is left."""
        self._api.terminate()
        self._worker.terminate()
        running = self._running_jobs()
        limit = f"Stopping: waiting up to {self._drain_s:g} s for {_count(running)}"
        _print(f"{limit}. Press Ctrl-C again to stop at once." if running else "Stopping ...")
        started = reported = time.monotonic()
        while not self._stopping_at_once.wait(0.1) and (self._api.is_running or self._worker.is_running):
            waited = time.monotonic() - started
            if waited > _API_STOP_S:
                self._api.kill()
            if waited > self._drain_s + _RELEASE_S:
                break
            if time.monotonic() - reported > _PROGRESS_S and (running := self._running_jobs()):
                reported = time.monotonic()
                _print(f"Still waiting for {_count(running)}, up to {max(0.0, self._drain_s - waited):.0f} s more.")
        if self._stopping_at_once.is_set() and (running := self._running_jobs()):
            _print(f"Stopped at once: {_count(running)} will run again after the next start.")
        self._api.kill()
        self._worker.kill()

    def _running_jobs(self) -> int:
        try:
            with self._database.transaction() as transaction:
                return transaction.job_admin.count_running()
        except Unavailable:
            return 0


def _has_worker(http: httpx.Client) -> bool:
    """Return whether the API responds and knows a worker that analyses turns."""
    try:
        return http.get("/readyz").json().get("workers", 0) > 0
    except (httpx.HTTPError, ValueError):
        return False


def _count(jobs: int) -> str:
    return "1 running job" if jobs == 1 else f"{jobs} running jobs"


def _print(line: str) -> None:
    with contextlib.suppress(OSError):  # the terminal is gone after SIGHUP
        sys.stderr.write(line + "\n")
        sys.stderr.flush()
