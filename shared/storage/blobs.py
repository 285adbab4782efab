"""Recordings at rest: in a folder that only Tenor reads, or in a bucket of an S3-compatible store."""

import errno
import hashlib
import os
import re
from collections.abc import Generator
from contextlib import contextmanager, suppress
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

_CHUNK = 2**20
_PART = 5 * 2**20
"""The smallest part that S3 takes of a multipart upload. What is shorter is sent by one request."""
_PARTS_AT_ONCE = 2
_IN_MEMORY = 8 * 2**20
_RETRIES: "RetryConfig" = {"max_retries": 3, "retry_timeout": timedelta(seconds=10)}
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def new_uri(tenant_id: UUID, session_id: UUID) -> str:
    """A name for a new blob: nobody can guess it, and it says whose it is."""
    return f"{tenant_id}/{session_id}/{uuid4()}"


class Blobs(Protocol):
    """Where recordings lie, named by their URI."""

    def put(self, uri: str, source: IO[bytes]) -> str:
        """Store everything that `source`, which can be rewound, holds; its sha256, in hex.

        When this returns, the bytes are at rest. A blob is there whole or not at all.

        Raises:
            StorageFull: there is no room for it.
            Unavailable: the store fails or cannot be reached.
        """
        ...

    def open(self, uri: str) -> IO[bytes]:
        """The blob as a local file, for the caller to close.

        Raises:
            RecordingGone: there is none.
            Unavailable: the store fails or cannot be reached.
        """
        ...

    def delete(self, uri: str) -> None:
        """Delete a blob, or what a crash left of it; nothing happens where there is none.

        Raises:
            Unavailable: the store fails or cannot be reached; the blob may still be there.
        """
        ...

    def check(self) -> None:
        """Find out, without a recording, whether the promises above can be kept.

        Raises:
            SetupError: what is deleted would not be gone.
            Unavailable: nothing can be stored now.
        """
        ...


def open_blobs(settings: Settings) -> Blobs:
    """The place that `blob_url` names. Nothing is asked of it yet."""
    if settings.s3_url is None:
        return BlobFolder(settings.blob_dir)
    url = urlsplit(settings.s3_url)
    config: S3Config = {"region": settings.s3_region}
    if settings.s3_endpoint is not None:
        config["endpoint"] = settings.s3_endpoint
    if settings.s3_access_key_id is not None and settings.s3_secret_access_key is not None:
        config["access_key_id"] = settings.s3_access_key_id.get_secret_value()
        config["secret_access_key"] = settings.s3_secret_access_key.get_secret_value()
    return BlobBucket(url.netloc, url.path.strip("/"), config)


class BlobFolder:
    """Blobs as files below `root`."""

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
    """Blobs as objects of an S3 bucket, below a prefix.

    Credentials that `config` lacks are looked for as AWS's own tools do: in the environment, a web identity, the
    machine's role.
    """

    def __init__(self, bucket: str, prefix: str, config: "S3Config") -> None:
        # Not every S3-compatible store knows the deletion of many objects by one request.
        config = {**config, "disable_bulk_delete": True}
        client: ClientConfig = {"allow_http": config.get("endpoint", "").startswith("http://")}
        self._bucket = bucket
        self._store = S3Store(
            bucket, prefix=prefix or None, config=config, client_options=client, retry_config=_RETRIES
        )

    def put(self, uri: str, source: IO[bytes]) -> str:
        with self._said("the recording cannot be stored"):
            source.seek(0)
            digest = hashlib.file_digest(source, "sha256")  # pyright: ignore[reportArgumentType]: it only reads
            source.seek(0)
            obstore.put(self._store, uri, source, chunk_size=_PART, max_concurrency=_PARTS_AT_ONCE)
        return digest.hexdigest()

    def open(self, uri: str) -> IO[bytes]:
        local = SpooledTemporaryFile(max_size=_IN_MEMORY)  # noqa: SIM115
        with self._said("the recording cannot be read"):
            local.writelines(obstore.get(self._store, uri).stream(min_chunk_size=_CHUNK))
        local.seek(0)
        return cast("IO[bytes]", local)

    def delete(self, uri: str) -> None:
        with suppress(RecordingGone), self._said("a recording cannot be deleted"):
            obstore.delete(self._store, uri)

    def check(self) -> None:
        probe = f"{uuid4()}.probe"
        with self._said(f"no recording can be stored in the bucket {self._bucket}"):
            version = obstore.put(self._store, probe, b"")["version"]
            obstore.delete(self._store, probe)
        if version not in (None, "null"):
            raise SetupError(
                f"the bucket {self._bucket} keeps the versions of what is deleted, so a deleted recording would not "
                "be gone: name a bucket without versioning by TENOR_BLOB_URL"
            )

    @contextmanager
    def _said(self, what: str) -> Generator[None]:
        """Turn what the store or the local disk says into Tenor's errors, without the URL and keys in it."""
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
    kind = StorageFull if error.errno in _FULL else Unavailable
    return kind(f"the recording cannot be stored: {error.strerror}")
