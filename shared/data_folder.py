"""The data folder of this machine's user, which may be missing, read-only or no folder at all."""

import contextlib
import errno
import os
from pathlib import Path

from shared.errors import SetupError


def create_data_folder(folder: Path) -> None:
    """Create the data folder with mode 0700, and its parents, where it is missing.

    A folder that another user owns is left to whoever uses it, who knows better what to say.

    Raises:
        SetupError: it cannot be created, or this user may not write to it.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        if folder.stat().st_uid == os.geteuid() and not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise _unusable(folder, error) from error


def check_data_folder(folder: Path) -> None:
    """Find out whether the data folder can be looked into, or is missing.

    Raises:
        SetupError: it is neither.
    """
    try:
        with contextlib.suppress(FileNotFoundError):
            folder.stat()
    except OSError as error:
        raise _unusable(folder, error) from error


def _unusable(folder: Path, error: OSError) -> SetupError:
    return SetupError(
        f"the data folder {folder} cannot be used ({error.strerror}): set TENOR_DATA_DIR to a folder that you may "
        "write to"
    )
