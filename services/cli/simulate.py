"""`tenor simulate`: predicts the latency and the throughput of a fleet of workers."""

from pathlib import Path
from typing import Annotated

import typer

from services.cli.output import Format, Output, exit_on_error, print_json, print_table
from shared.settings import get_settings

app = typer.Typer()


@app.command(
    epilog="Examples: `tenor simulate --conversations 1000 --workers 8`, "
    "`tenor simulate --conversations 1000 --target-p95 2 --format json`"
)
def simulate(
    conversations: Annotated[int, typer.Option(min=0, help="Conversations in progress at the same time.")] = 0,
    every: Annotated[float, typer.Option(min=0.01, help="Mean seconds between two turns of a conversation.")] = 20,
    spoken: Annotated[float, typer.Option(min=0.01, help="Mean seconds of a turn's audio.")] = 4,
    spread: Annotated[float, typer.Option(min=0, help="Standard deviation of that length, divided by the mean.")] = 0.5,
    bulk: Annotated[float, typer.Option(min=0, help="Bulk turns that arrive per second.")] = 0,
    backlog: Annotated[int, typer.Option(min=0, help="Bulk turns that wait at the start.")] = 0,
    workers: Annotated[int, typer.Option(min=1, help="Worker processes, each with a device of its own.")] = 1,
    target_p95: Annotated[
        float | None,
        typer.Option(min=0.001, help="Find the fewest workers that finish 95 % of interactive turns in these seconds."),
    ] = None,
    costs: Annotated[
        Path | None, typer.Option(help="A file of `tenor bench stages`; unset: the shipped measurements.")
    ] = None,
    turns: Annotated[
        int, typer.Option(min=100, help="Approximate number of simulated turns; more are more accurate.")
    ] = 5000,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the random numbers.")] = 0,
    output: Output = Format.table,
) -> None:
    """Predict how a fleet of workers performs, from measured costs.

    The numbers of threads and the batch limits are those of the settings (TENOR_WORKER_INTERACTIVE_THREADS and others).
    """
    from benchmarks.capacity import simulation
    from benchmarks.capacity.costs import SHIPPED, Costs
    from benchmarks.capacity.tables import outcome_tables

    with exit_on_error():
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
        print_json(outcome)
    else:
        for table in outcome_tables(outcome, measured):
            print_table(table)
