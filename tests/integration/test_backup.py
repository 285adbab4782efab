"""Backups of an embedded run, made while it runs and while it does not."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from services.api.app import create_app
from services.embedded.backup import API_KEY, BLOBS, DUMP, MANIFEST, restore_backup, write_backup
from services.embedded.servers import EmbeddedServers, running_urls
from shared.domain.access import KeyRole
from shared.errors import SetupError
from shared.settings import BlobSettings, Settings
from shared.storage.blobs import open_blobs
from shared.store.database import Database
from tests.audio_clips import wav


@dataclass
class Run:
    """The data folder of an embedded run, which has one session with a text and a recording."""

    settings: Settings
    key: str
    session_id: str

    def history(self) -> list[dict[str, object]]:
        with client(self.settings, self.key) as api:
            return api.get(f"/v1/sessions/{self.session_id}/history").raise_for_status().json()["turns"]


def folder_settings(data_dir: Path) -> Settings:
    return Settings(data_dir=data_dir)


@contextmanager
def client(settings: Settings, key: str) -> Iterator[TestClient]:
    with TestClient(create_app(running_urls(settings)), headers={"Authorization": f"Bearer {key}"}) as api:
        yield api


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    settings = folder_settings(tmp_path_factory.mktemp("original"))
    with EmbeddedServers(settings.data_dir) as servers:
        database = Database(servers.database_url)
        database.migrate()
        with database.transaction() as transaction:
            tenant = transaction.accounts.ensure_tenant("local")
            key = transaction.accounts.create_key(tenant, "embedded", KeyRole.admin)
        (settings.data_dir / API_KEY).write_text(key)
        database.close()
        with client(settings, key) as api:
            session_id = api.post("/v1/sessions", json={"consent": {"retain_audio": True}}).json()["id"]
            api.post(f"/v1/sessions/{session_id}/turns", json={"text": "Good morning"}).raise_for_status()
            audio = {"audio": ("a.wav", wav(), "audio/wav")}
            api.post(f"/v1/sessions/{session_id}/turns", files=audio).raise_for_status()
    return Run(settings, key, session_id)


@pytest.fixture(scope="module")
def backup(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A backup that was made while nothing ran."""
    folder = tmp_path_factory.mktemp("backups") / "monday"
    write_backup(run.settings, folder)
    return folder


@pytest.fixture
def empty(tmp_path: Path) -> Settings:
    return folder_settings(tmp_path / "restored")


def test_a_restored_run_has_the_sessions_the_recordings_and_the_key(run: Run, backup: Path, empty: Settings) -> None:
    with EmbeddedServers(run.settings.data_dir):
        before = run.history()
    assert restore_backup(empty, backup).recordings == 1
    assert (empty.data_dir / API_KEY).read_text() == run.key
    with EmbeddedServers(empty.data_dir):
        assert Run(empty, run.key, run.session_id).history() == before
        database = Database(running_urls(empty).database.url)
        with database.transaction() as transaction:
            (uri,) = transaction.recordings.uris()
        database.close()
    with open_blobs(empty).open(uri) as restored:
        assert restored.read() == wav()


def test_a_backup_of_running_servers_is_complete_and_leaves_them_running(
    run: Run, empty: Settings, tmp_path: Path
) -> None:
    with EmbeddedServers(run.settings.data_dir) as servers:
        made = write_backup(run.settings, tmp_path / "online")
        before = run.history()
        assert len(servers.pids) == 2
    assert (made.recordings, made.missing) == (1, 0)
    restore_backup(empty, tmp_path / "online")
    with EmbeddedServers(empty.data_dir):
        assert Run(empty, run.key, run.session_id).history() == before


def test_a_backup_and_its_restored_files_are_readable_by_their_owner_only(backup: Path, empty: Settings) -> None:
    before = os.umask(0o022)
    try:
        restore_backup(empty, backup)
    finally:
        os.umask(before)
    files = [*backup.rglob("*"), *empty.blob_dir.rglob("*"), empty.data_dir / API_KEY]
    assert len(files) > 10
    assert [path for path in (backup, empty.data_dir, *files) if path.stat().st_mode & 0o077] == []
    assert [path.name for path in backup.parent.iterdir()] == [backup.name]


