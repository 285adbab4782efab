"""Who goes into a stage's next batch. Workers go by it, and so does what foretells how a fleet of them will do."""

from collections.abc import Sequence
from typing import Generic, Protocol, TypeVar

from shared.domain.job import Lane
from shared.settings import BatchLimits

BULK_TURN = 4
"""While bulk items wait, one of so many batches in a row is led by the oldest of them."""
LIKE_LENGTH = 2.0
"""The longest item of a batch is at most so many times as long as the shortest; so less than half of it is padding."""
PACE_MEMORY = 0.8
"""Weight of what is known of a stage's pace against its last batch."""


class BatchItem(Protocol):
    """An item that waits; its size is in the unit of the limits' budget."""

    @property
    def size(self) -> float: ...

    @property
    def lane(self) -> Lane: ...


Waiting = TypeVar("Waiting", bound=BatchItem)


class BatchScheduler(Generic[Waiting]):
    """Those who wait for one stage, in the order in which they came. One thread at a time may use it.

    Attributes:
        limits: of the stage's batches.
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
        """Who has waited longest."""
        return self._waiting[0]

    def add(self, call: Waiting) -> None:
        self._waiting.append(call)

    def take(self) -> list[Waiting]:
        """The next batch, taken out of those that wait, of whom there must be one."""
        batch = self._picked()
        self._waiting = [call for call in self._waiting if call not in batch]
        return batch

    def ran(self, batch: Sequence[Waiting], seconds: float) -> None:
        """How long a batch took: bulk is kept from making the next ones too long."""
        pace = seconds / cost(batch)
        self._pace = PACE_MEMORY * self._pace + (1 - PACE_MEMORY) * pace if self._pace else pace

    def shrink(self, batch: Sequence[Waiting]) -> float:
        """Let no batch cost more than half of this one from now on; what one may cost then."""
        self._budget = min(self._budget, cost(batch) / 2)
        return self._budget

    def _picked(self) -> list[Waiting]:
        eldest_bulk = next((call for call in self._waiting if call.lane is Lane.bulk), None)
        lanes = [Lane.interactive, Lane.bulk]
        if self._passed_over >= BULK_TURN - 1:
            lanes.reverse()
        first, *others = sorted(self._waiting, key=lambda call: lanes.index(call.lane))
        others.sort(key=lambda call: (lanes.index(call.lane), abs(call.size - first.size)))
        batch = [first]
        for call in others:
            if self._fits([*batch, call]):
                batch.append(call)
        self._passed_over = 0 if eldest_bulk is None or eldest_bulk in batch else self._passed_over + 1
        return batch

    def _fits(self, batch: Sequence[Waiting]) -> bool:
        sizes = [call.size for call in batch]
        together = cost(batch)
        # What comes while a batch runs has to wait for its end, so bulk must not make it long.
        brief = together * self._pace <= self.limits.bulk_s or all(call.lane is Lane.interactive for call in batch)
        alike = max(sizes) <= LIKE_LENGTH * min(sizes)
        return len(batch) <= self.limits.items and together <= self._budget and alike and brief


def cost(batch: Sequence[BatchItem]) -> float:
    """A batch's size with its padding: its longest item's times its items."""
    return len(batch) * max(call.size for call in batch)
