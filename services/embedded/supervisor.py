"""An embedded run: the servers, the API and one worker, kept alive until told to stop."""

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
"""A process that lived this long before it died is started again soon."""

_LOOK_S = 0.2
"""Between two looks at whether every process still lives."""

_API_PATIENCE_S = 5.0
"""Seconds that the API has to finish open requests at shutdown."""

_PROGRESS_S = 5.0
"""Between two lines that say what stopping still waits for."""

_LONGEST_LAST_LINE = 8192

_LAST_WORDS_S = 10.0
"""What a worker needs beyond its time to drain, to hand back what it did not finish."""


class Child:
    """A process that is started again whenever it dies, after a pause that doubles up to half a minute."""

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

    def check(self) -> None:
        """Start it again if it died and the pause is over. Why it died is logged, so that the terminal shows it.

        Raises:
            SetupError: it ended with status 78.
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
            again = "the %s %s%s; it is started again in %.0f s, and its log is %s"
            _log.warning(again, self._name, ended, why, self._pause, self._log)
            self._restart_at = time.monotonic() + self._pause
            self._pause = min(self._pause * 2, 30.0)
        elif time.monotonic() >= self._restart_at:
            try:
                self._log_start = self._log_size()
                self._process = self._spawn()
            except OSError as error:
                _log.warning("the %s cannot be started again: %s", self._name, error)
                self._restart_at = time.monotonic() + self._pause
                self._pause = min(self._pause * 2, 30.0)
            else:
                self._restart_at = None

    @property
    def runs(self) -> bool:
        return self._process.poll() is None

    def terminate(self) -> None:
        """Ask it to end."""
        self._process.terminate()

    def kill(self) -> None:
        """End it at once, if it has not ended by itself."""
        if self.runs:
            self._process.kill()
        self._process.wait()
        self._pidfile.unlink(missing_ok=True)

    def _log_size(self) -> int:
        return self._log.stat().st_size if self._log.exists() else 0

    def _last_line(self) -> str:
        """Return the last line that the process wrote, "" where it wrote none."""
        with self._log.open("rb") as log:
            log.seek(max(self._log_start, self._log_size() - _LONGEST_LAST_LINE))
            return log.read().decode(errors="replace").strip().rpartition("\n")[2].strip()

    def _spawn(self) -> subprocess.Popen[bytes]:
        # A session of its own keeps the terminal's Ctrl-C from it: the supervisor stops everything in order.
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
            # The next run could not find it.
            process.kill()
            process.wait()
            raise
        return process


def _describe_status(status: int) -> str:
    return f"was ended by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"


class Supervisor:
    """Runs the API and one worker on embedded servers. Those that a killed run left behind are stopped first.

    Raises:
        SetupError: the host is not an address of this machine, or the port is taken.
    """

    def __init__(self, settings: Settings, servers: EmbeddedServers, host: str, port: int) -> None:
        self.url = local_url(host, port)
        self._servers = servers
        self._database = Database(servers.database_url, pool_size=1)
        self._drain_s = settings.drain_s
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
        # On one machine both cannot answer Prometheus on one port.
        if settings.metrics_port is not None:
            env = {**env, "TENOR_METRICS_PORT": str(settings.metrics_port + 1)}
        try:
            self._worker = Child("worker", [sys.executable, "-m", "workers"], env, folder)
        except OSError:
            self._api.kill()
            raise

    def run(self, on_ready: Callable[[], None]) -> None:
        """Call `on_ready` once turns are analysed, then keep everything alive until SIGINT, SIGTERM or SIGHUP.

        The worker then has time to finish the jobs that it runs. A second signal ends everything at once.

        Raises:
            SetupError: a process cannot work the way it is set up.
        """
        ends = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        before = {number: signal.signal(number, lambda *_: self.stop()) for number in ends}
        ready = False
        # Loopback calls go through no proxy, whatever the environment says.
        with httpx.Client(base_url=self.url, timeout=5, trust_env=False) as http:
            try:
                while not self._stopping.is_set():
                    self._servers.revive()
                    self._api.check()
                    self._worker.check()
                    if not ready and _takes_turns(http):
                        ready = True
                        on_ready()
                    self._stopping.wait(_LOOK_S)
            finally:
                self._end_children()
                self._database.close()
                for number, handler in before.items():
                    signal.signal(number, handler)

    def stop(self) -> None:
        """Make `run` stop everything and return; called again, at once."""
        if self._stopping.is_set():
            self._stopping_at_once.set()
        self._stopping.set()

    def _end_children(self) -> None:
        """Let the API and the worker finish, tell the terminal what is waited for, and end them."""
        self._api.terminate()
        self._worker.terminate()
        running = self._running_jobs()
        limit = f"Stopping: waiting up to {self._drain_s:g} s for {_count(running)}"
        _tell(f"{limit}. Press Ctrl-C again to stop at once." if running else "Stopping ...")
        begun = told = time.monotonic()
        while not self._stopping_at_once.wait(0.1) and (self._api.runs or self._worker.runs):
            waited = time.monotonic() - begun
            if waited > _API_PATIENCE_S:
                self._api.kill()
            if waited > self._drain_s + _LAST_WORDS_S:
                break
            if time.monotonic() - told > _PROGRESS_S and (running := self._running_jobs()):
                told = time.monotonic()
                _tell(f"Still waiting for {_count(running)}, up to {max(0.0, self._drain_s - waited):.0f} s more.")
        if self._stopping_at_once.is_set() and (running := self._running_jobs()):
            _tell(f"Stopped at once: {_count(running)} will be done again after the next start.")
        self._api.kill()
        self._worker.kill()

    def _running_jobs(self) -> int:
        try:
            with self._database.transaction() as transaction:
                return transaction.job_admin.count_running()
        except Unavailable:
            return 0


def _takes_turns(http: httpx.Client) -> bool:
    try:
        return http.get("/readyz").json().get("workers", 0) > 0
    except (httpx.HTTPError, ValueError):
        return False


def _count(jobs: int) -> str:
    return "1 running job" if jobs == 1 else f"{jobs} running jobs"


def _tell(line: str) -> None:
    with contextlib.suppress(OSError):  # of a terminal that is gone, as it is after SIGHUP
        sys.stderr.write(line + "\n")
        sys.stderr.flush()
