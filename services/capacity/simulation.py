"""How a fleet of workers will do: its turns, lanes, threads and batches, event by event.

Batches are made by the workers' own rules (`workers.batch_scheduler`), and what a stage takes is what was measured.
These things are simpler than life, and all but the last three make the foretold waits longer rather than shorter:

- Turns come at random (Poisson), as those of many conversations that know nothing of one another do.
- A fleet of more than `CELL` workers is reckoned as that many, with their part of the turns. They share one queue, and
  among more of them a wait would be shorter.
- A stage that needs a GPU needs all of it.
- Lengths of turns are log-normal. What fails, or waits for an earlier turn of its session, does not occur.
- The database and the queue answer as fast as they did when the costs were measured.
- Any number of turns may wait before a stage. A worker lets only so many in, and the others wait before the line.
"""

import math
from collections.abc import Sequence

import numpy as np
import simpy
from pydantic import BaseModel, ConfigDict, Field

from services.capacity.costs import Costs, Traffic
from services.capacity.worker import Process, Queue, Tally, Turn, Worker, capacities
from shared.domain.job import TURN_LANES, Lane
from shared.errors import InvalidRequest
from shared.settings import Settings

CELL = 16
"""So many workers at most are followed one by one."""
WARM_UP = 0.2
"""This part of the time is not counted, as the fleet begins with nothing in hand."""
CHANCE = 3.0
"""Standard deviations of a Poisson number within which a backlog's growth counts as chance."""


class Demand(BaseModel):
    """The turns that come.

    Attributes:
        every_s: between two turns of a conversation, on average.
        spoken_s: mean length of a turn.
        spread: standard deviation of the lengths over their mean.
        bulk_per_s: bulk turns that come in a second.
        backlog: bulk turns that wait at the beginning.
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
        """Turns of each lane that come in a second."""
        return {Lane.interactive: self.conversations / self.every_s, Lane.bulk: self.bulk_per_s}

    def part(self, share: float) -> "Demand":
        """That of a part of the fleet."""
        # By the time between turns, since conversations are whole.
        every_s, bulk_per_s = self.every_s / share, self.bulk_per_s * share
        return self.model_copy(
            update={"every_s": every_s, "bulk_per_s": bulk_per_s, "backlog": math.ceil(self.backlog * share)}
        )


class Percentiles(BaseModel):
    """Of times in seconds; None where nothing came to have one."""

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
    """What became of a lane, in the whole fleet.

    Attributes:
        arrived: turns, from the beginning on, those of the backlog included.
        done: of them.
        left: of them, waiting or in hand at the end.
        per_s: turns done in a second, once warm.
        in_system: turns waiting or in hand, on average over time, once warm. Here and in the times, nothing of a
            backlog counts before it is taken up.
        wait: from arrival until a worker takes the turn up. What is still waiting counts with its time so far.
        latency: from arrival until the result is written, likewise.
        growth_per_s: by how much more turns come in a second than are done.
        stable: whether that is no more than chance.
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
    """How a stage fared; `busy` is the part of the fleet's cores, GPUs or interpreters that it took."""

    uses: str
    busy: float
    mean_batch: float


