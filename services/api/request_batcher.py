"""Batches the database work of concurrent requests: one thread, one connection and one commit for many of them.

Thirty small transactions cost far more than one with thirty rows, because thirty threads compete for the interpreter
and Postgres flushes thirty commits to disk. So the requests that arrive while a batch runs form the next batch. A
request that arrives alone runs at once: nothing waits for a batch to fill.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

from fastapi.concurrency import run_in_threadpool

from shared.errors import TenorError

Item = TypeVar("Item")
Result = TypeVar("Result")

MAX_BATCH = 64
"""The most items of one batch."""


class RequestBatcher(Generic[Item, Result]):
    """Processes items of concurrent requests in batches. An instance serves one event loop.

    Args:
        process: returns the result of each item, or the error that the item fails with, in the order of the items. It
            runs in a thread, one batch at a time. A TenorError that it raises is raised for every item of the batch.
            Before it raises any other error it must have undone its work: the items are then processed one by one, so
            that only the faulty ones fail.
    """

    def __init__(self, process: Callable[[Sequence[Item]], Sequence[Result | TenorError]]) -> None:
        self._process = process
        self._waiting: list[tuple[Item, asyncio.Future[Result]]] = []
        self._task: asyncio.Task[None] | None = None

    async def submit(self, item: Item) -> Result:
        """Return the result of an item, or raise the error that it fails with."""
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, future))
        if self._task is None:
            self._task = asyncio.create_task(self._process_waiting())
        return await future

    async def _process_waiting(self) -> None:
        try:
            while self._waiting:
                batch, self._waiting = self._waiting[:MAX_BATCH], self._waiting[MAX_BATCH:]
                await self._process_batch(batch)
        finally:
            # Reset here, in the same step as the last look at `_waiting`. An item that arrived between that look and a
            # later reset would find a task that no longer takes items, and wait for ever.
            self._task = None

    async def _process_batch(self, batch: Sequence[tuple[Item, asyncio.Future[Result]]]) -> None:
        try:
            outcomes = await run_in_threadpool(self._process, [item for item, _ in batch])
            pairs: list[tuple[Any, Result | Exception]] = list(zip(batch, outcomes, strict=True))
        except TenorError as error:
            pairs = [(entry, error) for entry in batch]
        except Exception as error:
            if len(batch) > 1:
                for entry in batch:
                    await self._process_batch([entry])
                return
            pairs = [(entry, error) for entry in batch]
        for (_, future), outcome in pairs:
            _settle(future, outcome)


def _settle(future: "asyncio.Future[Result]", outcome: Result | Exception) -> None:
    if future.cancelled():  # the client of the request has disconnected
        return
    if isinstance(outcome, Exception):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)
