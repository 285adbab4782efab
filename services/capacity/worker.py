"""One simulated worker: what its turns share, its stages, and the threads that bring turns through them."""

import heapq
import math
from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from itertools import count

import simpy

from services.capacity.costs import Costs, StageCost
from shared.domain.job import Lane
from shared.settings import BatchLimits, Settings
from workers.batch_scheduler import BatchScheduler

Process = Generator[simpy.Event, object, None]


@dataclass(eq=False)
class Turn:
    """A turn, and when in simulated seconds what happened to it."""

    lane: Lane
    seconds: float
    arrived: float
    taken: float = math.inf
    done: float = math.inf


@dataclass(eq=False)
class _Call:
    """A turn that waits for a stage."""

    turn: Turn
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
class Tally:
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

    def __init__(self, env: simpy.Environment, cost: StageCost, shared: _Shared, tally: Tally) -> None:
        self._env, self._cost, self._shared, self._tally = env, cost, shared, tally

    def submit(self, turn: Turn) -> simpy.Event:
        """What happens when the turn has gone through."""
        return self._run([turn])

    def _run(self, turns: Sequence[Turn]) -> simpy.Event:
        seconds = self._cost.seconds(len(turns), max(turn.seconds for turn in turns))
        self._tally.add(len(turns), seconds * self._cost.share)
        return self._shared.run(seconds, self._cost.share)


class _BatchedStage(_Stage):
    """A stage of one worker that turns go through together, as `workers.batching` does it."""

    def __init__(
        self, env: simpy.Environment, cost: StageCost, shared: _Shared, tally: Tally, limits: BatchLimits
    ) -> None:
        super().__init__(env, cost, shared, tally)
        self._line = BatchScheduler[_Call](limits)
        self._came = env.event()
        env.process(self._loop())

    def submit(self, turn: Turn) -> simpy.Event:
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


class Queue:
    """A lane's messages, first come, first served. Behind a backlog's end come the turns that arrive."""

    def __init__(self, env: simpy.Environment, backlog: int, turn: Callable[[], Turn]) -> None:
        self._env = env
        self._backlog = backlog
        self._turn = turn
        self._waiting = deque[Turn]()
        self._idle = deque[simpy.Event]()

    def __len__(self) -> int:
        """How many nobody has taken up."""
        return self._backlog + len(self._waiting)

    @property
    def untouched(self) -> int:
        """How many of them are the backlog's."""
        return self._backlog

    def put(self, turn: Turn) -> None:
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


class Worker:
    """A process: its stages, and the threads that bring turns through them."""

    def __init__(self, env: simpy.Environment, costs: Costs, settings: Settings, tallies: dict[str, Tally]) -> None:
        self._env = env
        self._courtesy_s = settings.courtesy_s
        self._under_way = 0
        self._none_under_way = env.event()
        self.shared = {name: _Shared(env, size) for name, size in capacities(costs).items()}
        self._stages: dict[str, _Stage] = {}
        for name, cost in costs.stages.items():
            stage = (env, cost, self.shared[cost.uses], tallies[name])
            batched = cost.size is not None
            self._stages[name] = _BatchedStage(*stage, getattr(settings.batches, name)) if batched else _Stage(*stage)

    def thread(self, queue: Queue) -> Process:
        """Brings one turn after another through all stages, for ever."""
        while True:
            turn = yield queue.get()
            assert isinstance(turn, Turn)
            turn.taken = self._env.now
            self._count(turn, 1)
            yield from self._analyze(turn)
            self._count(turn, -1)
            turn.done = self._env.now

    def _count(self, turn: Turn, change: int) -> None:
        if turn.lane is Lane.bulk:
            return
        self._under_way += change
        if not self._under_way:
            self._none_under_way.succeed()
            self._none_under_way = self._env.event()

    def _stand_back(self, turn: Turn) -> Process:
        """As bulk turns do before each stage for interactive ones."""
        if turn.lane is Lane.bulk and self._under_way:
            yield self._none_under_way | self._env.timeout(self._courtesy_s)

    def _analyze(self, turn: Turn) -> Process:
        """The way of `shared.modeling.pipeline`: the voice is read while the words are."""
        yield self._stages["decode"].submit(turn)
        yield from self._stand_back(turn)
        yield self._stages["vad"].submit(turn)
        yield from self._stand_back(turn)
        voice = self._stages["speech"].submit(turn)
        yield from self._stand_back(turn)
        yield self._stages["transcribe"].submit(turn)
        yield from self._stand_back(turn)
        yield self._stages["text"].submit(turn)
        yield voice
        yield from self._stand_back(turn)
        yield self._stages["fuse"].submit(turn)
        yield self._stages["store"].submit(turn)


def capacities(costs: Costs) -> dict[str, float]:
    """What one worker has."""
    return {"cpu": costs.cores, "gpu": 1, "interpreter": 1}
