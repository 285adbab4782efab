"""An embedded run: the servers, the API and one worker, kept alive until told to stop."""

import logging
import signal
import socket
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
from shared.errors import EX_CONFIG, SetupError
from shared.settings import Settings

_log = logging.getLogger(__name__)

STEADY_S = 60.0
"""A process that lived this long before it died is started again soon."""

_LOOK_S = 0.2
"""Between two looks at whether every process still lives."""

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
        self._process = self._spawn()

    def check(self) -> None:
        """Start it again if it died and the pause is over.

        Raises:
            SetupError: it says that it cannot work the way it is set up.
        """
        status = self._process.poll()
        if status is None:
            return
        if status == EX_CONFIG:
            raise SetupError(self._log.read_text(errors="replace").strip().rpartition("\n")[2])
        if self._restart_at is None:
            _log.warning("the %s ended with status %d and is started again, see %s", self._name, status, self._log)
            if time.monotonic() - self._spawned_at > STEADY_S:
                self._pause = 1.0
            self._restart_at = time.monotonic() + self._pause
            self._pause = min(self._pause * 2, 30.0)
        elif time.monotonic() >= self._restart_at:
            self._restart_at = None
            self._process = self._spawn()

    def stop(self, patience_s: float) -> None:
        """Ask it to end, and after `patience_s` seconds make it."""
        self._process.terminate()
        try:
            self._process.wait(patience_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._pidfile.unlink(missing_ok=True)

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
        write_private(self._pidfile, str(process.pid))
        return process


def _check_free(host: str, port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise SetupError(f"cannot listen on {host}:{port} ({error.strerror}): choose another --port") from None


class Supervisor:
    """Runs the API and one worker on embedded servers. Those that a killed run left behind are stopped first.

    Raises:
        SetupError: the port is taken.
    """

    def __init__(self, settings: Settings, servers: EmbeddedServers, host: str, port: int) -> None:
        self.url = f"http://{host}:{port}"
        self._servers = servers
        self._drain_s = settings.drain_s
        self._stopping = threading.Event()
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
        _check_free(host, port)
        self._api = Child("api", serve, env, folder)
        # On one machine both cannot answer Prometheus on one port.
        if settings.metrics_port is not None:
            env = {**env, "TENOR_METRICS_PORT": str(settings.metrics_port + 1)}
        self._worker = Child("worker", [sys.executable, "-m", "workers"], env, folder)

    def run(self, on_ready: Callable[[], None]) -> None:
        """Call `on_ready` once turns are analysed, then keep everything alive until SIGINT, SIGTERM or SIGHUP.

        Raises:
            SetupError: a process cannot work the way it is set up.
        """
        ends = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        before = {number: signal.signal(number, lambda *_: self.stop()) for number in ends}
        ready = False
        try:
            while not self._stopping.is_set():
                self._servers.revive()
                self._api.check()
                self._worker.check()
                if not ready and self._works():
                    ready = True
                    on_ready()
                self._stopping.wait(_LOOK_S)
        finally:
            self._api.stop(patience_s=5)
            self._worker.stop(patience_s=self._drain_s + _LAST_WORDS_S)
            for number, handler in before.items():
                signal.signal(number, handler)

    def _works(self) -> bool:
        try:
            return httpx.get(f"{self.url}/readyz", timeout=5).json().get("workers", 0) > 0
        except (httpx.HTTPError, ValueError):
            return False

    def stop(self) -> None:
        """Make `run` stop everything and return."""
        self._stopping.set()
