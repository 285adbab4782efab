"""The simulation obeys the laws of queueing theory, and its closed forms where the fleet is simple enough."""

import json
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as trying
from hypothesis import strategies as st
from typer.testing import CliRunner

from benchmarks.capacity import simulation
from benchmarks.capacity.costs import SHIPPED, Costs, Size, StageCost, Traffic, stage_names
from benchmarks.capacity.simulation import CELL, Demand, Outcome, simulate, smallest_fleet
from services.cli.main import app
from shared.domain.job import Lane
from shared.errors import InvalidRequest, SetupError
from shared.settings import Batches, BatchLimits, Settings, WorkerSettings

TRAFFIC = dict.fromkeys(Traffic.model_fields, 1.0)
CALM = Demand(conversations=1, every_s=10)


def costs(cores: int = 1, **stages: StageCost) -> Costs:
    """The costs of a worker whose other stages take no time."""
    path = Costs.load().path
    own = {name: stages.get(name, StageCost()) for name in stage_names(path)}
    traffic = Traffic.model_validate(TRAFFIC)
    words = {"measured_on": "paper", "measured_at": "2026-01-01", "command": "none", "bundle": "none"}
    return Costs(cores=cores, path=path, stages=own, per_turn=traffic, idle=traffic, **words)


def batches(**limits: float) -> Batches:
    limit = BatchLimits.model_validate({"budget": 1e9, "wait_s": 0, "bulk_s": 1e9, **limits})
    return Batches(transcribe=limit, text=limit, speech=limit, fuse=limit)


def threads(interactive: int, bulk: int = 0, **limits: float) -> Settings:
    return Settings(
        batches=batches(**limits), worker=WorkerSettings(interactive_threads=interactive, bulk_threads=bulk)
    )


LIKE_A_WORKER = costs(
    2,
    decode=StageCost(per_second_s=0.001),
    vad=StageCost(per_second_s=0.002),
    transcribe=StageCost(fixed_s=0.03, per_item_s=0.02, per_second_s=0.01, share=1.5, size=Size(fixed=3, per_second=1)),
    text=StageCost(fixed_s=0.01, per_item_s=0.01, size=Size(fixed=16, per_second=4)),
    speech=StageCost(fixed_s=0.01, per_second_s=0.01, size=Size(fixed=1, per_second=1)),
    fuse=StageCost(fixed_s=0.005, per_item_s=0.003, size=Size(fixed=16, per_second=50)),
    store=StageCost(uses="interpreter", fixed_s=0.01, share=0.5),
)


@pytest.mark.slow
@pytest.mark.parametrize("spread", [0.0, 0.5, 1.0])
def test_one_thread_follows_the_pollaczek_khinchine_formula(spread: float) -> None:
    load = 0.7
    demand = Demand(conversations=7, every_s=10, spoken_s=1, spread=spread)
    one = simulate(demand, 1, costs(decode=StageCost(per_second_s=1)), threads(1), turns=15_000)
    expected = load + load**2 * (1 + spread**2) / (2 * (1 - load))
    assert one.lanes[Lane.interactive].in_system == pytest.approx(expected, rel=0.2)


@pytest.mark.slow
@pytest.mark.parametrize("spread", [0.0, 1.0])
def test_many_threads_on_one_core_follow_the_processor_sharing_formula(spread: float) -> None:
    # The mean number in an M/G/1 queue with processor sharing (Kleinrock 1976): load / (1 - load).
    demand = Demand(conversations=7, every_s=10, spoken_s=1, spread=spread)
    shared = simulate(demand, 1, costs(decode=StageCost(per_second_s=1)), threads(200), turns=15_000)
    assert shared.lanes[Lane.interactive].in_system == pytest.approx(0.7 / 0.3, rel=0.2)


def test_two_cores_run_two_turns_at_full_speed() -> None:
    both = costs(2, decode=StageCost(fixed_s=1))
    work = {workers: simulate(Demand(backlog=10_000), 1, both, threads(1, workers), turns=500) for workers in (1, 2, 4)}
    assert [round(work[bulk].turns_per_s, 1) for bulk in (1, 2, 4)] == [1, 2, 2]


@pytest.mark.slow
@pytest.mark.parametrize("items", [1, 4, 16])
def test_a_saturated_stage_runs_full_batches(items: int) -> None:
    cost = StageCost(fixed_s=0.1, per_item_s=0.01, size=Size())
    demand = Demand(backlog=100_000, spread=0)
    full = simulate(demand, 1, costs(transcribe=cost), threads(1, 16, items=items, wait_s=0.001), turns=1000)
    assert full.turns_per_s == pytest.approx(items / cost.seconds(items, 4), rel=0.05)
    assert full.stages["transcribe"].mean_batch == pytest.approx(items, rel=0.05)
    assert full.busy["cpu"] == pytest.approx(1, abs=0.02)


