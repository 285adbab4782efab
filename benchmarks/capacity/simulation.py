"""A discrete-event simulation of a fleet of workers: its turns, lanes, threads and batches.

Batches are formed by the workers' own scheduler (`workers.batch_scheduler`), and the time of a stage is the measured
one. The simulation is simpler than a real fleet. All but the last three simplifications make the simulated waits
longer:

- Turns arrive at random (Poisson), as the turns of many independent conversations do.
- At most `CELL` workers are simulated, with their share of the turns. They share one queue; with more workers a wait
  would be shorter.
- A stage that uses a GPU uses all of it.
- Lengths of turns are log-normal. No turn fails, and none waits for an earlier turn of its session.
- The database and the broker answer as fast as they did when the costs were measured.
- Any number of turns may wait for a stage. A real worker admits a limited number, and the others wait in the queue.
"""

import math
from collections.abc import Sequence

import numpy as np
import simpy
from pydantic import BaseModel, ConfigDict, Field

from benchmarks.capacity.costs import Costs, Traffic
from benchmarks.capacity.simulated_worker import (
    LaneQueue,
    Process,
    SimulatedTurn,
    SimulatedWorker,
    StageTally,
    worker_capacity,
)
from shared.domain.job import TURN_LANES, Lane
from shared.errors import InvalidRequest
from shared.settings import Settings

CELL = 16
"""The largest number of workers that are simulated."""
WARM_UP = 0.2
"""The share of the simulated time that is not counted, because the fleet starts empty."""
SIGNIFICANT_DEVIATIONS = 3.0
"""The growth of a backlog is significant above this many standard deviations of a Poisson number."""


class Demand(BaseModel):
    """The turns that arrive.

    Attributes:
        conversations: in progress at the same time.
        every_s: mean seconds between two turns of a conversation.
        spoken_s: mean seconds of a turn's audio.
        spread: standard deviation of these lengths, divided by their mean.
        bulk_per_s: bulk turns that arrive per second.
        backlog: bulk turns that wait at the start.
    """

    model_config = ConfigDict(frozen=True)

    conversations: int = Field(default=0, ge=0)
    every_s: float = Field(default=20, gt=0)
    spoken_s: float = Field(default=4, gt=0)
    spread: float = Field(default=0.5, ge=0)
    bulk_per_s: float = Field(default=0, ge=0)
    backlog: int = Field(default=0, ge=0)

    @property
    def per_s(self) -> dict[Lane, float]:
        """Turns of each lane that arrive per second."""
        return {Lane.interactive: self.conversations / self.every_s, Lane.bulk: self.bulk_per_s}

    def scaled(self, share: float) -> "Demand":
        """Return the demand on a part of the fleet."""
        # It has longer times between turns, since the number of conversations is an integer.
        every_s, bulk_per_s = self.every_s / share, self.bulk_per_s * share
        return self.model_copy(
            update={"every_s": every_s, "bulk_per_s": bulk_per_s, "backlog": math.ceil(self.backlog * share)}
        )


class Percentiles(BaseModel):
    """Percentiles of times in seconds; None where no turn arrived."""

    p50: float | None
    p95: float | None
    p99: float | None

    @classmethod
    def of(cls, seconds: Sequence[float]) -> "Percentiles":
        if not seconds:
            return cls(p50=None, p95=None, p99=None)
        p50, p95, p99 = (float(value) for value in np.percentile(seconds, (50, 95, 99)))
        return cls(p50=p50, p95=p95, p99=p99)


class LaneOutcome(BaseModel):
    """The turns of a lane in the whole fleet.

    Rates, means and percentiles exclude the warm-up. A turn of the backlog counts in `in_system`, `wait` and `latency`
    only from the moment when a worker takes it.

    Attributes:
        arrived: turns since the start, the backlog included.
        done: turns that were finished.
        left: turns that wait or are in progress at the end.
        per_s: turns finished per second.
        in_system: mean number of turns that wait or are in progress.
        wait: from arrival until a worker takes the turn. A turn that still waits counts with its time so far.
        latency: from arrival until the result is stored. A turn in progress counts with its time so far.
        growth_per_s: arriving turns minus finished turns, per second.
        stable: whether that growth is within random.
    """

    arrived: int
    done: int
    left: int
    per_s: float
    in_system: float
    wait: Percentiles
    latency: Percentiles
    growth_per_s: float
    stable: bool


