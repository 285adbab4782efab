"""Writes the numbers of docs/scaling.md and draws docs/scaling.svg, from the shipped costs.

`make scaling` measures the costs again and runs this script from the repository's root.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from benchmarks.capacity.costs import Costs, StageCost
from benchmarks.capacity.simulation import Demand, Outcome, simulate, smallest_fleet
from shared.domain.job import Lane
from shared.settings import Settings

DOCS = Path(__file__).parent
TARGET_S = 2.0
EVERY_S = 20.0
SPOKEN_S = 4.0
DAY_S = 86_400
GPU_THREADS = 64

SETTINGS = Settings(_env_file=None)  # pyright: ignore[reportCallIssue] - pydantic's own argument
SERVER_CAPACITY = {
    "transactions": 10_000.0,
    "wal_bytes": 200e6,
    "postgres_cpu_s": 8.0,
    "redis_cpu_s": 1.0,
    "api_cpu_s": 1.0,
}
"""The load per second that one server is assumed to bear; not measured on any machine."""


def table(head: Sequence[str], rows: Iterator[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def machine(costs: Costs) -> str:
    """Return the sentence on the machine."""
    return f"Measured on {costs.measured_on}, {costs.measured_at}, with the bundle `{costs.bundle}`."


def stages(costs: Costs) -> str:
    """Return the table of the costs of the stages."""

    def rows() -> Iterator[Sequence[str]]:
        for name, cost in costs.stages.items():
            each = [cost.seconds(items, SPOKEN_S) / items * 1000 for items in (1, 16)]
            sixteen = f"{each[1]:.3g}" if cost.size else ""
            line = [cost.fixed_s, cost.per_item_s, cost.per_second_s]
            yield [
                name,
                cost.uses,
                f"{cost.share:g}",
                *(f"{1000 * part:.3g}" for part in line),
                f"{each[0]:.3g}",
                sixteen,
            ]

    head = [
        "stage",
        "uses",
        "cores",
        "fixed, ms",
        "turn, ms",
        "second, ms",
        "a turn of 4 s, ms",
        "in a batch of 16, ms",
    ]
    return table(head, rows())


def traffic(costs: Costs) -> str:
    """Return the table of the traffic of a turn and of an idle second."""

    def rows() -> Iterator[Sequence[str]]:
        idle = costs.idle.model_dump()
        for name, value in costs.per_turn.model_dump().items():
            yield [_label(name), f"{value:,.3g}", f"{idle[name]:,.3g}"]

    return table(["what", "per turn", "per idle second"], rows())


def device(costs: Costs) -> str:
    """Return the table of one worker, by arithmetic and by simulation."""
    cores = {items: _core_seconds(costs, items) for items in (1, 16)}
    full = simulate(Demand(backlog=10**6), 1, costs, SETTINGS)
    calm = simulate(Demand(conversations=1), 1, costs, SETTINGS, turns=2000)
    measured = costs.per_turn.worker_cpu_s
    rows = [
        ["core-seconds per turn of 4 s, one at a time", f"{cores[1]:.3g}"],
        ["the same, in batches of 16", f"{cores[16]:.3g}"],
        ["core-seconds per turn, counted on a run, with all other work of the worker", f"{measured:.3g}"],
        [f"turns/s on {costs.cores} cores, one at a time", f"{costs.cores / cores[1]:.3g}"],
        [f"turns/s on {costs.cores} cores, in batches of 16", f"{costs.cores / cores[16]:.3g}"],
        ["turns/s with bulk turns only: `tenor simulate --backlog 1000000`", f"{full.turns_per_s:.3g}"],
        ["latency of one conversation, p50 and p95: `tenor simulate --conversations 1 --turns 2000`", _latency(calm)],
    ]
    return table(["one worker", "figure"], iter(rows))


def fleets(costs: Costs) -> str:
    """Return the table of the smallest fleets for some numbers of conversations."""

    def rows() -> Iterator[Sequence[str]]:
        for conversations in (10, 1000, 100_000):
            found = smallest_fleet(_demand(conversations), TARGET_S, costs, SETTINGS)
            load, connections = found.traffic, found.workers * _connections()
            growth = load.table_bytes + load.index_bytes
            yield [
                f"{conversations:,}",
                f"{conversations / EVERY_S:,.3g}",
                f"{found.workers:,}",
                f"{found.busy['cpu']:.0%}",
                _latency(found),
                f"{load.transactions:,.0f}",
                f"{load.wal_bytes / 1e6:,.3g}",
                f"{growth * DAY_S / 1e9:,.3g}",
                f"{connections:,}",
                f"{load.redis_commands:,.0f}",
                f"`tenor simulate --conversations {conversations} --target-p95 {TARGET_S:g}`",
            ]

    head = [
        "conversations",
        "turns/s",
        "workers",
        "CPU load",
        "latency p50, p95",
        "transactions/s",
        "WAL, MB/s",
    ]
    return table([*head, "growth, GB per day", "connections", "Redis commands/s", "command"], rows())


def ceilings(costs: Costs) -> str:
    """Return the table of the turns per second that one database and one broker bear."""

    def rows() -> Iterator[Sequence[str]]:
        per_turn = costs.per_turn.model_dump()
        for name, room in SERVER_CAPACITY.items():
            turns_per_s = room / per_turn[name] if per_turn[name] else float("inf")
            yield [_label(name), f"{room:,.3g}", f"{turns_per_s:,.3g}", f"{turns_per_s * EVERY_S:,.3g}"]

    return table(["resource, per second", "one server bears", "turns/s", "conversations"], rows())


def gpus(costs: Costs) -> str:
    """Return the table of workers with an assumed GPU."""
    settings = SETTINGS.model_copy(update={"worker_threads": GPU_THREADS, "bulk_threads": GPU_THREADS})

    def rows() -> Iterator[Sequence[str]]:
        for times in (10, 30, 100):
            full = simulate(Demand(backlog=10**6), 1, _on_gpu(costs, times), settings)
            busy = [f"{full.busy[name]:.0%}" for name in ("gpu", "cpu", "interpreter")]
            yield [f"{times} times", f"{full.turns_per_s:.3g}", *busy]

    return table(["assumed speed of the models", "turns/s", "GPU busy", "cores busy", "interpreter busy"], rows())


def picture(costs: Costs) -> None:
    """Draw the 95th percentile of the latency over the conversations per worker, until the backlog grows."""
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    limit = simulate(Demand(backlog=10**6), 1, costs, SETTINGS).turns_per_s * EVERY_S
    loads = [max(1, round(limit * part / 20)) for part in range(1, 25)]
    for workers, colour in ((1, "#2b6cb0"), (16, "#c05621")):
        p95 = [_stable_p95(simulate(_demand(load * workers), workers, costs, SETTINGS)) for load in loads]
        axes.plot(loads, p95, marker=".", color=colour, label=f"{workers} worker{'s' * (workers > 1)}")
    axes.axhline(TARGET_S, color="#718096", linestyle="--", linewidth=1)
    axes.set(
        xlabel="conversations per worker, with a turn every 20 s", ylabel="latency, p95 (s)", ylim=(0, 3 * TARGET_S)
    )
    axes.legend()
    figure.savefig(DOCS / "scaling.svg", metadata={"Date": None})


def _demand(conversations: int) -> Demand:
    return Demand(conversations=conversations, every_s=EVERY_S, spoken_s=SPOKEN_S)


def _stable_p95(outcome: Outcome) -> float:
    lane = outcome.lanes[Lane.interactive]
    return lane.latency.p95 if lane.stable and lane.latency.p95 is not None else float("nan")


def _core_seconds(costs: Costs, items: int) -> float:
    """Return the core-seconds of a turn of `SPOKEN_S` seconds, with `items` turns in each batch."""
    sizes = {name: items if cost.size else 1 for name, cost in costs.stages.items()}
    return sum(cost.share * cost.seconds(sizes[name], SPOKEN_S) / sizes[name] for name, cost in costs.stages.items())


def _on_gpu(costs: Costs, times: float) -> Costs:
    """Return the costs with a GPU that runs the models `times` times as fast: an assumption, not a measurement."""

    def faster(cost: StageCost) -> StageCost:
        seconds = {"fixed_s": cost.fixed_s, "per_item_s": cost.per_item_s, "per_second_s": cost.per_second_s}
        quicker = {name: value / times for name, value in seconds.items()}
        return cost.model_copy(update={"uses": "gpu", "share": 1.0, **quicker}) if cost.size else cost

    return costs.model_copy(update={"stages": {name: faster(cost) for name, cost in costs.stages.items()}})


def _connections() -> int:
    """Return the database connections of one worker."""
    return SETTINGS.worker_connections


def _latency(outcome: Outcome) -> str:
    latency = outcome.lanes[Lane.interactive].latency
    return f"{latency.p50:.2f} s, {latency.p95:.2f} s"


def _label(name: str) -> str:
    words = {"wal_bytes": "WAL bytes", "redis_cpu_s": "Redis, core-seconds", "api_cpu_s": "API, core-seconds"}
    plain = name.replace("redis", "Redis").replace("postgres", "Postgres").replace("_cpu_s", ", core-seconds")
    return words.get(name, plain.replace("_", " "))


MEASURED = (machine, stages, traffic, ceilings)
SIMULATED = (device, fleets, gpus)


def replace_blocks(page: str, blocks: dict[str, str]) -> str:
    """Return the page with the text of each block between its two marks."""
    for name, block in blocks.items():
        head, mark, rest = page.partition(f"<!-- {name} -->\n")
        _, end, tail = rest.partition("<!-- end -->")
        assert end, f"docs/scaling.md should have the mark <!-- {name} -->, and <!-- end --> behind it"
        page = head + mark + block + "\n" + end + tail
    return page


if __name__ == "__main__":
    shipped = Costs.load()
    page = DOCS / "scaling.md"
    blocks = {make.__name__: make(shipped) for make in (*MEASURED, *SIMULATED)}
    page.write_text(replace_blocks(page.read_text(), blocks))
    picture(shipped)
