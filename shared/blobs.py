"""Recordings at rest: one file each, in a folder that only Tenor reads."""

import errno
import hashlib
import os
from pathlib import Path
from typing import IO
from uuid import UUID, uuid4

from shared.errors import RecordingGone, StorageFull, Unavailable

_CHUNK = 2**20
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def new_uri(tenant_id: UUID, session_id: UUID) -> str:
    """A name for a new blob: nobody can guess it, and it says whose it is."""
    return f"{tenant_id}/{session_id}/{uuid4()}"


class BlobFolder:
    """Blobs as files below `root`, named by their URI."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def put(self, uri: str, source: IO[bytes]) -> str:
        """Store everything that `source` holds; its sha256, in hex.

        When this returns, the bytes are on the disk. A blob is there whole or not at all.

        Raises:
            StorageFull: there is no room for it.
            Unavailable: the disk fails.
        """
        path = self._root / uri
        partial = path.with_suffix(".partial")
        digest = hashlib.sha256()
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with partial.open("wb") as file:
                while chunk := source.read(_CHUNK):
                    digest.update(chunk)
                    file.write(chunk)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        except OSError as error:
            partial.unlink(missing_ok=True)
            raise _full_or_failed(error) from error
        return digest.hexdigest()

    def path(self, uri: str) -> Path:
        """The blob as a file.

        Raises:
            RecordingGone: there is none.
        """
        path = self._root / uri
        if not path.is_file():
            raise RecordingGone("the recording was deleted")
        return path

    def delete(self, uri: str) -> None:
        """Delete a blob, or what a crash left of it; nothing happens where there is none.

        Raises:
            Unavailable: the disk fails; the blob may still be there.
        """
        path = self._root / uri
        try:
            for file in (path, path.with_suffix(".partial")):
                file.unlink(missing_ok=True)
            for folder in (path.parent, path.parent.parent):
                if folder.is_dir() and not any(folder.iterdir()):
                    folder.rmdir()
        except OSError as error:
            raise Unavailable(f"a recording cannot be deleted: {error.strerror}") from error


def _full_or_failed(error: OSError) -> Unavailable:
    kind = StorageFull if error.errno in _FULL else Unavailable
    return kind(f"the recording cannot be stored: {error.strerror}")