demands = st.builds(
    Demand,
    conversations=st.integers(1, 200),
    every_s=st.floats(2, 40),
    spoken_s=st.floats(0.5, 10),
    spread=st.floats(0, 1.5),
    bulk_per_s=st.floats(0, 5),
    backlog=st.integers(0, 500),
)
tried = trying(deadline=None, max_examples=8)


@given(demands, st.integers(1, 4), st.integers(0, 5))
@tried
def test_every_turn_that_arrived_is_done_or_left(demand: Demand, workers: int, seed: int) -> None:
    outcome = simulate(demand, workers, LIKE_A_WORKER, Settings(), turns=300, seed=seed)
    for lane in outcome.lanes.values():
        assert lane.arrived == lane.done + lane.left


@given(demands.map(lambda demand: demand.model_copy(update={"backlog": 0, "bulk_per_s": 0})), st.integers(1, 4))
@tried
def test_the_mean_latency_follows_littles_law(demand: Demand, workers: int) -> None:
    lane = simulate(demand, workers, LIKE_A_WORKER, Settings(), turns=500).lanes[Lane.interactive]
    if lane.stable and lane.in_system > 0.2 and lane.latency.p50 is not None and lane.latency.p95 is not None:
        mean_s = lane.in_system / lane.per_s
        assert 0.3 * lane.latency.p50 <= mean_s <= max(1.5 * lane.latency.p95, 3 * lane.latency.p50)


@given(demands.map(lambda demand: demand.model_copy(update={"backlog": 0})), st.integers(1, 4))
@tried
def test_the_load_is_the_rate_times_the_cost(demand: Demand, workers: int) -> None:
    cost = StageCost(fixed_s=0.05, share=0.7)
    outcome = simulate(demand, workers, costs(2, decode=cost), Settings(), turns=500)
    assert outcome.busy["cpu"] == pytest.approx(outcome.turns_per_s * 0.05 * 0.7 / (2 * workers), abs=0.02)
    assert outcome.busy["cpu"] == pytest.approx(sum(stage.busy for stage in outcome.stages.values()), abs=0.02)


@given(demands, st.integers(0, 3))
@trying(deadline=None, max_examples=5)
def test_the_same_seed_gives_the_same_outcome(demand: Demand, seed: int) -> None:
    first, second = (simulate(demand, 2, LIKE_A_WORKER, Settings(), turns=200, seed=seed) for _ in range(2))
    assert first == second


def test_another_seed_gives_another_outcome() -> None:
    demand = Demand(conversations=20)
    first, other = (simulate(demand, 2, LIKE_A_WORKER, Settings(), turns=200, seed=seed) for seed in (0, 1))
    assert first != other


def interactive_p95(outcome: Outcome) -> float:
    p95 = outcome.lanes[Lane.interactive].latency.p95
    assert p95 is not None
    return p95


@pytest.mark.slow
def test_a_full_bulk_lane_hardly_delays_interactive_turns() -> None:
    demand = Demand(conversations=10)
    alone = simulate(demand, 1, LIKE_A_WORKER, Settings(), turns=1000)
    beside = simulate(demand.model_copy(update={"backlog": 10**6}), 1, LIKE_A_WORKER, Settings(), turns=6000)
    assert interactive_p95(beside) < 2.5 * interactive_p95(alone)
    assert beside.lanes[Lane.bulk].per_s > 2
    assert beside.busy["cpu"] > 0.9


@pytest.mark.slow
def test_bulk_turns_progress_even_when_interactive_turns_overload_the_worker() -> None:
    outcome = simulate(Demand(conversations=2000, backlog=1000), 1, LIKE_A_WORKER, Settings(), turns=2000)
    assert not outcome.stable
    assert outcome.lanes[Lane.interactive].growth_per_s == pytest.approx(
        100 - outcome.lanes[Lane.interactive].per_s, rel=0.1
    )
    assert outcome.lanes[Lane.bulk].per_s > 0.1


@pytest.mark.slow
def test_the_smallest_fleet_is_enough_and_one_worker_fewer_is_not() -> None:
    demand = Demand(conversations=400)
    found = smallest_fleet(demand, 1.0, LIKE_A_WORKER, Settings(), turns=1500)
    fewer = simulate(demand, found.workers - 1, LIKE_A_WORKER, Settings(), turns=1500)
    assert found.workers > 1
    assert interactive_p95(found) <= 1.0 < interactive_p95(fewer)


