"""`tenor bench`: the benchmarks of the package `benchmarks`."""

import re
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from services.cli.extras import require_extras
from services.cli.output import Format, Output, exit_on_error, print_json, print_table, stderr, track
from shared.settings import get_settings

if TYPE_CHECKING:
    from benchmarks.device import DeviceFigure
    from benchmarks.figures import Figure

app = typer.Typer()
bench = typer.Typer(no_args_is_help=True, rich_markup_mode="markdown", help="Measure Tenor on this machine.")
app.add_typer(bench, name="bench")

Clips = Annotated[list[Path], typer.Argument(metavar="FILE...", help="Audio clips of a few seconds with speech.")]
Rounds = Annotated[int, typer.Option(min=1, help="How often everything is measured.")]


@bench.command("clips", epilog="Example: `tenor bench clips tests/assets/*.ogg --format json`")
def bench_clips(files: Clips, rounds: Rounds = 5, output: Output = Format.table) -> None:
    """Measure the time per clip and text, in process and as a service, and the service's memory."""
    with _measuring("bench"):
        from benchmarks import clips

        settings = get_settings()
        figures = [clips.measure_api_start(settings, rounds)]
        figures += clips.measure_as_service(settings, files, rounds)
        figures += clips.measure_in_process(settings, files, rounds)
    _print_figures(figures, output)


@bench.command("chain", epilog="Example: `tenor bench chain tests/assets/*.ogg --rounds 3`")
def bench_chain(
    files: Clips,
    rounds: Rounds = 5,
    clients: Annotated[int, typer.Option(min=1, help="Concurrent clients of Tenor.")] = 16,
    output: Output = Format.table,
) -> None:
    """Compare the clips per second with faster-whisper and two transformers pipelines, one clip at a time."""
    with _measuring("bench"):
        from benchmarks import chain

        figures = chain.compare_with_plain_chain(get_settings(), files, rounds, clients)
    _print_figures(figures, output)


@bench.command("transcripts", epilog="Examples: `tenor bench transcripts`, `tenor bench transcripts clips.csv`")
def bench_transcripts(
    manifest: Annotated[
        Path | None,
        typer.Argument(help="A CSV file with the columns path, text and language. By default, clips are synthesised."),
    ] = None,
    output: Output = Format.table,
) -> None:
    """Compare the word error rate and the time per clip with faster-whisper's defaults, for each kind of clips."""
    with exit_on_error():
        require_extras("bench")
        from benchmarks import transcripts

        clips = transcripts.read_manifest(manifest) if manifest else transcripts.synthetic_reference_clips()
        tracked = track("Transcribing", clips, len(clips))
        figures = list(transcripts.compare_transcripts(get_settings(), tracked))
    _print_figures(figures, output)


@bench.command("levels", epilog="Example: `tenor bench levels tests/assets/*.ogg --peak -55`")
def bench_levels(
    files: Clips,
    peak: Annotated[float, typer.Option(max=0, help="Peak level of the quiet clips, in dBFS.")] = -55,
    output: Output = Format.table,
) -> None:
    """Compare the words and the emotions of clips that were made quiet with those of the clips as they are."""
    with _measuring("bench"):
        from benchmarks import levels

        figures = list(levels.compare_levels(get_settings(), files, peak))
    _print_figures(figures, output)


@bench.command("accepts", epilog="Example: `tenor bench accepts --connections 32 --seconds 5`")
def bench_accepts(
    connections: Annotated[int, typer.Option(min=1, help="Concurrent clients.")] = 64,
    seconds: Annotated[float, typer.Option(min=0.1, help="How long each server is loaded in each round.")] = 10,
    rounds: Rounds = 3,
    output: Output = Format.table,
) -> None:
    """Compare the turns that the API accepts per second with a route that inserts one row."""
    with _measuring("bench"):
        from benchmarks import accepts

        figures = list(accepts.measure_accepts(get_settings(), connections, seconds, rounds))
    _print_figures(figures, output)


@bench.command("lanes", epilog="Example: `tenor bench lanes tests/assets/*.ogg --rounds 10`")
def bench_lanes(files: Clips, rounds: Rounds = 5, output: Output = Format.table) -> None:
    """Measure the latency of interactive audio turns, alone and while the bulk lane is never empty."""
    with _measuring("bench"):
        from benchmarks import lanes

        figures = lanes.measure_lanes(get_settings(), files, rounds)
    _print_figures(figures, output)


@bench.command("dispatch", epilog="Example: `tenor bench dispatch --rounds 5`")
def bench_dispatch(rounds: Rounds = 3, output: Output = Format.table) -> None:
    """Measure the tasks per second with a stub model of 20 ms: 32 threads with batches, and one thread without."""
    with _measuring("bench"):
        from benchmarks import queue_overhead

        figures = list(queue_overhead.measure_queue_overhead(get_settings(), rounds))
    _print_figures(figures, output)


