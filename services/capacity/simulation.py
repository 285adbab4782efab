"""How a fleet of workers will do: its turns, lanes, threads and batches, event by event.

Batches are made by the workers' own rules (`shared.dispatch`), and what a stage takes is what was measured. These
things are simpler than life, and all but the last two make the foretold waits longer rather than shorter:

- Turns come at random (Poisson), as those of many conversations that know nothing of one another do.
- A fleet of more than `CELL` workers is reckoned as that many, with their part of the turns. They share one queue, and
  among more of them a wait would be shorter.
- A stage that needs a GPU needs all of it.
- Lengths of turns are log-normal. What fails, or waits for an earlier turn of its session, does not occur.
- The database and the queue answer as fast as they did when the costs were measured.
"""

import heapq
import math
from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from itertools import count

import numpy as np
import simpy
from pydantic import BaseModel, ConfigDict, Field

from services.capacity.costs import Costs, StageCost, Traffic
from shared.dispatch import Line
from shared.domain.job import Lane
from shared.errors import InvalidRequest
from shared.settings import BatchLimits, Settings

CELL = 16
"""So many workers at most are followed one by one."""
WARM_UP = 0.2
"""This part of the time is not counted, as the fleet begins with nothing in hand."""
CHANCE = 3.0
"""Standard deviations of a Poisson number within which a backlog's growth counts as chance."""

Process = Generator[simpy.Event, object, None]


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


@dataclass(eq=False)
class _Turn:
    """A turn, and when in simulated seconds what happened to it."""

    lane: Lane
    seconds: float
    arrived: float
    taken: float = math.inf
    done: float = math.inf


@dataclass(eq=False)
class _Call:
    """A turn that waits for a stage."""

    turn: _Turn
    size: float
    since: float
    done: simpy.Event

    @property
    def lane(self) -> Lane:
        return self.turn.lane


class _Shared:
    """Cores, a GPU or an interpreter that everything which runs on it shares.

    Where more is asked for than there is, everything gets the same part of what it asks. So all that runs is slowed
    alike, and ends in the order of a clock that is slowed with it.
    """

    def __init__(self, env: simpy.Environment, capacity: float) -> None:
        self.capacity = capacity
        self.busy_s = 0.0
        self._env = env
        self._asked = 0.0
        self._clock = 0.0
        self._looked = 0.0
        self._plans = count()
        self._plan = -1
        self._running: list[tuple[float, int, float, simpy.Event]] = []

    def run(self, seconds: float, share: float) -> simpy.Event:
        """What happens when so much work is done, which takes `seconds` with nothing beside it."""
        self.advance()
        done = self._env.event()
        heapq.heappush(self._running, (self._clock + seconds, next(self._plans), share, done))
        self._asked += share
        self._look_ahead()
        return done

    def advance(self) -> None:
        """Reckon up to now."""
        passed, self._looked = self._env.now - self._looked, self._env.now
        self._clock += passed * self._speed
        self.busy_s += passed * min(self._asked, self.capacity)

    @property
    def _speed(self) -> float:
        return min(1.0, self.capacity / self._asked) if self._running else 1.0

    def _look_ahead(self) -> None:
        """Come back when the next thing ends, unless something else comes before."""
        self._plan = next(self._plans)
        if self._running:
            delay = max(0.0, self._running[0][0] - self._clock) / self._speed
            self._env.timeout(delay, self._plan).callbacks.append(self._ended)

    def _ended(self, event: simpy.Event) -> None:
        if event.value != self._plan:
            return
        self.advance()
        _, _, share, done = heapq.heappop(self._running)
        self._asked = self._asked - share if self._running else 0.0
        done.succeed()
        self._look_ahead()


@dataclass
class _Tally:
    """What was run of a stage in all workers: batches, their turns, and work in seconds of what it runs on."""

    batches: int = 0
    turns: int = 0
    work_s: float = 0.0

    def add(self, turns: int, work_s: float) -> None:
        self.batches += 1
        self.turns += turns
        self.work_s += work_s

    @property
    def mean_batch(self) -> float:
        return self.turns / self.batches if self.batches else 0.0


class _Stage:
    """A stage of one worker that turns go through by themselves."""

    def __init__(self, env: simpy.Environment, cost: StageCost, shared: _Shared, tally: _Tally) -> None:
        self._env, self._cost, self._shared, self._tally = env, cost, shared, tally

    def submit(self, turn: _Turn) -> simpy.Event:
        """What happens when the turn has gone through."""
        return self._run([turn])

    def _run(self, turns: Sequence[_Turn]) -> simpy.Event:
        seconds = self._cost.seconds(len(turns), max(turn.seconds for turn in turns))
        self._tally.add(len(turns), seconds * self._cost.share)
        return self._shared.run(seconds, self._cost.share)


class _BatchedStage(_Stage):
    """A stage of one worker that turns go through together, as `workers.batching` does it."""

    def __init__(
        self, env: simpy.Environment, cost: StageCost, shared: _Shared, tally: _Tally, limits: BatchLimits
    ) -> None:
        super().__init__(env, cost, shared, tally)
        self._line = Line[_Call](limits)
        self._came = env.event()
        env.process(self._loop())

    def submit(self, turn: _Turn) -> simpy.Event:
        assert self._cost.size is not None
        call = _Call(turn, self._cost.size.of(turn.seconds), self._env.now, self._env.event())
        self._line.add(call)
        if not self._came.triggered:
            self._came.succeed()
        return call.done

    def _loop(self) -> Process:
        while True:
            if not self._line:
                yield self._arrival()
            patience = self._line.first.since + self._line.limits.wait_s - self._env.now
            time_is_up = self._env.timeout(max(0.0, patience))
            while len(self._line) < self._line.limits.items and not time_is_up.processed:
                yield self._arrival() | time_is_up
            batch = self._line.take()
            began = self._env.now
            yield self._run([call.turn for call in batch])
            self._line.ran(batch, self._env.now - began)
            for call in batch:
                call.done.succeed()

    def _arrival(self) -> simpy.Event:
        self._came = self._env.event()
        return self._came


