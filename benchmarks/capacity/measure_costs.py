"""`tenor bench stages`: measures the cost of a turn on this machine."""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.capacity.costs import Costs
from benchmarks.capacity.stage_costs import describe_machine, measure_stages
from benchmarks.capacity.traffic import measure_traffic
from shared.modeling.model_selection import load_pipeline
from shared.settings import Settings


def measure_costs(settings: Settings, files: Sequence[Path], rounds: int, turns: int, command: str) -> Costs:
    """Return the cost of a turn of these audio clips.

    Args:
        settings: of the worker.
        files: audio clips of a few seconds.
        rounds: how often each batch is run.
        turns: how many turns are sent to count the work of the database, the broker and the processes.
        command: the command that repeats the measurement.

    Raises:
        SetupError: the models cannot be loaded.
        AudioError: a file cannot be decoded.
    """
    pipeline = load_pipeline(settings)
    pipeline.warm_up()
    stages, path = measure_stages(settings, pipeline, files, rounds)
    per_turn, idle = measure_traffic(settings, files, turns)
    measured_on, cores = describe_machine(settings)
    return Costs(
        measured_on=measured_on,
        measured_at=f"{datetime.now(UTC):%Y-%m-%d}",
        command=command,
        bundle=pipeline.bundle.name,
        cores=cores,
        path=path,
        stages=stages,
        per_turn=per_turn,
        idle=idle,
    )