class StageOutcome(BaseModel):
    """A stage in the whole fleet.

    Attributes:
        uses: the resource on which it runs: cpu, gpu or interpreter.
        busy: the share of the fleet's resource that it used.
        mean_batch: mean number of turns in a batch.
    """

    uses: str
    busy: float
    mean_batch: float


class Outcome(BaseModel):
    """The result of a simulation.

    Attributes:
        simulated: workers that were simulated; the numbers of the fleet are theirs, scaled up.
        seconds: simulated time.
        busy: the share of the fleet's cores, GPUs and interpreters that was in use after the warm-up.
        traffic: of the whole fleet, per second.
    """

    workers: int
    simulated: int
    seconds: float
    turns_per_s: float
    lanes: dict[Lane, LaneOutcome]
    stages: dict[str, StageOutcome]
    busy: dict[str, float]
    traffic: Traffic

    @property
    def stable(self) -> bool:
        """Whether the interactive lane keeps up with its turns."""
        return self.lanes[Lane.interactive].stable


def simulate(
    demand: Demand, workers: int, costs: Costs, settings: Settings, turns: int = 5000, seed: int = 0
) -> Outcome:
    """Simulate a fleet.

    Args:
        demand: the turns that arrive.
        workers: worker processes, each with a device of its own.
        costs: of a turn.
        settings: the number of threads and the batch limits of a worker.
        turns: approximate number of simulated turns; more of them make the high percentiles more accurate.
        seed: of the random numbers; the same seed gives the same outcome.

    Raises:
        InvalidRequest: the demand is empty.
    """
    if not (demand.conversations or demand.bulk_per_s or demand.backlog):
        raise InvalidRequest("there is nothing to do: give --conversations, --bulk or --backlog")
    simulated = min(workers, CELL)
    demand = demand.scaled(simulated / workers)
    cell = _Cell(demand, simulated, costs, settings, np.random.default_rng(seed))
    at_work = simulated / _idle_latency(costs, demand) if demand.backlog else 0.0
    seconds = turns / (sum(demand.per_s.values()) + at_work)
    cell.run(seconds)
    return cell.outcome(workers, seconds)


def smallest_fleet(
    demand: Demand, target_s: float, costs: Costs, settings: Settings, turns: int = 5000, seed: int = 0
) -> Outcome:
    """Simulate the smallest fleet whose 95th percentile of the interactive latency is at most `target_s` seconds.

    Raises:
        InvalidRequest: there is no interactive turn, or no number of workers is enough.
    """
    if not demand.conversations:
        raise InvalidRequest("the smallest fleet is that for interactive turns: give --conversations")

    def simulate_if_enough(workers: int) -> Outcome | None:
        outcome = simulate(demand, workers, costs, settings, turns, seed)
        p95 = outcome.lanes[Lane.interactive].latency.p95
        return outcome if outcome.stable and p95 is not None and p95 <= target_s else None

    # With a worker for each conversation, more workers make no turn faster.
    enough, too_few = 1, 0
    while (found := simulate_if_enough(enough)) is None:
        if enough >= demand.conversations:
            raise InvalidRequest(f"no number of workers does 95 of 100 turns within {target_s:g} s")
        enough, too_few = min(2 * enough, demand.conversations), enough
    while enough - too_few > 1:
        middle = (enough + too_few) // 2
        if (fewer := simulate_if_enough(middle)) is None:
            too_few = middle
        else:
            enough, found = middle, fewer
    return found


def _idle_latency(costs: Costs, demand: Demand) -> float:
    """Return the seconds of a turn of mean length on an idle worker."""
    return sum(cost.seconds(1, demand.spoken_s) for cost in costs.stages.values())


