"""`tenor bench stages`: everything that a turn costs, measured here and now."""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from services.capacity.costs import Costs
from services.capacity.stages import machine, measure_stages
from services.capacity.traffic import count_traffic
from shared.modeling.pipeline import load_pipeline
from shared.settings import Settings


def measure(settings: Settings, files: Sequence[Path], rounds: int, turns: int, command: str) -> Costs:
    """The costs of a turn of these files on this machine.

    Args:
        rounds: how often each batch is run.
        turns: of which is counted what they make the database, the queue and the processes do.
        command: by which it can be measured again.

    Raises:
        SetupError: the models cannot be loaded.
        AudioError: a file is no recording.
    """
    pipeline = load_pipeline(settings)
    pipeline.warm_up()
    stages = measure_stages(settings, pipeline, files, rounds)
    per_turn, idle = count_traffic(settings, files, turns)
    measured_on, cores = machine(settings)
    return Costs(
        measured_on=measured_on,
        measured_at=f"{datetime.now(UTC):%Y-%m-%d}",
        command=command,
        bundle=pipeline.bundle.name,
        cores=cores,
        stages=stages,
        per_turn=per_turn,
        idle=idle,
    )