def test_workers_delete_no_recording_while_a_backup_is_made(database: Database) -> None:
    with database.transaction() as transaction:
        transaction.pending_deletions.add("tenant/session/recording", timedelta(0))
    with database.transaction() as backup:
        backup.pending_deletions.pause()
        with database.transaction() as worker:
            assert list(worker.pending_deletions.due()) == []
    with database.transaction() as worker:
        assert list(worker.pending_deletions.due()) == ["tenant/session/recording"]


def test_a_missing_recording_is_counted_and_the_others_are_backed_up(run: Run, tmp_path: Path) -> None:
    (recording,) = (path for path in run.settings.blob_dir.rglob("*") if path.is_file())
    content = recording.read_bytes()
    recording.unlink()
    try:
        made = write_backup(run.settings, tmp_path / "backup")
    finally:
        recording.write_bytes(content)
    assert (made.recordings, made.missing) == (0, 1)


def test_backup_and_restore_overwrite_no_file(run: Run, backup: Path) -> None:
    with pytest.raises(SetupError, match="exists: name a new folder"):
        write_backup(run.settings, backup)
    with pytest.raises(SetupError, match="holds data already: move it away"):
        restore_backup(run.settings, backup)


def test_a_restore_into_a_folder_that_a_run_uses_changes_nothing(run: Run, backup: Path) -> None:
    with EmbeddedServers(run.settings.data_dir):
        before = run.history()
        with pytest.raises(SetupError, match="another Tenor runs"):
            restore_backup(run.settings, backup)
        assert run.history() == before
    with EmbeddedServers(run.settings.data_dir):
        assert run.history() == before


def test_tenor_run_refuses_an_interrupted_restore_and_restoring_again_completes_it(
    backup: Path, empty: Settings
) -> None:
    empty.data_dir.mkdir()
    (empty.data_dir / "blobs").write_text("a file where the recordings' folder should be")
    with pytest.raises(SetupError, match="cannot be written"):
        restore_backup(empty, backup)
    with pytest.raises(SetupError, match="run `tenor restore` again"), EmbeddedServers(empty.data_dir):
        pass
    (empty.data_dir / "blobs").unlink()
    restore_backup(empty, backup)
    with EmbeddedServers(empty.data_dir):
        pass


def test_restoring_a_damaged_or_newer_or_invalid_backup_is_refused(backup: Path, empty: Settings) -> None:
    with pytest.raises(SetupError, match="holds no backup"):
        restore_backup(empty, backup.parent)
    manifest, dump = backup / MANIFEST, backup / DUMP
    (recording,) = (path for path in (backup / BLOBS).rglob("*") if path.is_file())
    written, dumped = manifest.read_text(), dump.read_bytes()
    try:
        dump.write_bytes(dumped[:-1])
        with pytest.raises(SetupError, match="is damaged"):
            restore_backup(empty, backup)
        dump.write_bytes(dumped)
        recording.unlink()
        with pytest.raises(SetupError, match=f"is damaged: {BLOBS}/.* is missing"):
            restore_backup(empty, backup)
        recording.write_bytes(wav())
        manifest.write_text(written.replace('"migration": "', '"migration": "9'))
        with pytest.raises(SetupError, match="restore it with that version or a later one"):
            restore_backup(empty, backup)
    finally:
        dump.write_bytes(dumped)
        manifest.write_text(written)
        recording.write_bytes(wav())
    assert not empty.data_dir.exists()


def test_a_folder_without_data_and_one_whose_recordings_are_elsewhere_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="holds no data: set TENOR_DATA_DIR"):
        write_backup(folder_settings(tmp_path / "nothing"), tmp_path / "backup")
    with pytest.raises(SetupError, match="in the bucket s3://recordings"):
        write_backup(Settings(data_dir=tmp_path, blobs=BlobSettings(url="s3://recordings")), tmp_path / "backup")
    assert not (tmp_path / "backup").exists()