class _Cell:
    """A simulation of some workers and their turns; it runs once."""

    def __init__(
        self, demand: Demand, workers: int, costs: Costs, settings: Settings, random: np.random.Generator
    ) -> None:
        self._env = simpy.Environment()
        self._demand = demand
        self._costs = costs
        self._turns: dict[Lane, list[SimulatedTurn]] = {lane: [] for lane in TURN_LANES}
        self._tallies = {name: StageTally() for name in costs.stages}
        self._workers = [SimulatedWorker(self._env, costs, settings, self._tallies) for _ in range(workers)]
        generators = dict(zip(TURN_LANES, random.spawn(len(TURN_LANES)), strict=True))
        backlogs = {Lane.interactive: 0, Lane.bulk: demand.backlog}
        self._queues = {
            lane: LaneQueue(self._env, backlogs[lane], lambda lane=lane: self._turn(lane, generators[lane], 0.0))
            for lane in TURN_LANES
        }
        for lane in TURN_LANES:
            self._env.process(self._arrivals(lane, generators[lane]))
        self._start({Lane.interactive: settings.worker.interactive_threads, Lane.bulk: settings.worker.bulk_threads})

    def run(self, seconds: float) -> None:
        self._warm_until = WARM_UP * seconds
        self._env.run(until=self._warm_until)
        self._before = self._work_done()
        self._env.run(until=seconds)

    def outcome(self, workers: int, seconds: float) -> Outcome:
        """Return the outcome of a fleet of `workers` workers, of which the simulated ones are a part."""
        scale = workers / len(self._workers)
        lanes = {lane: self._lane(lane, seconds, scale) for lane in TURN_LANES}
        turns_per_s = sum(lane.per_s for lane in lanes.values())
        used = {name: now - self._before[name] for name, now in self._work_done().items()}
        window = (seconds - self._warm_until) * len(self._workers)
        capacity = {name: size * window for name, size in worker_capacity(self._costs).items()}
        return Outcome(
            workers=workers,
            simulated=len(self._workers),
            seconds=seconds,
            turns_per_s=turns_per_s,
            lanes=lanes,
            stages={name: self._stage(name, used[name], capacity) for name in self._costs.stages},
            busy={name: used[name] / size for name, size in capacity.items()},
            traffic=self._costs.traffic(turns_per_s, workers),
        )

    def _stage(self, name: str, used: float, capacity: dict[str, float]) -> StageOutcome:
        uses = self._costs.stages[name].uses
        return StageOutcome(uses=uses, busy=used / capacity[uses], mean_batch=self._tallies[name].mean_batch)

    def _start(self, threads: dict[Lane, int]) -> None:
        """Start all threads, one of each worker in turn, so that the first turns are spread over the workers."""
        for lane, number in threads.items():
            for _ in range(number):
                for worker in self._workers:
                    self._env.process(worker.thread(self._queues[lane]))

    def _arrivals(self, lane: Lane, random: np.random.Generator) -> Process:
        while per_s := self._demand.per_s[lane]:
            yield self._env.timeout(random.exponential(1 / per_s))
            self._queues[lane].put(self._turn(lane, random, self._env.now))

    def _turn(self, lane: Lane, random: np.random.Generator, arrived: float) -> SimulatedTurn:
        sigma = math.sqrt(math.log1p(self._demand.spread**2))
        seconds = self._demand.spoken_s * math.exp(sigma * random.standard_normal() - sigma**2 / 2)
        turn = SimulatedTurn(lane, seconds, arrived)
        self._turns[lane].append(turn)
        return turn

    def _work_done(self) -> dict[str, float]:
        """Return the seconds of work done so far on each resource and in each stage."""
        work = {name: tally.work_s for name, tally in self._tallies.items()}
        for name in worker_capacity(self._costs):
            for worker in self._workers:
                worker.resources[name].advance()
            work[name] = sum(worker.resources[name].busy_s for worker in self._workers)
        return work

    def _lane(self, lane: Lane, end: float, scale: float) -> LaneOutcome:
        warm, window = self._warm_until, end - self._warm_until
        turns, backlog = self._turns[lane], self._queues[lane].backlog
        counted = [turn for turn in turns if turn.done > warm]
        arrived = sum(turn.arrived > warm for turn in turns)
        finished = sum(warm < turn.done < math.inf for turn in turns)
        done = sum(turn.done < math.inf for turn in turns)
        in_progress = sum(turn.taken < math.inf and turn.done == math.inf for turn in turns)
        present = sum(min(turn.done, end) - max(turn.arrived, warm) for turn in counted)
        return LaneOutcome(
            arrived=round(scale * (len(turns) + backlog)),
            done=round(scale * done),
            left=round(scale * (len(self._queues[lane]) + in_progress)),
            per_s=scale * finished / window,
            in_system=scale * present / window,
            wait=Percentiles.of([min(turn.taken, end) - turn.arrived for turn in counted]),
            latency=Percentiles.of([min(turn.done, end) - turn.arrived for turn in counted]),
            growth_per_s=scale * (arrived - finished) / window,
            stable=arrived - finished <= SIGNIFICANT_DEVIATIONS * math.sqrt(max(arrived, 1)),
        )
