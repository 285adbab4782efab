"""The private Postgres and Valkey of an embedded run, in one data folder. Other users cannot connect to them."""

import json
import logging
import secrets
import signal
import socket
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import psycopg
from pydantic import SecretStr

from services.embedded.folder import DataFolder, is_locked, write_private
from services.embedded.postgres import Postgres
from services.embedded.valkey import Valkey
from shared.errors import SetupError
from shared.settings import Settings

_DATABASE = "tenor"
_ADDRESSES = "embedded.json"
_PORTS = range(20_000, 32_000, 2)
_log = logging.getLogger(__name__)


class EmbeddedServers:
    """A context manager that starts Postgres and Valkey on entry and stops them on exit.

    All their data are in the data folder. Both listen on Unix sockets only, each in its own folder of mode 0700 in the
    data folder. If that path is too long for a socket, clients connect through a link in a private temporary folder.
    On entry, servers that a killed run left behind in the same folder are stopped.

    Args:
        data_dir: The path of the data folder, or an open `DataFolder`. The folder is closed on exit.

    Raises:
        SetupError: The folder belongs to another user, another run uses it, its disk is full, or a server does not
            start.
    """

    def __init__(self, data_dir: Path | DataFolder) -> None:
        self._folder = data_dir if isinstance(data_dir, DataFolder) else DataFolder(data_dir)

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.callback(self._folder.close)
            if not self._folder.is_open:
                self._folder.open()
            try:
                self._start(stack)
            except OSError as error:
                raise SetupError(f"Tenor cannot start on {self._folder.path}: {error}") from error
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Otherwise a second Ctrl-C would interrupt the exit and leave a server running.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM, signal.SIGHUP))
        try:
            self._stack.close()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def _start(self, stack: ExitStack) -> None:
        self._postgres, self._valkey = Postgres(self._folder), Valkey(self._folder)
        for server in (self._postgres, self._valkey):
            stack.callback(server.stop)
            server.start()
        self._create_database()
        self._write_addresses()
        stack.callback((self._folder.path / _ADDRESSES).unlink, missing_ok=True)

    def _create_database(self) -> None:
        try:
            with psycopg.connect(self.url_of("postgres"), autocommit=True) as connection:
                known = connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [_DATABASE]).fetchone()
                if known is None:
                    connection.execute(f"CREATE DATABASE {_DATABASE}")
        except psycopg.Error as error:
            reason = str(error).partition("\n")[0]
            raise SetupError(f"the database in {self._folder.path} cannot be used: {reason}") from error

    def _write_addresses(self) -> None:
        addresses = {
            "folder": _identity(self._folder.path),
            "database_url": self.database_url.get_secret_value(),
            "broker_url": self.broker_url.get_secret_value(),
        }
        write_private(self._folder.path / _ADDRESSES, json.dumps(addresses))

    @property
    def database_url(self) -> SecretStr:
        """The URL of Tenor's database."""
        return SecretStr(self.url_of(_DATABASE))

    @property
    def broker_url(self) -> SecretStr:
        """The URL of the broker, with its password."""
        return SecretStr(self._valkey.url)

    def url_of(self, database: str) -> str:
        """Return the URL of a database of this Postgres."""
        return self._postgres.url(database)

    @property
    def pids(self) -> list[int]:
        """The ids of the main processes of Postgres and Valkey."""
        return [pid for pid in (self._postgres.pid, self._valkey.pid) if pid is not None]

    def restart_dead(self) -> None:
        """Restart each server that has died, with the same URL.

        Raises:
            SetupError: A server does not start.
        """
        try:
            self._folder.repair()
        except OSError as error:
            raise SetupError(
                f"the short path to {self._folder.path} is gone and cannot be created again: {error}"
            ) from error
        if not self._valkey.is_running:
            _log.warning("Valkey died and is restarted")
            self._valkey.start()
        self._postgres.restart_if_dead()


def running_urls(settings: Settings) -> Settings:
    """Return the settings with the URLs of the embedded servers that run on their data folder.

    Raises:
        SetupError: No servers run on it, or another user runs them.
    """
    try:
        if not is_locked(settings.data_dir):
            raise FileNotFoundError  # a killed run may have left the file
        addresses = json.loads((settings.data_dir / _ADDRESSES).read_text())
        # A copy of a data folder contains the addresses of the original.
        if addresses.pop("folder", None) != _identity(settings.data_dir):
            raise FileNotFoundError
    except (FileNotFoundError, NotADirectoryError):
        raise SetupError(
            f"no embedded Tenor runs on {settings.data_dir}: start `tenor run`, or set TENOR_DATABASE_URL"
        ) from None
    except OSError as error:
        raise SetupError(f"the data folder {settings.data_dir} cannot be read: {error.strerror}") from error
    database, broker = (SecretStr(addresses[name]) for name in ("database_url", "broker_url"))
    return settings.updated(database={"url": database}, broker={"url": broker})


def _identity(folder: Path) -> list[int]:
    found = folder.stat()
    return [found.st_dev, found.st_ino]


def free_port() -> int:
    """Return a port that is free, and so is the next one.

    It is outside the range from which the system picks ports, so it is very likely still free some seconds later.
    """
    while True:
        port = secrets.choice(_PORTS)
        with suppress(OSError), socket.socket() as one, socket.socket() as next_one:
            one.bind(("", port))
            next_one.bind(("", port + 1))
            return port