def test_an_impossible_demand_is_refused_with_the_reason() -> None:
    with pytest.raises(InvalidRequest, match=r"within 0\.01 s"):
        smallest_fleet(CALM, 0.01, LIKE_A_WORKER, Settings(), turns=100)
    with pytest.raises(InvalidRequest, match="--conversations"):
        smallest_fleet(Demand(backlog=5), 1, LIKE_A_WORKER, Settings())
    with pytest.raises(InvalidRequest, match="nothing to do"):
        simulate(Demand(), 1, LIKE_A_WORKER, Settings())


@pytest.mark.slow
def test_a_hundred_thousand_conversations_are_simulated_in_part() -> None:
    outcome = simulate(Demand(conversations=100_000), 1600, LIKE_A_WORKER, Settings(), turns=2000)
    assert outcome.simulated == CELL
    assert outcome.lanes[Lane.interactive].arrived * CELL / 1600 == pytest.approx(2000, rel=0.1)
    assert outcome.turns_per_s == pytest.approx(5000, rel=0.1)


@pytest.mark.slow
def test_a_partly_simulated_fleet_has_no_shorter_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    demand = Demand(conversations=64 * 70)
    part = simulate(demand, 64, LIKE_A_WORKER, Settings(), turns=1500)
    monkeypatch.setattr(simulation, "CELL", 64)
    whole = simulate(demand, 64, LIKE_A_WORKER, Settings(), turns=6000)
    assert (part.simulated, whole.simulated) == (16, 64)
    assert interactive_p95(part) > 0.9 * interactive_p95(whole)


def test_traffic_grows_with_the_turns_and_with_the_workers() -> None:
    outcome = simulate(CALM, 3, LIKE_A_WORKER, Settings(), turns=300)
    assert outcome.traffic.wal_bytes == pytest.approx(3 + outcome.turns_per_s)


def test_the_shipped_costs_name_their_command_and_survive_a_round_trip(tmp_path: Path) -> None:
    shipped = Costs.load()
    assert "tenor bench stages" in shipped.command
    shipped.save(tmp_path / "costs.yaml")
    assert Costs.load(tmp_path / "costs.yaml") == shipped
    (tmp_path / "costs.json").write_text(shipped.model_dump_json())
    assert Costs.load(tmp_path / "costs.json") == shipped


def test_an_invalid_costs_file_is_refused_with_the_reason(tmp_path: Path) -> None:
    file = tmp_path / "costs.yaml"
    with pytest.raises(SetupError, match=r"costs\.yaml"):
        Costs.load(file)
    stored = Costs.load(SHIPPED).model_dump(mode="json")
    file.write_text(json.dumps(stored | {"stages": {}}))
    with pytest.raises(SetupError, match="decode, vad, speech, transcribe"):
        Costs.load(file)
    file.write_text(json.dumps(stored | {"stages": stored["stages"] | {"vad": {"size": {"fixed": 1}}}}))
    with pytest.raises(SetupError, match="vad should have no size"):
        Costs.load(file)


def test_the_scaling_page_shows_the_shipped_costs() -> None:
    docs = Path(__file__).parents[2] / "docs"
    spec = spec_from_file_location("make_scaling", docs / "make_scaling.py")
    assert spec is not None
    assert spec.loader is not None
    scaling = module_from_spec(spec)
    spec.loader.exec_module(scaling)
    blocks = {make.__name__: make(Costs.load()) for make in scaling.MEASURED}
    page = (docs / "scaling.md").read_text()
    assert scaling.replace_blocks(page, blocks) == page, (
        "the costs are newer than the page: python docs/make_scaling.py"
    )


def test_the_command_prints_json_and_tables() -> None:
    asked = ["simulate", "--conversations", "10", "--backlog", "5", "--turns", "200", "--workers", "2"]
    told = CliRunner().invoke(app, [*asked, "--format", "json"])
    assert told.exit_code == 0, told.output
    outcome = Outcome.model_validate_json(told.stdout)
    assert outcome.workers == 2
    shown = CliRunner().invoke(app, asked)
    assert all(word in shown.stdout for word in ("latency, p95", "interactive", "bulk", "transcribe", "wal bytes"))


def test_the_command_finds_the_smallest_fleet_and_reports_errors() -> None:
    slow = CliRunner().invoke(app, ["simulate", "--conversations", "9", "--target-p95", "60", "--format", "json"])
    assert json.loads(slow.stdout)["workers"] >= 1
    none = CliRunner().invoke(app, ["simulate", "--costs", "nowhere.yaml"])
    assert none.exit_code == 78
    assert CliRunner().invoke(app, ["simulate"]).exit_code == 1
