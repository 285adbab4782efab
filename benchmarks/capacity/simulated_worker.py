"""A simulated worker: its resources, its stages, and the threads that take turns through the stages."""

# simpy is not fully typed.
# pyright: reportUnknownMemberType=false

import heapq
import math
from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from itertools import count

import simpy

from benchmarks.capacity.costs import Costs, StageCost
from shared.domain.job import Lane
from shared.settings import BatchLimits, Settings
from workers.batch_scheduler import BatchScheduler

Process = Generator[simpy.Event, object, None]


@dataclass(eq=False)
class SimulatedTurn:
    """A turn: the seconds of its audio, and the simulated times when it arrived, was taken by a thread and was done."""

    lane: Lane
    seconds: float
    arrived: float
    taken: float = math.inf
    done: float = math.inf


@dataclass(eq=False)
class _BatchItem:
    """A turn that waits for a batched stage."""

    turn: SimulatedTurn
    size: float
    since: float
    done: simpy.Event

    @property
    def lane(self) -> Lane:
        return self.turn.lane


class _Resource:
    """Cores, a GPU or an interpreter, shared by all tasks that run on it.

    When the tasks ask for more than the capacity, each gets the same fraction of what it asks for. All tasks then slow
    down alike, so they end in the order of a clock that slows down with them.
    """

    def __init__(self, env: simpy.Environment, capacity: float) -> None:
        self.capacity = capacity
        self.busy_s = 0.0
        self._env = env
        self._demand = 0.0
        self._clock = 0.0
        self._updated_at = 0.0
        self._numbers = count()
        self._expected = -1
        self._running: list[tuple[float, int, float, simpy.Event]] = []

    def run(self, seconds: float, share: float) -> simpy.Event:
        """Start a task that takes `seconds` when it runs alone; the returned event happens when it is done."""
        self.advance()
        done = self._env.event()
        heapq.heappush(self._running, (self._clock + seconds, next(self._numbers), share, done))
        self._demand += share
        self._schedule_next_end()
        return done

    def advance(self) -> None:
        """Update the clock and `busy_s` to the current simulated time."""
        passed, self._updated_at = self._env.now - self._updated_at, self._env.now
        self._clock += passed * self._speed
        self.busy_s += passed * min(self._demand, self.capacity)

    @property
    def _speed(self) -> float:
        return min(1.0, self.capacity / self._demand) if self._running else 1.0

    def _schedule_next_end(self) -> None:
        """Schedule the end of the next task. A task that starts earlier makes this timeout obsolete."""
        self._expected = next(self._numbers)
        if self._running:
            delay = max(0.0, self._running[0][0] - self._clock) / self._speed
            self._env.timeout(delay, self._expected).callbacks.append(self._end_next)

    def _end_next(self, event: simpy.Event) -> None:
        if event.value != self._expected:
            return
        self.advance()
        _, _, share, done = heapq.heappop(self._running)
        self._demand = self._demand - share if self._running else 0.0
        done.succeed()
        self._schedule_next_end()


@dataclass
class StageTally:
    """The batches of a stage in all workers, their turns, and their work in seconds of the resource."""

    batches: int = 0
    turns: int = 0
    work_s: float = 0.0

    def add(self, turns: int, work_s: float) -> None:
        """Count a batch."""
        self.batches += 1
        self.turns += turns
        self.work_s += work_s

    @property
    def mean_batch(self) -> float:
        return self.turns / self.batches if self.batches else 0.0


class _Stage:
    """A stage of one worker that turns go through one by one."""

    def __init__(self, env: simpy.Environment, cost: StageCost, resource: _Resource, tally: StageTally) -> None:
        self._env, self._cost, self._resource, self._tally = env, cost, resource, tally

    def submit(self, turn: SimulatedTurn) -> simpy.Event:
        """Return the event that happens when the turn has gone through the stage."""
        return self._run([turn])

    def _run(self, turns: Sequence[SimulatedTurn]) -> simpy.Event:
        seconds = self._cost.seconds(len(turns), max(turn.seconds for turn in turns))
        self._tally.add(len(turns), seconds * self._cost.share)
        return self._resource.run(seconds, self._cost.share)


