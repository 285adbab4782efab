"""The tables of `tenor simulate`."""

from collections.abc import Iterator

from rich.table import Table

from benchmarks.capacity.costs import Costs
from benchmarks.capacity.simulation import LaneOutcome, Outcome


def outcome_tables(outcome: Outcome, costs: Costs) -> Iterator[Table]:
    """Yield tables of the lanes, of the stages, and of the traffic of Postgres and Redis."""
    yield _lanes(outcome, costs)
    yield _stages(outcome)
    yield _traffic(outcome)


def _lanes(outcome: Outcome, costs: Costs) -> Table:
    simulated = "" if outcome.simulated == outcome.workers else f" ({outcome.simulated} simulated)"
    table = Table(
        "",
        title=f"{outcome.workers} workers{simulated}: {outcome.turns_per_s:.3g} turns/s",
        caption=f"{outcome.seconds:.0f} s, at the costs of {costs.bundle} on {costs.measured_on}",
    )
    columns = [_column(lane) for lane in outcome.lanes.values() if lane.arrived]
    for name, lane in outcome.lanes.items():
        if lane.arrived:
            table.add_column(name)
    for name in columns[0]:
        table.add_row(name, *(column[name] for column in columns))
    return table


def _column(lane: LaneOutcome) -> dict[str, str]:
    times = {"wait": lane.wait, "latency": lane.latency}
    return {
        "turns/s": f"{lane.per_s:.3g}",
        **{f"{what}, {name}": _seconds(value) for what, some in times.items() for name, value in some},
        "left at the end": f"{lane.left:,}",
        "backlog": "stable" if lane.stable else f"grows by {lane.growth_per_s:.3g}/s",
    }


def _stages(outcome: Outcome) -> Table:
    table = Table("stage", "runs on", "load", "turns per batch")
    for name, stage in outcome.stages.items():
        table.add_row(name, stage.uses, f"{stage.busy:.1%}", f"{stage.mean_batch:.1f}")
    for name, busy in outcome.busy.items():
        if busy:
            table.add_row("all", name, f"{busy:.1%}", "")
    return table


def _traffic(outcome: Outcome) -> Table:
    table = Table("traffic", "per second")
    for name, value in outcome.traffic.model_dump().items():
        table.add_row(name.replace("_cpu_s", ", busy cores").replace("_", " "), f"{value:,.3g}")
    return table


def _seconds(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds:.3g} s"
