"""`tenor run`, `serve`, `worker` and `migrate`: the commands that start Tenor's processes."""

import gc
import os
import signal
import sys
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Annotated

import typer

from services.cli.database import open_database
from services.cli.extras import require_extras
from services.cli.output import exit_on_error, stderr, stdout
from services.listen_address import check_listenable, is_unspecified
from shared.domain.access import KeyRole
from shared.observability.logging import configure_logging
from shared.observability.metrics import serve_metrics
from shared.self_check import check_step, decode_clip, decode_clip_in_child
from shared.settings import Settings, get_settings, log_unknown_variables
from shared.storage.blobs import open_blobs
from shared.store.database import Database

app = typer.Typer()

Host = Annotated[str, typer.Option(help="The address to listen on.")]


@app.command(epilog="Example: `tenor run --port 8000`")
def run(
    host: Host = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="The port to listen on.")] = 8000,
) -> None:
    """Run everything on this machine: a private Postgres and Valkey, the API and one worker. Ctrl-C stops it."""
    with exit_on_error():
        require_extras("embedded", "models")
        settings = get_settings()
    configure_logging(settings.observability.log_format)
    log_unknown_variables()
    from services.embedded.servers import EmbeddedServers
    from services.embedded.supervisor import Supervisor

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)  # like Ctrl-C, which stops the servers
    with exit_on_error(), EmbeddedServers(settings.data_dir) as servers:
        with closing(Database(servers.database_url, pool_size=1)) as database:
            key = _prepare_database(database, settings.data_dir / "api-key")
        stderr.print("Starting the API and the worker ...")
        supervisor = Supervisor(settings, servers, host, port)
        supervisor.run(on_ready=lambda: _print_welcome(settings, supervisor.url, host, key))
        # The servers take a moment to stop; another Ctrl-C would leave them running.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    stderr.print("Stopped.")


@app.command(epilog="Example: `tenor serve --host 0.0.0.0 --port 8000`")
def serve(
    host: Host = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port to listen on; 0 chooses a free one.")] = 8000,
) -> None:
    """Run the API alone. It needs TENOR_DATABASE_URL and TENOR_BROKER_URL, and no models."""
    with exit_on_error():
        settings = get_settings()
        configure_logging(settings.observability.log_format)
        log_unknown_variables()
        check_listenable(host, port)
        decode_clip()
        with check_step("import the packages", "fastapi", "uvicorn"):
            from prometheus_client import REGISTRY

            from services.api.app import create_app
            from services.api.connections import run_server
            from services.api.queue_metrics import QueueDepthCollector
            from shared.audio.sandbox import AudioSandbox

        sandbox = AudioSandbox(children=1)
        decode_clip_in_child(sandbox)
        sandbox.close()
        application = create_app(settings)
        database = Database(settings.database.url, pool_size=1)
        database.check_tables()
        open_blobs(settings).check()
        if settings.observability.metrics_port is not None:
            REGISTRY.register(QueueDepthCollector(database))
            serve_metrics(settings.observability.metrics_port)
    # Objects that exist by now live as long as the process. Garbage collections that scan them would delay requests.
    gc.collect()
    gc.freeze()
    run_server(application, settings, host, port)


@app.command(epilog="Example: `TENOR_WORKER_INTERACTIVE_THREADS=8 tenor worker`")
def worker() -> None:
    """Run a worker, which loads the models and analyses turns until SIGTERM or Ctrl-C."""
    with exit_on_error():
        require_extras("models")
    os.execv(sys.executable, [sys.executable, "-m", "workers"])


@app.command(epilog="Example: `TENOR_DATABASE_URL=postgresql://tenor@db/tenor tenor migrate`")
def migrate() -> None:
    """Migrate the database's tables to this version. Safe to run repeatedly, and on several machines at once."""
    with exit_on_error(), open_database() as database:
        database.migrate()


def _prepare_database(database: Database, key_file: Path) -> str:
    """Migrate the database of an embedded run, delete the workers of the last run, and return the API key."""
    database.migrate()
    key = _embedded_key(database, key_file)
    with database.transaction() as transaction:
        transaction.workers.remove_unseen(timedelta(0))  # a run that was killed left them
    return key


def _embedded_key(database: Database, file: Path) -> str:
    """Return the API key of the embedded run. The first start creates it, in a file that only its user can read."""
    with database.transaction() as transaction:
        if file.exists() and transaction.accounts.key(file.read_text().strip()) is not None:
            return file.read_text().strip()
        tenant_id = transaction.accounts.ensure_tenant("local")
        key = transaction.accounts.create_key(tenant_id, "embedded", KeyRole.admin)
    file.touch(mode=0o600)
    file.write_text(key + "\n")
    return key


def _print_welcome(settings: Settings, url: str, host: str, key: str) -> None:
    all_addresses = f"\n          and on all addresses of this machine ({host})" if is_unspecified(host) else ""
    stdout.print(
        f"\n[bold green]Tenor is ready.[/]\n\n"
        f"  API     {url}   (documentation: {url}/docs){all_addresses}\n"
        f"  Key     {key}\n"
        f"  Data    {settings.data_dir}   (logs in logs/)\n\n"
        f"Ctrl-C stops it. The data folder keeps the sessions for the next start.",
        highlight=False,
        soft_wrap=True,
    )
