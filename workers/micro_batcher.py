"""Micro-batches: many threads submit one item each, and one thread runs the items in batches.

A model takes little longer for a batch of sixteen items than for one, if they have about the same length. So the items
that come while a batch runs, and for a moment more, go into the next one. Four rules hold for every batch:

- It begins with the oldest interactive item, or with the oldest bulk item if there is none. It is filled up with items
  of a similar length, interactive ones first.
- One of `BULK_SHARE` batches in a row takes the oldest bulk item, however many interactive items wait.
- It keeps its limits. If a batch needs more memory than there is, it is run again in halves, and no later batch is as
  large.
- An item fails alone: a batch that fails is run again in halves.
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
"""Parts of the messages of PyTorch, cuBLAS and CTranslate2, which all raise a RuntimeError."""

_log = logging.getLogger(__name__)


@dataclass(eq=False)
class _Submitted(Generic[Item, Result]):
    """An item that waits for its result; `since` is when it was submitted, by the monotonic clock."""

    item: Item
    size: float
    lane: Lane
    since: float = field(default_factory=time.monotonic)
    future: Future[Result] = field(default_factory=Future[Result])


class MicroBatcher(Generic[Item, Result]):
    """Runs the batches of one stage, on a thread of its own until it is closed.

    Args:
        name: the stage's name, which labels its metrics.
        run: returns the results of a batch, in the order of its items.
        size: returns the size of an item, above 0, in the unit of `limits.budget`.
        free: returns cached memory to the device, before a batch that was too large is run again.
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
        self._run_stage = run
        self._scheduler = BatchScheduler[_Submitted[Item, Result]](limits)
        self._closed = False
        self._changed = threading.Condition()
        # Bulk has half the room, so that threads with bulk items are the first that have to wait.
        self._room = {
            Lane.interactive: threading.Semaphore(limits.waiting),
            Lane.bulk: threading.Semaphore(max(1, limits.waiting // 2)),
        }
        self._thread = threading.Thread(target=self._loop, name=f"stage-{name}", daemon=True)
        self._thread.start()

    def submit(self, item: Item, lane: Lane = Lane.interactive, timeout_s: float | None = None) -> Callable[[], Result]:
        """Submit an item for one of the next batches. Waits while as many items of its lane wait as may.

        Args:
            item: what `run` takes.
            lane: the lane of the item's turn.
            timeout_s: longest wait, here and then for the result together.

        Returns:
            A function that waits for the item's result, and returns it or raises the exception of the item. When the
            time is up it raises Unavailable, and withdraws the item if its batch does not run yet.

        Raises:
            Unavailable: too many items waited all the time, or the stage is closed.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        submitted, span = _Submitted[Item, Result](item, self._size(item), lane), start_span(self._name)
        if not self._room[lane].acquire(timeout=timeout_s):
            raise Unavailable(f"the stage {self._name} took no more items for {timeout_s} s")
        with self._changed:
            if self._closed:
                raise Unavailable(f"the stage {self._name} is closed")
            submitted.future.add_done_callback(lambda future: _end_span(span, future))
            self._scheduler.add(submitted)
            self._changed.notify()
        return lambda: self._result(submitted, deadline)

    def close(self) -> None:
        """Run the items that wait, and end. Items that are submitted later are refused."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _result(self, submitted: _Submitted[Item, Result], deadline: float | None) -> Result:
        try:
            return submitted.future.result(None if deadline is None else max(0.0, deadline - time.monotonic()))
        except (TimeoutError, CancelledError):
            if submitted.future.done() and not submitted.future.cancelled():
                return submitted.future.result()  # it came just now, or `run` itself raised an error of that kind
            submitted.future.cancel()
            raise Unavailable(f"the stage {self._name} gave no result in time") from None

    # what the thread runs

    def _loop(self) -> None:
        while batch := self._next():
            if wanted := [each for each in batch if each.future.set_running_or_notify_cancel()]:
                self._run(wanted)

    def _next(self) -> list[_Submitted[Item, Result]]:
        """Wait for the next batch. Empty when the stage is closed and no item waits."""
        with self._changed:
            self._changed.wait_for(lambda: self._scheduler or self._closed)
            if not self._scheduler:
                return []
            limits = self._scheduler.limits
            remaining_s = self._scheduler.first.since + limits.wait_s - time.monotonic()
            self._changed.wait_for(lambda: len(self._scheduler) >= limits.items or self._closed, max(0, remaining_s))
            batch = self._scheduler.take()
        for submitted in batch:
            self._room[submitted.lane].release()
        return batch

    def _run(self, batch: Sequence[_Submitted[Item, Result]]) -> None:
        try:
            results = self._run_measured(batch)
        except BaseException as error:  # each thread that waits must get it, whatever it is
            if len(batch) == 1:
                batch[0].future.set_exception(error)
                return
            out_of_memory = _is_out_of_memory(error)
        else:
            for submitted, result in zip(batch, results, strict=True):
                submitted.future.set_result(result)
                STAGE_SECONDS.labels(self._name).observe(time.monotonic() - submitted.since)
            return
        # Not within the handler, because the exception keeps the tensors of the failed run in memory.
        if out_of_memory:
            self._shrink(batch)
        half = len(batch) // 2
        self._run(batch[:half])
        self._run(batch[half:])

    def _run_measured(self, batch: Sequence[_Submitted[Item, Result]]) -> Sequence[Result]:
        started = time.monotonic()
        results = self._run_stage([submitted.item for submitted in batch])
        if len(results) != len(batch):
            raise RuntimeError(f"the stage {self._name} returned {len(results)} results for {len(batch)} items")
        self._scheduler.record_run(batch, time.monotonic() - started)
        BATCH_SIZE.labels(self._name).observe(len(batch))
        return results

    def _shrink(self, batch: Sequence[_Submitted[Item, Result]]) -> None:
        budget = self._scheduler.shrink(batch)
        _log.warning("stage %s ran out of memory: its batches cost at most %.1f now", self._name, budget)
        self._free()


def _end_span(span: Span, future: Future[Any]) -> None:
    error = CancelledError() if future.cancelled() else future.exception()
    if error is not None:
        record_error(span, error)
    span.end()


def _is_out_of_memory(error: BaseException) -> bool:
    message = str(error).lower()
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(phrase in message for phrase in NO_MEMORY)
    )
