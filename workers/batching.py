"""Micro-batches: many threads hand in one item each, and one thread runs them together.

A model takes a batch of sixteen in little more than the time of one, if they are of like length. So what is handed in
while a batch runs, and for a moment more, goes into the next one. Four rules hold whatever comes:

- An interactive item goes ahead of every bulk one, and an item ahead of the later ones of its lane, but that a batch
  is filled up with what is of like length to its first.
- Of `BULK_TURN` batches in a row one takes the longest waiting bulk item, however many interactive ones there are.
- A batch keeps its limits. One for which the memory does not suffice is halved, and none as large is made again.
- An item that fails does so alone: a batch that fails is run again by halves.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from opentelemetry.trace import Span

from shared.domain.job import Lane
from shared.errors import Unavailable
from shared.observability.metrics import BATCH_SIZE, STAGE_SECONDS
from shared.observability.tracing import record_error, start_span
from shared.settings import BatchLimits
from workers.batch_scheduler import BatchScheduler

Item = TypeVar("Item")
Result = TypeVar("Result")

NO_MEMORY = ("out of memory", "can't allocate memory", "alloc_failed", "bad_alloc")
"""How PyTorch, cuBLAS and CTranslate2 put it, who all raise a RuntimeError."""

_log = logging.getLogger(__name__)


@dataclass(eq=False)
class _Call(Generic[Item, Result]):
    """An item on its way; `since` is when it was handed in, by the monotonic clock."""

    item: Item
    size: float
    lane: Lane
    since: float = field(default_factory=time.monotonic)
    future: Future[Result] = field(default_factory=Future)


class MicroBatcher(Generic[Item, Result]):
    """One stage's batches, run on a thread of its own until it is closed.

    Args:
        name: the stage's, as its metrics are labelled.
        run: gives the results of a batch, in its order.
        size: of an item, above 0, in the unit of `limits.budget`. A batch's is its longest item's times its items.
        free: gives back memory that only lies in store, before a batch that was too large is run again.
    """

    def __init__(
        self,
        name: str,
        run: Callable[[Sequence[Item]], Sequence[Result]],
        limits: BatchLimits,
        size: Callable[[Item], float] = lambda _: 1.0,
        free: Callable[[], None] = lambda: None,
    ) -> None:
        self._name, self._size, self._free = name, size, free
        self._stage = run
        self._line = BatchScheduler[_Call[Item, Result]](limits)
        self._closed = False
        self._changed = threading.Condition()
        # Half the room for bulk: those who hand it in are the first who have to wait.
        self._room = {
            Lane.interactive: threading.Semaphore(limits.waiting),
            Lane.bulk: threading.Semaphore(max(1, limits.waiting // 2)),
        }
        self._thread = threading.Thread(target=self._loop, name=f"stage-{name}", daemon=True)
        self._thread.start()

    def submit(self, item: Item, lane: Lane = Lane.interactive, timeout_s: float | None = None) -> Callable[[], Result]:
        """Hand in an item; where the lane is full, wait until it is not.

        Args:
            item: goes into one of the next batches.
            lane: how soon.
            timeout_s: how long to wait, here and then for the result.

        Returns:
            What waits for the item's result, and gives it or raises what the item failed with. Where the time is up
            it raises Unavailable, and an item that is not yet being run is withdrawn.

        Raises:
            Unavailable: the lane was full all the time, or the stage is closed.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        call, span = _Call[Item, Result](item, self._size(item), lane), start_span(self._name)
        if not self._room[lane].acquire(timeout=timeout_s):
            raise Unavailable(f"the stage {self._name} took no more for {timeout_s} s")
        with self._changed:
            if self._closed:
                raise Unavailable(f"the stage {self._name} is closed")
            call.future.add_done_callback(lambda future: _end_span(span, future))
            self._line.add(call)
            self._changed.notify()
        return lambda: self._result(call, deadline)

    def close(self) -> None:
        """Run what was handed in, and end. What is handed in later is refused."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _result(self, call: _Call[Item, Result], deadline: float | None) -> Result:
        try:
            return call.future.result(None if deadline is None else max(0.0, deadline - time.monotonic()))
        except (TimeoutError, CancelledError):
            if call.future.done() and not call.future.cancelled():
                return call.future.result()  # it has come just now, or failed with an error of that kind itself
            call.future.cancel()
            raise Unavailable(f"the stage {self._name} gave no result in time") from None

    # the thread's own

    def _loop(self) -> None:
        while batch := self._next():
            if wanted := [call for call in batch if call.future.set_running_or_notify_cancel()]:
                self._run(wanted)

    def _next(self) -> list[_Call[Item, Result]]:
        """The next batch, taken out of those that wait; empty once all is done and the stage closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._line or self._closed)
            if not self._line:
                return []
            limits = self._line.limits
            patience = self._line.first.since + limits.wait_s - time.monotonic()
            self._changed.wait_for(lambda: len(self._line) >= limits.items or self._closed, max(0, patience))
            batch = self._line.take()
        for call in batch:
            self._room[call.lane].release()
        return batch

    def _run(self, batch: Sequence[_Call[Item, Result]]) -> None:
        try:
            results = self._measured(batch)
        except BaseException as error:  # whatever it is, those who wait must hear of it
            if len(batch) == 1:
                batch[0].future.set_exception(error)
                return
            short = _lacks_memory(error)
        else:
            for call, result in zip(batch, results, strict=True):
                call.future.set_result(result)
                STAGE_SECONDS.labels(self._name).observe(time.monotonic() - call.since)
            return
        # Out of the handler, as the error keeps alive what the failed run had in memory.
        if short:
            self._shrink(batch)
        half = len(batch) // 2
        self._run(batch[:half])
        self._run(batch[half:])

    def _measured(self, batch: Sequence[_Call[Item, Result]]) -> Sequence[Result]:
        started = time.monotonic()
        results = self._stage([call.item for call in batch])
        if len(results) != len(batch):
            raise RuntimeError(f"the stage {self._name} gave {len(results)} results for {len(batch)} items")
        self._line.ran(batch, time.monotonic() - started)
        BATCH_SIZE.labels(self._name).observe(len(batch))
        return results

    def _shrink(self, batch: Sequence[_Call[Item, Result]]) -> None:
        budget = self._line.shrink(batch)
        _log.warning("stage %s ran out of memory: its batches cost at most %.1f now", self._name, budget)
        self._free()


def _end_span(span: Span, future: Future[Any]) -> None:
    error = CancelledError() if future.cancelled() else future.exception()
    if error is not None:
        record_error(span, error)
    span.end()


def _lacks_memory(error: BaseException) -> bool:
    said = str(error).lower()
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(phrase in said for phrase in NO_MEMORY)
    )
