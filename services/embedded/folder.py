"""The data folder of an embedded run: its owner, its lock, and a path to it that is short enough for a socket."""

import contextlib
import fcntl
import os
import pwd
import shutil
import tempfile
from pathlib import Path
from typing import IO

from shared.errors import SetupError
from shared.storage.data_folder import create_data_folder, unusable_data_folder

MIN_FREE_BYTES = 64 * 2**20
"""The free space that a start needs: about 50 MB for a new database, two segments of the WAL for an old one."""

POSTGRES_SOCKET = "postgres/.s.PGSQL.5432"
"""The longest path of a socket, relative to the data folder."""

_MAX_SOCKET_PATH = 100
"""In bytes. Linux permits 107, macOS 103."""

_CONTENTS = ("postgres", "valkey", "logs", "blobs", "models", "lock", "api-key", "embedded.json")
"""The files and folders of Tenor in the data folder."""

UNFINISHED_RESTORE = "restore-unfinished"
"""A file that exists while a restore fills the folder, and after an interrupted restore."""

_TEMPORARY = "temporary-folder"
"""A file that contains the path of the temporary folder of the run."""


class DataFolder:
    """A data folder that only this process uses, from `open` until `close` or the end of the process.

    Attributes:
        path: The absolute path.
        temporary: A private temporary folder with a link `data` to the data folder, or None until one is needed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self.temporary: Path | None = None
        self._lock: IO[bytes] | None = None

    def open(self, *, restoring: bool = False) -> None:
        """Create the folder with mode 0700 if it is missing, check it, and lock it.

        Args:
            restoring: The caller restores a backup, so a folder with an interrupted restore is accepted.

        Raises:
            SetupError: Another user owns the folder or a part of it, another run uses it, it cannot be written, its
                disk is full, or a restore into it was interrupted. Apart from creating it, nothing was changed.
        """
        try:
            self._check_owner()
            create_data_folder(self.path)
            self._check_space()
            self._lock = self._take_lock()
            if not restoring and (self.path / UNFINISHED_RESTORE).exists():
                raise SetupError(f"a restore into {self.path} was interrupted: run `tenor restore` again")
            self._remove_left_over()
        except OSError as error:
            raise unusable_data_folder(self.path, error) from error

    def close(self) -> None:
        """Delete the temporary folder and unlock the data folder."""
        if self.temporary is not None:
            shutil.rmtree(self.temporary, ignore_errors=True)
            (self.path / _TEMPORARY).unlink(missing_ok=True)
            self.temporary = None
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    @property
    def is_open(self) -> bool:
        """Whether this process has locked the folder."""
        return self._lock is not None

    @property
    def socket_path(self) -> Path:
        """A path to this folder that is short enough for the paths of the sockets in it.

        If the folder's own path is too long, it leads through a link in the private temporary folder.
        """
        if _fits(self.path):
            return self.path
        return self.create_temporary() / "data"

    def create_temporary(self) -> Path:
        """Create the temporary folder with mode 0700 at the first call, and return its path."""
        if self.temporary is None:
            # mkdtemp creates a folder with a new random name, so no other user can own it.
            self.temporary = Path(tempfile.mkdtemp(prefix="tenor-", dir=_short_parent()))
            write_private(self.path / _TEMPORARY, str(self.temporary))
            (self.temporary / "data").symlink_to(self.path)
        return self.temporary

    def repair(self) -> None:
        """Create the temporary folder again, with the same name, if the system has deleted it because of its age.

        Raises:
            FileExistsError: Another file has that name by now.
        """
        if self.temporary is not None and not (self.temporary / "data").is_symlink():
            with contextlib.suppress(FileNotFoundError):
                self.temporary.rmdir()
            self.temporary.mkdir(mode=0o700)
            (self.temporary / "data").symlink_to(self.path)

    def _check_owner(self) -> None:
        user = os.geteuid()
        for path in (self.path, *(self.path / name for name in _CONTENTS)):
            # If root runs Tenor, the files of Postgres belong to the system user that runs it.
            of_postgres = user == 0 and path.name == "postgres" and path != self.path
            if path.exists() and path.stat().st_uid != user and not of_postgres:
                owner, me = user_name(path.stat().st_uid), user_name(user)
                raise SetupError(
                    f"{path} belongs to the user {owner}, but Tenor runs as {me}: run it as {owner}, or set "
                    f"TENOR_DATA_DIR to a folder that {me} owns"
                    + ("" if user == 0 else f" (to change the owner: sudo chown -R {me} '{self.path}')")
                )

    def _check_space(self) -> None:
        free = shutil.disk_usage(self.path).free
        if free < MIN_FREE_BYTES:
            raise SetupError(
                f"the disk of the data folder {self.path} is full: {free // 2**20} MB are free, a start needs "
                f"{MIN_FREE_BYTES // 2**20} MB"
            )

    def _take_lock(self) -> IO[bytes]:
        file = os.fdopen(os.open(self.path / "lock", os.O_WRONLY | os.O_CREAT, 0o600), "wb")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            raise SetupError(
                f"another Tenor runs on {self.path}: stop it, or set TENOR_DATA_DIR to another folder"
            ) from None
        return file

    def _remove_left_over(self) -> None:
        """Delete the temporary folder of a killed run, if its link leads to this data folder.

        In a copied data folder, the link leads to the original, whose run may still use it.
        """
        with contextlib.suppress(OSError, ValueError):
            left = Path((self.path / _TEMPORARY).read_text())
            if left.lstat().st_uid == os.geteuid() and os.path.samefile(left / "data", self.path):
                shutil.rmtree(left, ignore_errors=True)
        (self.path / _TEMPORARY).unlink(missing_ok=True)


def is_locked(path: Path) -> bool:
    """Return whether a run uses the data folder at `path`."""
    with (path / "lock").open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def private_folder(path: Path) -> Path:
    """Create a folder with mode 0700, or set that mode if it exists, and return its path."""
    path.mkdir(mode=0o700, exist_ok=True)
    if path.stat().st_mode & 0o077:
        path.chmod(0o700)
    return path


def open_private_log(path: Path) -> IO[bytes]:
    """Open a log file with mode 0600 for appending."""
    path.parent.mkdir(mode=0o700, exist_ok=True)
    file = os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab")
    os.fchmod(file.fileno(), 0o600)
    return file


def write_private(path: Path, text: str, owner: tuple[int, int] | None = None) -> None:
    """Write a file with mode 0600 atomically. A link at its path is replaced, not followed.

    Args:
        path: The path of the file.
        text: The content.
        owner: The ids of the user and the group of the file, or None for those of this process.
    """
    new = path.with_name(f"{path.name}.new")
    new.unlink(missing_ok=True)
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        if owner is not None:
            os.fchown(file.fileno(), *owner)
        file.write(text)
    new.replace(path)


def user_name(uid: int) -> str:
    """Return the name of a user, or its id as text if the system knows no name."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _fits(folder: Path) -> bool:
    return len(os.fsencode(folder / POSTGRES_SOCKET)) <= _MAX_SOCKET_PATH


def _short_parent() -> str:
    usual = tempfile.gettempdir()
    return usual if _fits(Path(usual) / "tenor-12345678" / "data") else "/tmp"
