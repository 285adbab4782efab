"""Stores audio files as blobs: in a folder that only Tenor reads, or in a bucket of an S3-compatible store."""

import errno
import hashlib
import os
import re
from collections.abc import Generator
from contextlib import ExitStack, contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import IO, TYPE_CHECKING, Protocol, cast
from urllib.parse import urlsplit
from uuid import UUID, uuid4

import obstore
from obstore.exceptions import BaseError
from obstore.store import S3Store

from shared.errors import RecordingGone, SetupError, StorageFull, Unavailable
from shared.settings import Settings

if TYPE_CHECKING:
    from obstore.store import ClientConfig, RetryConfig, S3Config

_CHUNK_BYTES = 2**20
_PART_BYTES = 5 * 2**20
"""The smallest part of a multipart upload that S3 accepts. A smaller blob is uploaded by one request."""
_MAX_PARALLEL_PARTS = 2
_MAX_IN_MEMORY_BYTES = 8 * 2**20
_RETRIES: "RetryConfig" = {"max_retries": 3, "retry_timeout": timedelta(seconds=10)}
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def new_uri(tenant_id: UUID, session_id: UUID) -> str:
    """Return an unguessable name for a new blob, below a folder of its tenant and session."""
    return f"{tenant_id}/{session_id}/{uuid4()}"


class Blobs(Protocol):
    """A store of blobs, each named by its URI."""

    def put(self, uri: str, source: IO[bytes]) -> str:
        """Store the whole content of a seekable file, and return its SHA-256 in hex.

        The bytes survive a power failure once this returns. A blob exists with its whole content, or not at all.

        Raises:
            StorageFull: there is no room for the blob.
            Unavailable: the store fails or cannot be reached.
        """
        ...

    def open(self, uri: str) -> IO[bytes]:
        """Return a blob as a local file, which the caller closes.

        Raises:
            RecordingGone: there is no such blob.
            Unavailable: the store fails or cannot be reached.
        """
        ...

    def delete(self, uri: str) -> None:
        """Delete a blob, or the part of it that a crash left behind. A blob that does not exist is no error.

        Raises:
            Unavailable: the store fails or cannot be reached; the blob may still be there.
        """
        ...

    def check(self) -> None:
        """Store and delete a probe, to find out whether the blob store works.

        Raises:
            SetupError: the store keeps copies of deleted blobs.
            Unavailable: nothing can be stored now.
        """
        ...


def open_blobs(settings: Settings) -> Blobs:
    """Return the blob store that the setting `blob_url` names, without connecting to it."""
    if settings.blobs.s3_url is None:
        return BlobFolder(settings.blob_dir)
    url = urlsplit(settings.blobs.s3_url)
    config: S3Config = {"region": settings.blobs.s3_region}
    if settings.blobs.s3_endpoint is not None:
        config["endpoint"] = settings.blobs.s3_endpoint
    if settings.blobs.s3_access_key_id is not None and settings.blobs.s3_secret_access_key is not None:
        config["access_key_id"] = settings.blobs.s3_access_key_id.get_secret_value()
        config["secret_access_key"] = settings.blobs.s3_secret_access_key.get_secret_value()
    return BlobBucket(url.netloc, url.path.strip("/"), config)