class Outcome(BaseModel):
    """What was foretold.

    Attributes:
        simulated: workers that were followed one by one; the fleet's numbers are theirs, multiplied.
        seconds: for which they were followed.
        busy: the part of the fleet's cores, GPUs and interpreters that was in use, once warm.
        traffic: of the whole fleet, in a second.
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
        """Whether somebody who waits is ever served."""
        return self.lanes[Lane.interactive].stable


def simulate(
    demand: Demand, workers: int, costs: Costs, settings: Settings, turns: int = 5000, seed: int = 0
) -> Outcome:
    """Follow a fleet for as long as it takes about so many turns to come, or to be done of a backlog.

    Args:
        workers: processes, each with a device and the settings' threads.
        turns: that are followed; the more, the surer are the high percentiles and the longer it takes.
        seed: of the chance in it; the same one gives the same outcome.

    Raises:
        InvalidRequest: the demand is for nothing at all.
    """
    if not (demand.conversations or demand.bulk_per_s or demand.backlog):
        raise InvalidRequest("there is nothing to do: give --conversations, --bulk or --backlog")
    simulated = min(workers, CELL)
    demand = demand.part(simulated / workers)
    cell = _Cell(demand, simulated, costs, settings, np.random.default_rng(seed))
    at_work = simulated / _alone(costs, demand) if demand.backlog else 0.0
    seconds = turns / (sum(demand.per_s.values()) + at_work)
    cell.run(seconds)
    return cell.outcome(workers, seconds)


def smallest_fleet(
    demand: Demand, target_s: float, costs: Costs, settings: Settings, turns: int = 5000, seed: int = 0
) -> Outcome:
    """The fewest workers with which 95 of 100 interactive turns are done within `target_s` seconds.

    Raises:
        InvalidRequest: nobody waits for anything, or no number of workers is enough.
    """
    if not demand.conversations:
        raise InvalidRequest("a fleet can only be found for those who wait: give --conversations")

    def tried(workers: int) -> Outcome | None:
        outcome = simulate(demand, workers, costs, settings, turns, seed)
        p95 = outcome.lanes[Lane.interactive].latency.p95
        return outcome if outcome.stable and p95 is not None and p95 <= target_s else None

    # More workers than conversations leave each turn as alone as it can be.
    enough, too_few = 1, 0
    while (found := tried(enough)) is None:
        if enough >= demand.conversations:
            raise InvalidRequest(f"no number of workers does 95 of 100 turns within {target_s:g} s")
        enough, too_few = min(2 * enough, demand.conversations), enough
    while enough - too_few > 1:
        middle = (enough + too_few) // 2
        if (fewer := tried(middle)) is None:
            too_few = middle
        else:
            enough, found = middle, fewer
    return found


def _alone(costs: Costs, demand: Demand) -> float:
    """Seconds of a turn of mean length that has a worker for itself."""
    return sum(cost.seconds(1, demand.spoken_s) for cost in costs.stages.values())


class _Cell:
    """Some workers and their turns, to be run once."""

    def __init__(
        self, demand: Demand, workers: int, costs: Costs, settings: Settings, chance: np.random.Generator
    ) -> None:
        self._env = simpy.Environment()
        self._demand = demand
        self._costs = costs
        self._turns: dict[Lane, list[Turn]] = {lane: [] for lane in TURN_LANES}
        self._tallies = {name: Tally() for name in costs.stages}
        self._workers = [Worker(self._env, costs, settings, self._tallies) for _ in range(workers)]
        streams = dict(zip(TURN_LANES, chance.spawn(len(TURN_LANES)), strict=True))
        backlogs = {Lane.interactive: 0, Lane.bulk: demand.backlog}
        self._queues = {
            lane: Queue(self._env, backlogs[lane], lambda lane=lane: self._turn(lane, streams[lane], 0.0))
            for lane in TURN_LANES
        }
        for lane in TURN_LANES:
            self._env.process(self._arrivals(lane, streams[lane]))
        self._start({Lane.interactive: settings.worker_threads, Lane.bulk: settings.bulk_threads})

    def run(self, seconds: float) -> None:
        self._warm = WARM_UP * seconds
        self._env.run(until=self._warm)
        self._before = self._reading()
        self._env.run(until=seconds)

    def outcome(self, workers: int, seconds: float) -> Outcome:
        """Of a fleet of so many workers, of which these are a part."""
        times = workers / len(self._workers)
        lanes = {lane: self._lane(lane, seconds, times) for lane in TURN_LANES}
        turns_per_s = sum(lane.per_s for lane in lanes.values())
        used = {name: now - self._before[name] for name, now in self._reading().items()}
        window = (seconds - self._warm) * len(self._workers)
        room = {name: size * window for name, size in capacities(self._costs).items()}
        return Outcome(
            workers=workers,
            simulated=len(self._workers),
            seconds=seconds,
            turns_per_s=turns_per_s,
            lanes=lanes,
            stages={name: self._stage(name, used[name], room) for name in self._costs.stages},
            busy={name: used[name] / size for name, size in room.items()},
            traffic=self._costs.traffic(turns_per_s, workers),
        )

    def _stage(self, name: str, used: float, room: dict[str, float]) -> StageOutcome:
        uses = self._costs.stages[name].uses
        return StageOutcome(uses=uses, busy=used / room[uses], mean_batch=self._tallies[name].mean_batch)

    def _start(self, threads: dict[Lane, int]) -> None:
        """Set all threads to work, one of each worker after another, so that the first turns are spread among them."""
        for lane, number in threads.items():
            for _ in range(number):
                for worker in self._workers:
                    self._env.process(worker.thread(self._queues[lane]))

    def _arrivals(self, lane: Lane, chance: np.random.Generator) -> Process:
        while per_s := self._demand.per_s[lane]:
            yield self._env.timeout(chance.exponential(1 / per_s))
            self._queues[lane].put(self._turn(lane, chance, self._env.now))

    def _turn(self, lane: Lane, chance: np.random.Generator, arrived: float) -> Turn:
        sigma = math.sqrt(math.log1p(self._demand.spread**2))
        seconds = self._demand.spoken_s * math.exp(sigma * chance.standard_normal() - sigma**2 / 2)
        turn = Turn(lane, seconds, arrived)
        self._turns[lane].append(turn)
        return turn

    def _reading(self) -> dict[str, float]:
        """Work done so far: on what is shared, and in each stage."""
        work = {name: tally.work_s for name, tally in self._tallies.items()}
        for name in capacities(self._costs):
            for worker in self._workers:
                worker.shared[name].advance()
            work[name] = sum(worker.shared[name].busy_s for worker in self._workers)
        return work

    def _lane(self, lane: Lane, end: float, times: float) -> LaneOutcome:
        warm, window = self._warm, end - self._warm
        turns, untouched = self._turns[lane], self._queues[lane].untouched
        counted = [turn for turn in turns if turn.done > warm]
        came, went = sum(turn.arrived > warm for turn in turns), sum(warm < turn.done < math.inf for turn in turns)
        done = sum(turn.done < math.inf for turn in turns)
        in_hand = sum(turn.taken < math.inf and turn.done == math.inf for turn in turns)
        present = sum(min(turn.done, end) - max(turn.arrived, warm) for turn in counted)
        return LaneOutcome(
            arrived=round(times * (len(turns) + untouched)),
            done=round(times * done),
            left=round(times * (len(self._queues[lane]) + in_hand)),
            per_s=times * went / window,
            in_system=times * present / window,
            wait=Percentiles.of([min(turn.taken, end) - turn.arrived for turn in counted]),
            latency=Percentiles.of([min(turn.done, end) - turn.arrived for turn in counted]),
            growth_per_s=times * (came - went) / window,
            stable=came - went <= CHANCE * math.sqrt(max(came, 1)),
        )