class _BatchedStage(_Stage):
    """A stage of one worker that runs turns in batches, as `workers.micro_batcher.MicroBatcher` does."""

    def __init__(
        self,
        env: simpy.Environment,
        cost: StageCost,
        resource: _Resource,
        tally: StageTally,
        limits: BatchLimits,
    ) -> None:
        super().__init__(env, cost, resource, tally)
        self._scheduler = BatchScheduler[_BatchItem](limits)
        self._arrived = env.event()
        env.process(self._loop())

    def submit(self, turn: SimulatedTurn) -> simpy.Event:
        assert self._cost.size is not None
        item = _BatchItem(turn, self._cost.size.of(turn.seconds), self._env.now, self._env.event())
        self._scheduler.add(item)
        if not self._arrived.triggered:
            self._arrived.succeed()
        return item.done

    def _loop(self) -> Process:
        while True:
            if not self._scheduler:
                yield self._next_arrival()
            patience = self._scheduler.first.since + self._scheduler.limits.wait_s - self._env.now
            timeout = self._env.timeout(max(0.0, patience))
            while len(self._scheduler) < self._scheduler.limits.items and not timeout.processed:
                yield self._next_arrival() | timeout
            batch = self._scheduler.take()
            started = self._env.now
            yield self._run([item.turn for item in batch])
            self._scheduler.record_run(batch, self._env.now - started)
            for item in batch:
                item.done.succeed()

    def _next_arrival(self) -> simpy.Event:
        self._arrived = self._env.event()
        return self._arrived


class LaneQueue:
    """The waiting turns of a lane, first in, first out. Turns that arrive queue behind the backlog."""

    def __init__(self, env: simpy.Environment, backlog: int, new_turn: Callable[[], SimulatedTurn]) -> None:
        self._env = env
        self._backlog = backlog
        self._new_turn = new_turn
        self._waiting = deque[SimulatedTurn]()
        self._idle = deque[simpy.Event]()

    def __len__(self) -> int:
        """How many turns wait, the backlog included."""
        return self._backlog + len(self._waiting)

    @property
    def backlog(self) -> int:
        """How many turns of the backlog wait."""
        return self._backlog

    def put(self, turn: SimulatedTurn) -> None:
        if self._idle:
            self._idle.popleft().succeed(turn)
        else:
            self._waiting.append(turn)

    def get(self) -> simpy.Event:
        """Return the event that happens when there is a turn for the caller, which is the value of the event."""
        event = self._env.event()
        if self._backlog:
            self._backlog -= 1
            event.succeed(self._new_turn())
        elif self._waiting:
            event.succeed(self._waiting.popleft())
        else:
            self._idle.append(event)
        return event


class SimulatedWorker:
    """A worker process: its resources and stages, and the threads that take turns through the stages."""

    def __init__(
        self, env: simpy.Environment, costs: Costs, settings: Settings, tallies: dict[str, StageTally]
    ) -> None:
        self._env = env
        self._path = costs.path
        self._longest_pause_s = settings.worker.bulk_throttle_s
        self._interactive_turns = 0
        self._no_interactive_turn = env.event()
        self.resources = {name: _Resource(env, capacity) for name, capacity in worker_capacity(costs).items()}
        self._stages: dict[str, _Stage] = {}
        for name, cost in costs.stages.items():
            arguments = (env, cost, self.resources[cost.uses], tallies[name])
            if cost.size is None:
                self._stages[name] = _Stage(*arguments)
            else:
                self._stages[name] = _BatchedStage(*arguments, getattr(settings.batches, name))

    def thread(self, queue: LaneQueue) -> Process:
        """Take one turn after another through all stages, without end."""
        while True:
            turn = yield queue.get()
            assert isinstance(turn, SimulatedTurn)
            turn.taken = self._env.now
            self._count_interactive(turn, 1)
            yield from self._analyze(turn)
            self._count_interactive(turn, -1)
            turn.done = self._env.now

    def _count_interactive(self, turn: SimulatedTurn, change: int) -> None:
        if turn.lane is Lane.bulk:
            return
        self._interactive_turns += change
        if not self._interactive_turns:
            self._no_interactive_turn.succeed()
            self._no_interactive_turn = self._env.event()

    def _pause_bulk(self, turn: SimulatedTurn) -> Process:
        """Make a bulk turn wait while interactive turns are in progress, as the bulk throttle of a worker does."""
        if turn.lane is Lane.bulk and self._interactive_turns:
            yield self._no_interactive_turn | self._env.timeout(self._longest_pause_s)

    def _analyze(self, turn: SimulatedTurn) -> Process:
        """Take a turn through its stages in the order that was recorded of the real pipeline."""
        yield self._stages["decode"].submit(turn)
        results: dict[str, simpy.Event] = {}
        for step in self._path:
            if step.action == "submit":
                yield from self._pause_bulk(turn)
                results[step.stage] = self._stages[step.stage].submit(turn)
            else:
                yield results[step.stage]
        yield self._stages["store"].submit(turn)


def worker_capacity(costs: Costs) -> dict[str, float]:
    """Return the cores, GPUs and interpreters that one worker has."""
    return {"cpu": costs.cores, "gpu": 1, "interpreter": 1}