class BlobFolder:
    """Stores blobs as files below `root`."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def put(self, uri: str, source: IO[bytes]) -> str:
        path = self._root / uri
        partial = path.with_suffix(".partial")
        source.seek(0)
        digest = hashlib.sha256()
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with partial.open("wb") as file:
                while chunk := source.read(_CHUNK_BYTES):
                    digest.update(chunk)
                    file.write(chunk)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        except OSError as error:
            partial.unlink(missing_ok=True)
            raise _full_or_failed(error) from error
        return digest.hexdigest()

    def open(self, uri: str) -> IO[bytes]:
        try:
            return (self._root / uri).open("rb")
        except FileNotFoundError:
            raise RecordingGone("the recording was deleted") from None
        except OSError as error:
            raise Unavailable(f"the recording cannot be read: {error.strerror}") from error

    def delete(self, uri: str) -> None:
        path = self._root / uri
        try:
            for file in (path, path.with_suffix(".partial")):
                file.unlink(missing_ok=True)
            for folder in (path.parent, path.parent.parent):
                if folder.is_dir() and not any(folder.iterdir()):
                    folder.rmdir()
        except OSError as error:
            raise Unavailable(f"a recording cannot be deleted: {error.strerror}") from error

    def check(self) -> None:
        try:
            self._root.mkdir(parents=True, exist_ok=True, mode=0o700)
            probe = self._root / f"{uuid4()}.probe"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise Unavailable(f"no recording can be stored in {self._root}: {error.strerror}") from error


class BlobBucket:
    """Stores blobs as objects of an S3 bucket, below a prefix.

    Credentials that `config` lacks are looked up as AWS's own tools do: in the environment, a web identity, the
    role of the machine.
    """

    def __init__(self, bucket: str, prefix: str, config: "S3Config") -> None:
        # Not every S3-compatible store implements the deletion of many objects by one request.
        config = {**config, "disable_bulk_delete": True}
        client: ClientConfig = {"allow_http": config.get("endpoint", "").startswith("http://")}
        self._bucket = bucket
        self._store = S3Store(
            bucket, prefix=prefix or None, config=config, client_options=client, retry_config=_RETRIES
        )

    def put(self, uri: str, source: IO[bytes]) -> str:
        with self._translated_errors("the recording cannot be stored"):
            source.seek(0)
            digest = hashlib.file_digest(source, "sha256")  # pyright: ignore[reportArgumentType]: it only reads
            source.seek(0)
            obstore.put(self._store, uri, source, chunk_size=_PART_BYTES, max_concurrency=_MAX_PARALLEL_PARTS)
        return digest.hexdigest()

    def open(self, uri: str) -> IO[bytes]:
        with ExitStack() as stack, self._translated_errors("the recording cannot be read"):
            local = stack.enter_context(SpooledTemporaryFile(max_size=_MAX_IN_MEMORY_BYTES))
            local.writelines(obstore.get(self._store, uri).stream(min_chunk_size=_CHUNK_BYTES))
            local.seek(0)
            stack.pop_all()  # the caller closes the file
        return cast("IO[bytes]", local)

    def delete(self, uri: str) -> None:
        with suppress(RecordingGone), self._translated_errors("a recording cannot be deleted"):
            obstore.delete(self._store, uri)

    def check(self) -> None:
        probe = f"{uuid4()}.probe"
        with self._translated_errors(f"no recording can be stored in the bucket {self._bucket}"):
            version = obstore.put(self._store, probe, b"")["version"]
            obstore.delete(self._store, probe)
        if version not in (None, "null"):
            raise SetupError(
                f"the bucket {self._bucket} keeps versions of deleted objects, so a deleted recording would still "
                "exist: set TENOR_BLOBS_URL to a bucket without versioning"
            )

    @contextmanager
    def _translated_errors(self, what: str) -> Generator[None]:
        """Raise the errors of the store and the local disk as Tenor's errors, without the URL and the keys in them."""
        try:
            yield
        except FileNotFoundError as error:
            if "NoSuchBucket" in str(error):
                raise Unavailable(f"{what}: there is no bucket {self._bucket}") from None
            raise RecordingGone("the recording was deleted") from None
        except BaseError as error:
            code = re.search(r"<Code>(\w+)</Code>", str(error))
            reason = code[1] if code else "the store cannot be reached"
            raise Unavailable(f"{what}: {reason}") from None
        except OSError as error:
            raise Unavailable(f"{what}: {error.strerror or error}") from error


def _full_or_failed(error: OSError) -> Unavailable:
    kind = StorageFull if error.errno in _DISK_FULL else Unavailable
    return kind(f"the recording cannot be stored: {error.strerror}")
