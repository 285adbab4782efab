"""Creates and checks the data folder, which may be missing, read-only or not a folder."""

import contextlib
import errno
import os
from pathlib import Path

from shared.errors import SetupError


def create_data_folder(folder: Path) -> None:
    """Create the data folder with mode 0700, and its parents, if it does not exist.

    A folder that belongs to another user is not checked here: `DataFolder.open` reports it.

    Raises:
        SetupError: the folder cannot be created, this user may not write to it, or root would create it in a folder
            of another user.
    """
    _check_parent(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        if folder.stat().st_uid == os.geteuid() and not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise unusable_data_folder(folder, error) from error


def check_data_folder(folder: Path) -> None:
    """Check that the data folder can be read, if it exists.

    Raises:
        SetupError: it exists and cannot be read.
    """
    try:
        with contextlib.suppress(FileNotFoundError):
            folder.stat()
    except OSError as error:
        raise unusable_data_folder(folder, error) from error


def _check_parent(folder: Path) -> None:
    """Raise SetupError if root would create the folder inside another user's: that user could not write to it."""
    parent = next(path for path in folder.absolute().parents if path.exists())
    owner = parent.stat().st_uid
    if os.geteuid() == 0 and owner != 0 and not folder.exists():
        raise SetupError(
            f"root would create the data folder {folder} in {parent}, which belongs to the user {owner}: run Tenor as "
            "that user, or set TENOR_DATA_DIR to a folder of root's own"
        )


def unusable_data_folder(folder: Path, error: OSError) -> SetupError:
    """Return the error for a data folder that cannot be used: it names the folder, the reason and the setting."""
    return SetupError(
        f"the data folder {folder} cannot be used ({error.strerror}): set TENOR_DATA_DIR to a folder that you may "
        "write to"
    )
