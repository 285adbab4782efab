"""The data folder of an embedded run: whose it is, who uses it, and a path to it that is short enough for a socket."""

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
"""Free space that a start needs: about 50 MB for a new database, two segments of Postgres's log for an old one."""

POSTGRES_SOCKET = "postgres/.s.PGSQL.5432"
"""The longest path of a socket below the data folder."""

_MAX_SOCKET_PATH = 100
"""In bytes. Linux takes 107, macOS 103."""

_OWN = ("postgres", "valkey", "logs", "blobs", "models", "lock", "api-key", "embedded.json")
"""What Tenor keeps in the data folder."""

UNFINISHED_RESTORE = "restore-unfinished"
"""The file that is there while a restore fills the folder, and still is if that was interrupted."""

_TEMPORARY = "temporary-folder"
"""The file that names the temporary folder of the run."""


class DataFolder:
    """A data folder that this process alone uses, from `open` until `close` or the end of the process.

    Attributes:
        path: absolute.
        temporary: a private folder outside of it, with a link `data` to it; None until one is needed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self.temporary: Path | None = None
        self._lock: IO[bytes] | None = None

    def open(self, *, restoring: bool = False) -> None:
        """Check the folder, create it with mode 0700 where it is missing, and lock it.

        Args:
            restoring: the caller restores a backup, and so may open a folder in which a restore was interrupted.

        Raises:
            SetupError: another user owns it or what Tenor keeps in it, another run uses it, it cannot be written, its
                disk is full, or a restore into it was interrupted. Except for creating the folder, nothing was changed.
        """
        try:
            self._check_owner()
            create_data_folder(self.path)
            self._check_space()
            self._lock = self._locked()
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
        return self._lock is not None

    @property
    def socket_path(self) -> Path:
        """A path to this folder below which the path of each server's socket is short enough.

        It leads through a link in the private temporary folder where the folder's own path is too long.
        """
        if _fits(self.path):
            return self.path
        return self.create_temporary() / "data"

    def create_temporary(self) -> Path:
        """Return the temporary folder, which is created with mode 0700 at the first call."""
        if self.temporary is None:
            # mkdtemp creates it under a random name that did not exist, so no other user can own it.
            self.temporary = Path(tempfile.mkdtemp(prefix="tenor-", dir=_short_parent()))
            write_private(self.path / _TEMPORARY, str(self.temporary))
            (self.temporary / "data").symlink_to(self.path)
        return self.temporary

    def repair(self) -> None:
        """Create the temporary folder again, under its name, if the system deleted it because of its age.

        Raises:
            FileExistsError: something else has that name by now.
        """
        if self.temporary is not None and not (self.temporary / "data").is_symlink():
            with contextlib.suppress(FileNotFoundError):
                self.temporary.rmdir()
            self.temporary.mkdir(mode=0o700)
            (self.temporary / "data").symlink_to(self.path)

    def _check_owner(self) -> None:
        mine = os.geteuid()
        for path in (self.path, *(self.path / name for name in _OWN)):
            # Run by root, Postgres itself and its files belong to a user of their own.
            servers = mine == 0 and path.name == "postgres" and path != self.path
            if path.exists() and path.stat().st_uid != mine and not servers:
                owner, me = user_name(path.stat().st_uid), user_name(mine)
                raise SetupError(
                    f"{path} belongs to the user {owner}, but Tenor runs as {me}: run it as {owner}, or set "
                    f"TENOR_DATA_DIR to a folder of {me}'s own"
                    + ("" if mine == 0 else f" (if it should be yours: sudo chown -R {me} '{self.path}')")
                )

    def _check_space(self) -> None:
        free = shutil.disk_usage(self.path).free
        if free < MIN_FREE_BYTES:
            raise SetupError(
                f"the disk of the data folder {self.path} is full: {free // 2**20} MB are free, a start needs "
                f"{MIN_FREE_BYTES // 2**20} MB"
            )

    def _locked(self) -> IO[bytes]:
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

        In a copied data folder it leads to the original.
        """
        try:
            left = Path((self.path / _TEMPORARY).read_text())
            ours = left.lstat().st_uid == os.geteuid() and os.path.samefile(left / "data", self.path)
        except (OSError, ValueError):
            ours = False
        else:
            if ours:
                shutil.rmtree(left, ignore_errors=True)
        (self.path / _TEMPORARY).unlink(missing_ok=True)


def is_locked(path: Path) -> bool:
    """Return whether a run uses a data folder."""
    with (path / "lock").open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def private_folder(path: Path) -> Path:
    """Create a folder of Tenor's own with mode 0700, or give it that mode, and return its path."""
    path.mkdir(mode=0o700, exist_ok=True)
    if path.stat().st_mode & 0o077:
        path.chmod(0o700)
    return path


def open_private_log(path: Path) -> IO[bytes]:
    """Open a log file of mode 0600 to append to it."""
    path.parent.mkdir(mode=0o700, exist_ok=True)
    file = os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab")
    os.fchmod(file.fileno(), 0o600)
    return file


def write_private(path: Path, text: str, owner: tuple[int, int] | None = None) -> None:
    """Write a file of mode 0600, at once and as a whole. Links at its place are replaced, not followed.

    Args:
        path: of the file.
        text: what it is to hold.
        owner: user and group that it shall belong to; None: those of this process.
    """
    new = path.with_name(f"{path.name}.new")
    new.unlink(missing_ok=True)
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        if owner is not None:
            os.fchown(file.fileno(), *owner)
        file.write(text)
    new.replace(path)


def user_name(uid: int) -> str:
    """Return the name of a user, or the number where the system knows no name."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _fits(folder: Path) -> bool:
    return len(os.fsencode(folder / POSTGRES_SOCKET)) <= _MAX_SOCKET_PATH


def _short_parent() -> str:
    usual = tempfile.gettempdir()
    return usual if _fits(Path(usual) / "tenor-12345678" / "data") else "/tmp"