@bench.command("deliveries", epilog="Example: `tenor bench deliveries --events 2000 --format json`")
def bench_deliveries(
    events: Annotated[int, typer.Option(min=1, help="Events to the webhook that answers at once.")] = 2000,
    backlog: Annotated[int, typer.Option(min=1, help="Events that wait for a webhook that answers after 30 s.")] = 300,
    timeout: Annotated[float, typer.Option(min=1, help="Longest wait for the events, in seconds.")] = 600,
    output: Output = Format.table,
) -> None:
    """Measure the events per second to a webhook, and the latency of an event while another webhook is slow."""
    with _measuring("bench"):
        from benchmarks import deliveries

        figures = list(deliveries.measure_deliveries(get_settings(), events, backlog, timeout))
    _print_figures(figures, output)


@bench.command("stages", epilog="Example: `tenor bench stages tests/assets/*.ogg --out costs.yaml`")
def bench_stages(
    files: Clips,
    out: Annotated[Path, typer.Option(help="The YAML file to which the costs are written.")],
    rounds: Rounds = 3,
    turns: Annotated[int, typer.Option(min=1, help="Turns for which database and broker traffic are counted.")] = 100,
) -> None:
    """Measure the cost of a turn in each stage, in Postgres and in Redis, for `tenor simulate`."""
    command = f"tenor bench stages {' '.join(map(str, files))} --rounds {rounds} --turns {turns} --out {out}"
    with _measuring("bench"):
        from benchmarks.capacity.measure_costs import measure_costs

        measure_costs(get_settings(), files, rounds, turns, command).save(out)


@bench.command(
    "device", epilog="Examples: `tenor bench device`, `tenor bench device --bundle compact --sizes 1,8 --seconds 2`"
)
def bench_device(
    bundle: Annotated[
        str | None,
        typer.Option(help="The bundle with the encoders; unset: the encoders of `full` with random weights."),
    ] = None,
    sizes: Annotated[
        str | None, typer.Option(help="Numbers of clips in flight; unset: 1,4,16, on a GPU also 64 and 256.")
    ] = None,
    seconds: Annotated[float, typer.Option(min=0.1, help="Length of a clip.")] = 3.0,
    rounds: Rounds = 5,
    output: Output = Format.table,
) -> None:
    """Measure the encoders on this device: clips per second, latency, and the share of the device's matrix rate."""
    in_flight = None if sizes is None else _parse_numbers(sizes)
    with _measuring("models"):
        from benchmarks import device

        settings = get_settings()
        if bundle is None:
            encoders = device.full_encoders(settings, seconds)
        else:
            encoders = device.bundle_encoders(bundle, settings, seconds)
        figures = list(device.measure(settings, encoders, in_flight, rounds))
    if output is Format.json:
        print_json(figures)
    else:
        print_table(device_table(figures))


def figures_table(figures: "Sequence[Figure]") -> Table:
    """Return the table of all benchmarks but `tenor bench device`."""
    table = Table("what", "median", "95 %", "99 %", "max", "unit", "measured")
    for figure in figures:
        values = (figure.median, figure.p95, figure.p99, figure.max)
        cells = (f"{value:.0f}" if value >= 100 else f"{value:.3g}" for value in values)
        table.add_row(figure.name, *cells, figure.unit, f"{figure.count} times")
    return table


def device_table(figures: "Sequence[DeviceFigure]") -> Table:
    """Return the table of `tenor bench device`."""
    table = Table("encoder", "in flight", "batch", "clips/s", "p50, ms", "p95, ms", "GFLOP/s", "of the matrix rate")
    for figure in figures:
        values = (figure.clips_per_s, 1000 * figure.p50_s, 1000 * figure.p95_s, figure.flops_per_s / 1e9)
        table.add_row(
            figure.encoder,
            str(figure.in_flight),
            str(figure.batch_size),
            *(f"{value:.3g}" for value in values),
            f"{figure.share:.0%}",
        )
    return table


@contextmanager
def _measuring(extra: str) -> Generator[None]:
    """Check that an extra is installed, and show on stderr that a measurement is running."""
    with exit_on_error(), stderr.status("Measuring ..."):
        require_extras(extra)
        yield


def _print_figures(figures: "Sequence[Figure]", output: Format) -> None:
    if output is Format.json:
        print_json(figures)
    else:
        print_table(figures_table(figures))


def _parse_numbers(text: str) -> list[int]:
    if not re.fullmatch("[1-9][0-9]*(,[1-9][0-9]*)*", text):
        raise typer.BadParameter(f"{text!r} is not a list of numbers, such as 1,4,16", param_hint="--sizes")
    return [int(number) for number in text.split(",")]
