"""The database: its connections, transactions with their repositories, and migrations."""

import logging
from collections.abc import Generator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from psycopg.errors import DiskFull
from pydantic import SecretStr
from sqlalchemy import Connection, create_engine, exc, make_url, text

from shared.errors import SetupError, StorageFull, Unavailable
from shared.store.accounts import Accounts
from shared.store.deliveries import Deliveries
from shared.store.idempotency import IdempotencyKeys
from shared.store.job_admin import JobAdmin
from shared.store.jobs import Jobs
from shared.store.outbox import Outbox
from shared.store.pending_deletions import PendingDeletions
from shared.store.recordings import Recordings
from shared.store.sessions import Sessions
from shared.store.turn_results import TurnResults
from shared.store.turns import Turns
from shared.store.webhooks import Webhooks
from shared.store.worker_registry import WorkerRegistry

_log = logging.getLogger(__name__)

_MIGRATION_LOCK = 7_366_711_001
_CONNECT_ARGS = {
    "connect_timeout": 5,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 20_000,
}
"""How soon a server counts as gone whose machine vanished: in seconds, the last one in milliseconds."""

_WRITE_64_KB = """
CREATE TEMPORARY TABLE tenor_room ON COMMIT DROP AS SELECT repeat('x', 1000) AS filling FROM generate_series(1, 64)
"""


def _alembic() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    return config


class Transaction:
    """One database transaction, with the repositories that read and write through it.

    Everything that is written through it is committed together or not at all.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    @cached_property
    def accounts(self) -> Accounts:
        return Accounts(self._connection)

    @cached_property
    def deliveries(self) -> Deliveries:
        return Deliveries(self._connection)

    @cached_property
    def idempotency(self) -> IdempotencyKeys:
        return IdempotencyKeys(self._connection)

    @cached_property
    def job_admin(self) -> JobAdmin:
        return JobAdmin(self._connection)

    @cached_property
    def jobs(self) -> Jobs:
        return Jobs(self._connection)

    @cached_property
    def outbox(self) -> Outbox:
        return Outbox(self._connection)

    @cached_property
    def pending_deletions(self) -> PendingDeletions:
        return PendingDeletions(self._connection)

    @cached_property
    def recordings(self) -> Recordings:
        return Recordings(self._connection)

    @cached_property
    def sessions(self) -> Sessions:
        return Sessions(self._connection)

    @cached_property
    def turn_results(self) -> TurnResults:
        return TurnResults(self._connection)

    @cached_property
    def turns(self) -> Turns:
        return Turns(self._connection)

    @cached_property
    def webhooks(self) -> Webhooks:
        return Webhooks(self._connection)

    @cached_property
    def workers(self) -> WorkerRegistry:
        return WorkerRegistry(self._connection)


class Database:
    """A pool of connections to one Postgres."""

    def __init__(self, url: SecretStr, pool_size: int = 10) -> None:
        self._url = make_url(url.get_secret_value()).set(drivername="postgresql+psycopg")
        # Parameters hold what people said, and SQLAlchemy would put them into errors, which are logged.
        self._engine = create_engine(
            self._url,
            pool_size=pool_size,
            max_overflow=pool_size,
            pool_pre_ping=True,
            hide_parameters=True,
            connect_args=_CONNECT_ARGS,
        )
        self._found_full = False

    @property
    def found_full(self) -> bool:
        """Whether a transaction of this process found the disk full, and no `check_room` has succeeded since."""
        return self._found_full

    @contextmanager
    def transaction(self) -> Generator[Transaction]:
        """Open a transaction: it is committed on leaving, and rolled back on an exception.

        Raises:
            StorageFull: the disk of Postgres is full.
            Unavailable: Postgres cannot be reached, or all connections are taken for too long.
        """
        with self._connection() as connection:
            yield Transaction(connection)

    @contextmanager
    def snapshot(self) -> Generator[tuple[Transaction, str]]:
        """Open a read-only transaction; also yields the snapshot id by which another process reads the same state.

        Raises:
            Unavailable: Postgres cannot be reached.
        """
        with self._connection() as connection:
            connection.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY"))
            yield Transaction(connection), connection.execute(text("SELECT pg_export_snapshot()")).scalar_one()

    def check_room(self) -> None:
        """Write 64 KB to the disk of Postgres and delete them again, as reading works on a full disk too.

        The 64 KB go into a temporary table, which needs new space; a row of an existing table may reuse freed space.
        The check is skipped where the database's user may not create temporary tables.

        Raises:
            StorageFull: the disk is full.
            Unavailable: Postgres cannot be reached.
        """
        allowed = text("SELECT has_database_privilege(current_database(), 'TEMPORARY')")
        with self._connection() as connection:
            if connection.execute(allowed).scalar_one():
                connection.execute(text(_WRITE_64_KB))
        self._found_full = False

    def migrate(self) -> None:
        """Migrate the tables to the newest revision. Several processes may call this at once.

        Raises:
            SetupError: the tables are of a later version of Tenor.
            Unavailable: Postgres cannot be reached.
        """
        config = _alembic()
        with self._connection() as connection:
            connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _MIGRATION_LOCK})
            current = MigrationContext.configure(connection).get_current_revision()
            if current is not None and not self.knows_migration(current):
                raise SetupError(
                    f"the database's tables are at {current}, which only a later version of Tenor knows: run that "
                    "version, or, to go back to this one, restore a backup that was made before the update"
                )
            config.attributes["connection"] = connection
            command.upgrade(config, "head")

    def revision(self) -> str | None:
        """Return the revision of the tables; None where there are no tables.

        Raises:
            Unavailable: Postgres cannot be reached.
        """
        with self._connection() as connection:
            return MigrationContext.configure(connection).get_current_revision()

    @staticmethod
    def knows_migration(revision: str) -> bool:
        """Return whether this version of Tenor has this migration, and so can migrate tables that are at it."""
        return revision in {script.revision for script in ScriptDirectory.from_config(_alembic()).walk_revisions()}

    def check_tables(self) -> None:
        """Check that the tables are of this version of Tenor or of a later one.

        Tables of a later version are accepted, because an update migrates them while processes of the version before
        still run.

        Raises:
            SetupError: the tables are of an earlier version, or there are none.
            Unavailable: Postgres cannot be reached.
        """
        scripts = ScriptDirectory.from_config(_alembic())
        current = self.revision()
        newest, known = scripts.get_current_head(), {script.revision for script in scripts.walk_revisions()}
        if current is None or current in known - {newest}:
            stands = f"are at {current}" if current else "have not been made"
            raise SetupError(
                f"the database's tables {stands}, this version of Tenor needs {newest}: run `tenor migrate`"
            )

    @contextmanager
    def _connection(self) -> Generator[Connection]:
        try:
            with self._engine.begin() as connection:
                yield connection
        except (exc.OperationalError, exc.InterfaceError) as error:
            if isinstance(error.orig, DiskFull):
                self._found_full = True
                _log.error("the disk of the database is full: %s", error.orig.diag.message_primary)
                raise StorageFull("the disk of the database is full") from error
            raise Unavailable("the database cannot be reached") from error
        except exc.TimeoutError as error:
            raise Unavailable("the database is busy: no connection was free in time") from error

    def close(self) -> None:
        self._engine.dispose()
