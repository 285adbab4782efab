"""Backups of an embedded run: its database, its recordings and its API key in one folder.

A backup is written under a temporary name and renamed at the end, so every folder with a manifest is complete.
"""

import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Generator, Iterable
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal, Self

import psycopg
from psycopg.conninfo import conninfo_to_dict
from pydantic import AwareDatetime, BaseModel, ConfigDict, SecretStr, ValidationError
from rich.console import Console
from rich.progress import track

from services.embedded.folder import UNFINISHED_RESTORE, DataFolder
from services.embedded.postgres import PACKAGE
from services.embedded.servers import EmbeddedServers, running_urls
from shared.errors import SetupError
from shared.settings import Settings
from shared.store.database import Database
from shared.version import VERSION

MANIFEST, DUMP, BLOBS, DIGESTS, API_KEY = "backup.json", "database.dump", "recordings", "recordings.sha256", "api-key"
_LIBPQ = {"HOST": "host", "PORT": "port", "USER": "user", "PASSWORD": "password"}
_BINARIES = PACKAGE / "pginstall" / "bin"


class Backup(BaseModel):
    """The manifest of a backup. `missing` counts the recordings that a client deleted while the backup was made."""

    model_config = ConfigDict(frozen=True)

    format: Literal[1] = 1
    tenor: str
    migration: str
    created_at: AwareDatetime
    dump_sha256: str
    digests_sha256: str
    recordings: int
    missing: int

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read the manifest of the backup in `folder`, and check the digest of every file.

        Raises:
            SetupError: The folder contains no backup, it is damaged, or a later version of Tenor made it.
        """
        try:
            backup = cls.model_validate_json((folder / MANIFEST).read_bytes())
        except (OSError, ValidationError):
            raise SetupError(f"{folder} holds no backup: name a folder that `tenor backup` wrote") from None
        _check_file(folder, DUMP, backup.dump_sha256)
        _check_file(folder, DIGESTS, backup.digests_sha256)
        for uri, digest in _read_digests(folder).items():
            _check_file(folder, f"{BLOBS}/{uri}", digest)
        if not Database.knows_migration(backup.migration):
            raise SetupError(
                f"the backup in {folder} was made by Tenor {backup.tenor}, whose tables are at {backup.migration}, and "
                f"this is {VERSION}: restore it with that version or a later one"
            )
        return backup


def write_backup(settings: Settings, folder: Path) -> Backup:
    """Write a backup of the data folder of `settings` to `folder`, whether or not Tenor runs on it.

    The dump contains the database at one moment. Workers delete no recording until all are copied.

    Raises:
        SetupError: `folder` exists, there is nothing to back up, the recordings are in a bucket, or the disk is full.
        Unavailable: Postgres cannot be reached.
    """
    _check_local(settings)
    if folder.exists():
        raise SetupError(f"{folder} exists: name a new folder for the backup")
    with _running(settings) as url, _disk_errors(folder), _private_files():
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        try:
            backup = _write(settings, url, partial)
            (partial / MANIFEST).write_text(backup.model_dump_json(indent=2))
            os.sync()
            partial.rename(folder)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
    return backup


def restore_backup(settings: Settings, folder: Path) -> Backup:
    """Restore the backup in `folder` into the empty data folder of `settings`, and migrate its tables.

    After an interrupted restore, the next call starts again. Until then, `tenor run` refuses the data folder.

    Raises:
        SetupError: `folder` contains no backup that this version can read, the data folder contains data or is in
            use, or the disk is full.
    """
    _check_local(settings)
    backup = Backup.read(folder)
    data = DataFolder(settings.data_dir)
    unfinished = data.path / UNFINISHED_RESTORE
    with _disk_errors(data.path), _private_files(), closing(data):
        data.open(restoring=True)
        if (data.path / "postgres").exists() and not unfinished.exists():
            raise SetupError(
                f"{data.path} holds data already: move it away, or set TENOR_DATA_DIR to the folder to restore into"
            )
        unfinished.touch()
        with EmbeddedServers(data) as servers:
            _copy_all(_read_digests(folder), folder / BLOBS, settings.blob_dir)
            if (folder / API_KEY).exists():
                shutil.copyfile(folder / API_KEY, data.path / API_KEY)
            _restore_database(servers, folder / DUMP)
            os.sync()
            unfinished.unlink()
    return backup


def _check_local(settings: Settings) -> None:
    if settings.blobs.s3_url is not None:
        raise SetupError(
            f"the recordings are in the bucket {settings.blobs.s3_url}, which a backup of the data folder does not "
            "contain: docs/backup.md says how to back up a production database"
        )


@contextmanager
def _running(settings: Settings) -> Generator[str]:
    """Yield the URL of the database in the data folder. Starts its servers if they do not run."""
    try:
        url = running_urls(settings).database.url.get_secret_value()
    except SetupError:
        if not (settings.data_dir / "postgres").exists():
            raise SetupError(
                f"{settings.data_dir} holds no data: set TENOR_DATA_DIR to the folder to back up"
            ) from None
        with EmbeddedServers(settings.data_dir) as servers:
            yield servers.database_url.get_secret_value()
    else:
        yield url


def _write(settings: Settings, url: str, folder: Path) -> Backup:
    database = Database(SecretStr(url), pool_size=2)
    migration = database.revision()
    if migration is None:
        raise SetupError(f"the database in {settings.data_dir} has no tables: there is nothing to back up")
    with database.transaction() as lock:
        lock.pending_deletions.pause()
        with database.snapshot() as (transaction, snapshot):
            uris = transaction.recordings.uris()
            options = ("--format=custom", "--no-owner", "--no-privileges", f"--snapshot={snapshot}")
            _run_tool(url, "pg_dump", *options, f"--file={folder / DUMP}")
        missing = _copy_all(uris, settings.blob_dir, folder / BLOBS)
    database.close()
    copied = [uri for uri in uris if uri not in missing]
    # In the format of sha256sum, so that sha256sum can check them too.
    lines = [f"{_sha256(folder / BLOBS / uri)}  {uri}\n" for uri in copied]
    (folder / DIGESTS).write_text("".join(lines))
    if (settings.data_dir / API_KEY).exists():
        shutil.copyfile(settings.data_dir / API_KEY, folder / API_KEY)
    return Backup(
        tenor=VERSION,
        migration=migration,
        created_at=datetime.now(UTC),
        dump_sha256=_sha256(folder / DUMP),
        digests_sha256=_sha256(folder / DIGESTS),
        recordings=len(copied),
        missing=len(missing),
    )


def _restore_database(servers: EmbeddedServers, dump: Path) -> None:
    """Replace the database by a dump, completely or not at all, and migrate its tables."""
    with psycopg.connect(servers.url_of("postgres"), autocommit=True) as connection:
        connection.execute("DROP DATABASE tenor WITH (FORCE)")
        connection.execute("CREATE DATABASE tenor")
    url = servers.database_url.get_secret_value()
    _run_tool(url, "pg_restore", "--single-transaction", "--no-owner", "--no-privileges", dump)
    database = Database(servers.database_url, pool_size=1)
    database.migrate()
    with database.transaction() as transaction:
        transaction.workers.remove_unseen(timedelta(0))
    database.close()


def _copy_all(uris: Iterable[str], source: Path, target: Path) -> set[str]:
    """Copy blobs from one folder to another, and return the URIs of those that are missing."""
    console = Console(stderr=True)
    missing = set[str]()
    for uri in track(
        list(uris), "Copying recordings", console=console, transient=True, disable=not console.is_terminal
    ):
        (target / uri).parent.mkdir(parents=True, exist_ok=True)
        try:
            shutil.copyfile(source / uri, target / uri)
        except FileNotFoundError:
            missing.add(uri)
    return missing


def _read_digests(folder: Path) -> dict[str, str]:
    """Return a dictionary from the URI of each recording in a backup to its SHA-256."""
    lines = (line.partition("  ") for line in (folder / DIGESTS).read_text().splitlines())
    return {uri: digest for digest, _, uri in lines}


def _check_file(folder: Path, name: str, digest: str) -> None:
    """Raise SetupError if a file of a backup is missing or has another digest."""
    try:
        matches = _sha256(folder / name) == digest
    except OSError:
        matches = False
    if not matches:
        raise SetupError(f"the backup in {folder} is damaged: {name} is missing or not the file that was written")


def _run_tool(url: str, tool: str, *arguments: object) -> None:
    """Run a program of Postgres on a database. The password is in its environment, where other users cannot see it.

    Raises:
        SetupError: The program failed.
    """
    target = conninfo_to_dict(url)
    env = {f"PG{name}": str(target[key]) for name, key in _LIBPQ.items() if target.get(key)}
    database = ("--dbname", str(target["dbname"]))
    command = [str(_BINARIES / tool), *map(str, arguments), *database]
    result = subprocess.run(
        command, env={**os.environ, **env}, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if result.returncode != 0:
        raise SetupError(f"{tool} failed: {result.stderr.strip().partition(chr(10))[0]}")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _disk_errors(folder: Path) -> Generator[None]:
    """Convert an error of the file system to a SetupError that names the path."""
    try:
        yield
    except OSError as error:
        raise SetupError(f"{error.filename or folder} cannot be written: {error.strerror}") from None


@contextmanager
def _private_files() -> Generator[None]:
    """Within this context, this process and its children create files with mode 0600 and folders with mode 0700."""
    before = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(before)