class _Queue:
    """A lane's messages, first come, first served. Behind a backlog's end come the turns that arrive."""

    def __init__(self, env: simpy.Environment, backlog: int, turn: Callable[[], _Turn]) -> None:
        self._env = env
        self._backlog = backlog
        self._turn = turn
        self._waiting = deque[_Turn]()
        self._idle = deque[simpy.Event]()

    def __len__(self) -> int:
        """How many nobody has taken up."""
        return self._backlog + len(self._waiting)

    @property
    def untouched(self) -> int:
        """How many of them are the backlog's."""
        return self._backlog

    def put(self, turn: _Turn) -> None:
        if self._idle:
            self._idle.popleft().succeed(turn)
        else:
            self._waiting.append(turn)

    def get(self) -> simpy.Event:
        """What happens when there is a turn for the caller; its value."""
        event = self._env.event()
        if self._backlog:
            self._backlog -= 1
            event.succeed(self._turn())
        elif self._waiting:
            event.succeed(self._waiting.popleft())
        else:
            self._idle.append(event)
        return event


class _Worker:
    """A process: its stages, and the threads that bring turns through them."""

    def __init__(self, env: simpy.Environment, costs: Costs, settings: Settings, tallies: dict[str, _Tally]) -> None:
        self._env = env
        self.shared = {name: _Shared(env, size) for name, size in _capacities(costs).items()}
        self._stages: dict[str, _Stage] = {}
        for name, cost in costs.stages.items():
            stage = (env, cost, self.shared[cost.uses], tallies[name])
            batched = cost.size is not None
            self._stages[name] = _BatchedStage(*stage, getattr(settings.batches, name)) if batched else _Stage(*stage)

    def thread(self, queue: _Queue) -> Process:
        """Brings one turn after another through all stages, for ever."""
        while True:
            turn = yield queue.get()
            assert isinstance(turn, _Turn)
            turn.taken = self._env.now
            yield from self._analyze(turn)
            turn.done = self._env.now

    def _analyze(self, turn: _Turn) -> Process:
        """The way of `shared.modeling.pipeline`: the voice is read while the words are."""
        yield self._stages["decode"].submit(turn)
        yield self._stages["vad"].submit(turn)
        voice = self._stages["speech"].submit(turn)
        yield self._stages["transcribe"].submit(turn)
        yield self._stages["text"].submit(turn)
        yield voice
        yield self._stages["fuse"].submit(turn)
        yield self._stages["store"].submit(turn)


class _Cell:
    """Some workers and their turns, to be run once."""

    def __init__(
        self, demand: Demand, workers: int, costs: Costs, settings: Settings, chance: np.random.Generator
    ) -> None:
        self._env = simpy.Environment()
        self._demand = demand
        self._costs = costs
        self._turns: dict[Lane, list[_Turn]] = {lane: [] for lane in Lane}
        self._tallies = {name: _Tally() for name in costs.stages}
        self._workers = [_Worker(self._env, costs, settings, self._tallies) for _ in range(workers)]
        streams = dict(zip(Lane, chance.spawn(len(Lane)), strict=True))
        backlogs = {Lane.interactive: 0, Lane.bulk: demand.backlog}
        self._queues = {
            lane: _Queue(self._env, backlogs[lane], lambda lane=lane: self._turn(lane, streams[lane], 0.0))
            for lane in Lane
        }
        for lane in Lane:
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
        lanes = {lane: self._lane(lane, seconds, times) for lane in Lane}
        turns_per_s = sum(lane.per_s for lane in lanes.values())
        used = {name: now - self._before[name] for name, now in self._reading().items()}
        capacities = {
            name: size * len(self._workers) * (seconds - self._warm) for name, size in _capacities(self._costs).items()
        }
        return Outcome(
            workers=workers,
            simulated=len(self._workers),
            seconds=seconds,
            turns_per_s=turns_per_s,
            lanes=lanes,
            stages={
                name: StageOutcome(
                    uses=cost.uses, busy=used[name] / capacities[cost.uses], mean_batch=self._tallies[name].mean_batch
                )
                for name, cost in self._costs.stages.items()
            },
            busy={name: used[name] / capacity for name, capacity in capacities.items()},
            traffic=self._costs.traffic(turns_per_s, workers),
        )

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

    def _turn(self, lane: Lane, chance: np.random.Generator, arrived: float) -> _Turn:
        sigma = math.sqrt(math.log1p(self._demand.spread**2))
        seconds = self._demand.spoken_s * math.exp(sigma * chance.standard_normal() - sigma**2 / 2)
        turn = _Turn(lane, seconds, arrived)
        self._turns[lane].append(turn)
        return turn

    def _reading(self) -> dict[str, float]:
        """Work done so far: on what is shared, and in each stage."""
        work = {name: tally.work_s for name, tally in self._tallies.items()}
        for name in _capacities(self._costs):
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


def _capacities(costs: Costs) -> dict[str, float]:
    """What one worker has."""
    return {"cpu": costs.cores, "gpu": 1, "interpreter": 1}
