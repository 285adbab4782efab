"""Work of many requests done at once.

What a request needs of the database costs far less for thirty of them together than thirty times: one thread, one
connection and one commit instead of thirty that fight for the same interpreter. So what comes while the work is being
done is done next, all of it in one go. A request that comes alone waits for nobody.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from fastapi.concurrency import run_in_threadpool

from shared.errors import TenorError

Item = TypeVar("Item")
Result = TypeVar("Result")

MAX_BATCH = 64
"""Items that are done in one go."""


class RequestBatcher(Generic[Item, Result]):
    """Does items of one kind, for the requests of one event loop.

    Args:
        run: gives for each item its result or the error that it fails with, in their order. It is called in a thread,
            for one batch at a time. A TenorError that it raises is everyone's. After any other error nothing must have
            been done, and the items are done one by one, so that only those fail that are at fault.
    """

    def __init__(self, run: Callable[[Sequence[Item]], Sequence[Result | TenorError]]) -> None:
        self._run = run
        self._waiting: list[tuple[Item, asyncio.Future[Result]]] = []
        self._working: asyncio.Task[None] | None = None

    async def do(self, item: Item) -> Result:
        """The item's result. Raises what it fails with."""
        future = asyncio.get_running_loop().create_future()
        self._waiting.append((item, future))
        if self._working is None:
            self._working = asyncio.create_task(self._work())
        return await future

    async def _work(self) -> None:
        try:
            while self._waiting:
                some, self._waiting = self._waiting[:MAX_BATCH], self._waiting[MAX_BATCH:]
                await self._do(some)
        finally:
            # Here and not once the task is done: what comes in between would wait for somebody who has left.
            self._working = None

    async def _do(self, some: Sequence[tuple[Item, asyncio.Future[Result]]]) -> None:
        try:
            results = await run_in_threadpool(self._run, [item for item, _ in some])
            pairs = list(zip(some, results, strict=True))
        except Exception as error:
            if len(some) > 1 and not isinstance(error, TenorError):
                for one in some:
                    await self._do([one])
                return
            pairs = [(one, error) for one in some]
        for (_, future), result in pairs:
            _settle(future, result)


def _settle(future: "asyncio.Future[Result]", result: Result | Exception) -> None:
    if future.cancelled():  # whoever asked is gone
        return
    if isinstance(result, Exception):
        future.set_exception(result)
    else:
        future.set_result(result)
