"""The database that a command uses."""

from collections.abc import Generator
from contextlib import closing, contextmanager

from services.cli.extras import is_installed
from shared.settings import Settings, get_settings
from shared.storage.data_folder import check_data_folder
from shared.store.database import Database


def reachable_settings() -> Settings:
    """Return the settings; without TENOR_DATABASE_URL, with the URLs of the servers that `tenor run` started.

    Raises:
        SetupError: no database is configured and no embedded Tenor runs.
    """
    settings = get_settings()
    if "database" in settings.model_fields_set or not is_installed("embedded"):
        return settings
    from services.embedded.servers import running_urls

    check_data_folder(settings.data_dir)
    return running_urls(settings)


@contextmanager
def open_database() -> Generator[Database]:
    """Give the database, with one connection, which is closed at the end.

    Raises:
        SetupError: no database is configured and no embedded Tenor runs.
    """
    with closing(Database(reachable_settings().database.url, pool_size=1)) as database:
        yield database
