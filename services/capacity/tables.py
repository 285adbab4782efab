"""What `tenor simulate` shows a person."""

from collections.abc import Iterator

from rich.table import Table

from services.capacity.costs import Costs
from services.capacity.simulation import LaneOutcome, Outcome


def outcome_tables(outcome: Outcome, costs: Costs) -> Iterator[Table]:
    """The lanes, the stages, and what all of it does to Postgres and Redis."""
    yield _lanes(outcome, costs)
    yield _stages(outcome)
    yield _traffic(outcome)


def _lanes(outcome: Outcome, costs: Costs) -> Table:
    followed = "" if outcome.simulated == outcome.workers else f", of which {outcome.simulated} were followed"
    table = Table(
        "lane",
        "turns/s",
        "wait p50",
        "p95",
        "p99",
        "latency p50",
        "p95",
        "p99",
        "backlog",
        title=f"{outcome.workers} workers{followed}: {outcome.turns_per_s:.3g} turns/s",
        caption=f"costs of {costs.bundle} on {costs.measured_on} ({costs.measured_at}); {outcome.seconds:.0f} s",
    )
    for name, lane in outcome.lanes.items():
        if lane.arrived:
            times = [*lane.wait.model_dump().values(), *lane.latency.model_dump().values()]
            table.add_row(name, f"{lane.per_s:.3g}", *map(_seconds, times), _backlog(lane))
    return table


def _stages(outcome: Outcome) -> Table:
    table = Table("stage", "runs on", "keeps it busy", "turns a batch")
    for name, stage in outcome.stages.items():
        table.add_row(name, stage.uses, f"{stage.busy:.1%}", f"{stage.mean_batch:.1f}")
    for name, busy in outcome.busy.items():
        if busy:
            table.add_row("all", name, f"{busy:.1%}", "")
    return table


def _traffic(outcome: Outcome) -> Table:
    table = Table("in a second", "so many")
    for name, value in outcome.traffic.model_dump().items():
        table.add_row(name.replace("_cpu_s", ", busy cores").replace("_", " "), f"{value:,.3g}")
    return table


def _seconds(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds:.3g} s"


def _backlog(lane: LaneOutcome) -> str:
    return f"{lane.left:,}, " + ("stable" if lane.stable else f"grows by {lane.growth_per_s:.3g}/s")
