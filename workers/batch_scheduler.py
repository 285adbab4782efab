"""Chooses the items of a stage's next batch. Workers use it, and so does the simulation of a fleet of workers."""

from collections.abc import Sequence
from typing import Generic, Protocol, TypeVar

from shared.domain.job import Lane
from shared.settings import BatchLimits

BULK_SHARE = 4
"""While bulk items wait, one batch of every so many begins with the oldest of them."""
MAX_LENGTH_RATIO = 2.0
"""The longest item of a batch is at most so many times as long as the shortest, so less than half of it is padding."""
PACE_MEMORY = 0.8
"""Weight of the earlier batches against the last one in the running mean of the seconds that a unit of size takes."""


class BatchItem(Protocol):
    """An item that waits for a stage."""

    @property
    def size(self) -> float:
        """In the unit of the limits' budget, such as tokens or seconds of audio."""
        ...

    @property
    def lane(self) -> Lane: ...


Waiting = TypeVar("Waiting", bound=BatchItem)


class BatchScheduler(Generic[Waiting]):
    """The items that wait for one stage, in the order in which they came. Only one thread at a time may use it.

    Attributes:
        limits: the limits of the stage's batches.
    """

    def __init__(self, limits: BatchLimits) -> None:
        self.limits = limits
        self._budget = limits.budget
        self._pace = 0.0
        self._passed_over = 0
        self._waiting: list[Waiting] = []

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def first(self) -> Waiting:
        """The item that has waited longest."""
        return self._waiting[0]

    def add(self, item: Waiting) -> None:
        self._waiting.append(item)

    def take(self) -> list[Waiting]:
        """Remove the next batch from the waiting items, and return it. At least one item must wait."""
        batch = self._pick()
        self._waiting = [item for item in self._waiting if item not in batch]
        return batch

    def record_run(self, batch: Sequence[Waiting], seconds: float) -> None:
        """Learn from how long a batch took how many bulk items the next batches may hold."""
        pace = seconds / cost(batch)
        self._pace = PACE_MEMORY * self._pace + (1 - PACE_MEMORY) * pace if self._pace else pace

    def shrink(self, batch: Sequence[Waiting]) -> float:
        """Limit the cost of later batches to half of this batch's. Returns the limit."""
        self._budget = min(self._budget, cost(batch) / 2)
        return self._budget

    def _pick(self) -> list[Waiting]:
        oldest_bulk = next((item for item in self._waiting if item.lane is Lane.bulk), None)
        lanes = [Lane.interactive, Lane.bulk]
        if self._passed_over >= BULK_SHARE - 1:
            lanes.reverse()
        first, *others = sorted(self._waiting, key=lambda item: lanes.index(item.lane))
        others.sort(key=lambda item: (lanes.index(item.lane), abs(item.size - first.size)))
        batch = [first]
        for item in others:
            if self._fits([*batch, item]):
                batch.append(item)
        self._passed_over = 0 if oldest_bulk is None or oldest_bulk in batch else self._passed_over + 1
        return batch

    def _fits(self, batch: Sequence[Waiting]) -> bool:
        sizes = [item.size for item in batch]
        total = cost(batch)
        # An interactive item that comes while a batch runs waits for its end, so bulk items must not make it long.
        brief = total * self._pace <= self.limits.bulk_s or all(item.lane is Lane.interactive for item in batch)
        similar = max(sizes) <= MAX_LENGTH_RATIO * min(sizes)
        return len(batch) <= self.limits.items and total <= self._budget and similar and brief


def cost(batch: Sequence[BatchItem]) -> float:
    """Return a batch's size with its padding: the size of its longest item times the number of its items."""
    return len(batch) * max(item.size for item in batch)
