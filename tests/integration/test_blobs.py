"""What is promised of recordings at rest, of a folder and of a bucket behind a real S3 protocol server alike."""

import hashlib
import io
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import httpx2 as httpx
import psutil
import pytest
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pydantic import SecretStr, ValidationError

from services.api.app import create_app
from services.embedded.servers import free_port
from shared.domain.access import KeyRole
from shared.errors import RecordingGone, SetupError, Unavailable
from shared.settings import BlobSettings, Settings
from shared.storage.blobs import BlobBucket, BlobFolder, Blobs, new_uri, open_blobs
from tests.audio_clips import wav
from tests.conftest import wait_for
from tests.integration.conftest import MakeKey

if TYPE_CHECKING:
    from obstore.store import S3Config

MIB = 2**20
BUCKET = "recordings"
AS_SOMEBODY = {"Authorization": "AWS4-HMAC-SHA256 Credential=id/20260101/us-east-1/s3/aws4_request"}
asked = httpx.Client(headers=AS_SOMEBODY, timeout=60)


@dataclass
class Place:
    """Somewhere blobs lie, and how to see what is there behind Tenor's back."""

    blobs: Blobs
    names: Callable[[], list[str]]


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of an S3 protocol server with the bucket `recordings`, and `versioned`, which keeps versions."""
    url = f"http://127.0.0.1:{free_port()}"
    with (tmp_path_factory.mktemp("s3") / "log").open("wb") as log:
        command = [sys.executable, "-m", "moto.server", "-p", url.rpartition(":")[2]]
        server = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        wait_for(lambda: answers(url), seconds=180)
        for bucket in (BUCKET, "versioned"):
            asked.put(f"{url}/{bucket}").raise_for_status()
        on = "<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>"
        asked.put(f"{url}/versioned?versioning", content=on).raise_for_status()
        yield url
    finally:
        server.kill()
        server.wait()


def answers(url: str) -> bool:
    with suppress(httpx.HTTPError):
        return httpx.get(f"{url}/moto-api/data.json").status_code == 200
    return False


def bucket_of(url: str, name: str = BUCKET, prefix: str = "") -> BlobBucket:
    config: S3Config = {"endpoint": url, "region": "us-east-1"}
    config |= {"access_key_id": "id", "secret_access_key": "not a real key"}
    return BlobBucket(name, prefix, config)


def keys(url: str, prefix: str) -> list[str]:
    """The objects below a prefix, and the multipart uploads that were neither completed nor aborted."""
    listing = asked.get(f"{url}/{BUCKET}", params={"prefix": prefix}).text
    uploads = asked.get(f"{url}/{BUCKET}?uploads").text
    found = [part.partition("</Key>")[0] for text in (listing, uploads) for part in text.split("<Key>")[1:]]
    return [key for key in found if key.startswith(prefix)]


@pytest.fixture(params=["folder", "bucket"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    if request.param == "folder":
        return Place(BlobFolder(tmp_path), lambda: [str(path) for path in tmp_path.rglob("*") if path.is_file()])
    url, prefix = request.getfixturevalue("s3"), f"tenor/{uuid4()}"
    return Place(bucket_of(url, prefix=prefix), lambda: keys(url, prefix))


@pytest.fixture
def uri() -> str:
    return new_uri(uuid4(), uuid4())


def read(blobs: Blobs, uri: str) -> bytes:
    with blobs.open(uri) as file:
        return file.read()


@hypothesis_settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=2000))
def test_a_stored_blob_is_read_back_with_its_digest(place: Place, content: bytes) -> None:
    uri = new_uri(uuid4(), uuid4())
    assert place.blobs.put(uri, io.BytesIO(content)) == hashlib.sha256(content).hexdigest()
    assert read(place.blobs, uri) == content


def test_a_large_upload_of_many_parts_is_stored_completely(place: Place, uri: str) -> None:
    content = os.urandom(12 * MIB + 1)
    assert place.blobs.put(uri, io.BytesIO(content)) == hashlib.sha256(content).hexdigest()
    assert read(place.blobs, uri) == content
    assert len(place.names()) == 1


def test_a_partly_read_source_is_stored_from_its_beginning(place: Place, uri: str) -> None:
    source = io.BytesIO(b"voice")
    source.read(3)
    place.blobs.put(uri, source)
    assert read(place.blobs, uri) == b"voice"


def test_a_blob_can_be_read_from_any_offset(place: Place, uri: str) -> None:
    place.blobs.put(uri, io.BytesIO(b"a voice"))
    with place.blobs.open(uri) as file:
        assert file.seek(0, os.SEEK_END) == 7
        file.seek(2)
        assert file.read() == b"voice"


def test_deleting_a_blob_twice_is_no_error(place: Place, uri: str) -> None:
    place.blobs.put(uri, io.BytesIO(b"voice"))
    for _ in range(2):
        place.blobs.delete(uri)
        assert place.names() == []
    with pytest.raises(RecordingGone, match="deleted"):
        place.blobs.open(uri)


class Breaks(io.FileIO):
    """A file of 12 MiB whose disk fails when it is read beyond 8 MiB from the `reading`th time on."""

    def __init__(self, path: Path, reading: int) -> None:
        path.write_bytes(bytes(12 * MIB))
        super().__init__(path)
        self._until = reading

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        self._until -= offset == 0 and whence == os.SEEK_SET
        return super().seek(offset, whence)

    def read(self, size: int | None = -1, /) -> bytes:
        if self._until <= 0 and self.tell() >= 8 * MIB:
            raise OSError(5, "Input/output error")
        return super().read(size) or b""


def test_an_interrupted_upload_leaves_no_blob(place: Place, uri: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    # A bucket's source is read once for its digest and once to be sent.
    source = Breaks(tmp_path_factory.mktemp("source") / "broken", 2 if isinstance(place.blobs, BlobBucket) else 1)
    with source, pytest.raises(Unavailable, match=r"the recording cannot be stored: .*Input/output error"):
        place.blobs.put(uri, source)  # pyright: ignore[reportArgumentType]: it reads as one
    assert place.names() == []


def test_checking_a_working_store_succeeds_and_leaves_no_blob(place: Place) -> None:
    place.blobs.check()
    assert place.names() == []


def test_a_full_disk_raises_an_error_and_leaves_no_partial_blob(tmp_path: Path, uri: str) -> None:
    partial = (tmp_path / uri).with_suffix(".partial")
    partial.parent.mkdir(parents=True)
    if not Path("/dev/full").exists():
        pytest.skip("this system has no device that is always full")
    partial.symlink_to("/dev/full")
    with pytest.raises(Unavailable, match="No space left on device"):
        BlobFolder(tmp_path).put(uri, io.BytesIO(b"voice"))
    assert not partial.is_symlink()


def test_an_unreachable_store_raises_an_error_without_secrets(uri: str) -> None:
    away = bucket_of("http://127.0.0.1:1")
    calls = (lambda: away.put(uri, io.BytesIO(b"x")), lambda: away.open(uri), lambda: away.delete(uri), away.check)
    for call in calls:
        with pytest.raises(Unavailable, match="the store cannot be reached") as raised:
            call()
        assert "key" not in str(raised.value)


def test_a_missing_bucket_is_an_error_and_not_a_deleted_recording(s3: str, uri: str) -> None:
    missing = bucket_of(s3, "nonesuch")
    for call in (lambda: missing.put(uri, io.BytesIO(b"x")), lambda: missing.open(uri), missing.check):
        with pytest.raises(Unavailable, match="there is no bucket nonesuch"):
            call()


def test_a_bucket_that_keeps_versions_is_refused(s3: str) -> None:
    with pytest.raises(SetupError, match="keeps versions of deleted objects"):
        bucket_of(s3, "versioned").check()


def test_an_upload_is_not_held_in_memory(s3: str, uri: str, tmp_path: Path) -> None:
    source = tmp_path / "long"
    with source.open("wb") as file:
        file.truncate(48 * MIB)
    process, done, peak = psutil.Process(), threading.Event(), 0
    before = process.memory_info().rss

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.005):
            peak = max(peak, process.memory_info().rss - before)

    watcher = threading.Thread(target=watch)
    watcher.start()
    with source.open("rb") as file:
        bucket_of(s3).put(uri, file)
    done.set()
    watcher.join()
    assert 0 < peak < 32 * MIB
    bucket_of(s3).delete(uri)


def test_the_url_selects_a_folder_or_a_bucket(tmp_path: Path) -> None:
    assert isinstance(open_blobs(Settings(data_dir=tmp_path)), BlobFolder)
    elsewhere = Settings(data_dir=tmp_path, blobs=BlobSettings(url=str(tmp_path / "elsewhere")))
    assert elsewhere.blob_dir == tmp_path / "elsewhere"
    assert isinstance(open_blobs(elsewhere), BlobFolder)
    assert isinstance(open_blobs(Settings(blobs=BlobSettings(url="s3://recordings/tenor"))), BlobBucket)


@pytest.mark.parametrize("url", ["s3://", "s3:///prefix", "gs://bucket", "http://minio/bucket"])
def test_a_url_of_another_scheme_is_refused(url: str) -> None:
    with pytest.raises(ValidationError, match="a folder or s3://bucket/prefix"):
        Settings(blobs=BlobSettings(url=url))


def test_an_access_key_without_its_secret_is_refused() -> None:
    with pytest.raises(ValidationError, match="set both or neither"):
        Settings(blobs=BlobSettings(s3_access_key_id=SecretStr("id")))


def test_an_uploaded_turn_is_in_the_bucket_until_its_session_is_deleted(
    s3: str, settings: Settings, make_key: MakeKey
) -> None:
    prefix = f"tenor/{uuid4()}"
    key = {"s3_access_key_id": SecretStr("id"), "s3_secret_access_key": SecretStr("not a real key")}
    there = settings.updated(blobs={"url": f"s3://{BUCKET}/{prefix}", "s3_endpoint": s3, **key})
    with TestClient(create_app(there), headers={"Authorization": f"Bearer {make_key('acme', KeyRole.admin)}"}) as api:
        session = api.post("/v1/sessions", json={}).json()["id"]
        response = api.post(f"/v1/sessions/{session}/turns", files={"audio": ("a.wav", wav(), "audio/wav")})
        assert response.status_code == 202, response.text
        (name,) = keys(s3, prefix)
        assert read(open_blobs(there), name.removeprefix(f"{prefix}/")) == wav()
        assert api.delete(f"/v1/sessions/{session}").status_code == 204
        assert keys(s3, prefix) == []
