"""The request batcher: each item gets its own result or error, whatever batch it is in."""

import asyncio
import threading
from collections.abc import Sequence

from services.api.request_batcher import MAX_BATCH, RequestBatcher
from shared.errors import NotFound, TenorError, Unavailable


class Doubler:
    """Doubler numbers and records the batches. An odd number is not found; the poison number fails its whole batch."""

    def __init__(self, poison: int | None = None, unavailable: bool = False) -> None:
        self.batches: list[list[int]] = []
        self.running, self.max_running = 0, 0
        self._poison, self._unavailable = poison, unavailable
        self._lock = threading.Lock()

    def __call__(self, numbers: Sequence[int]) -> list[int | TenorError]:
        with self._lock:
            self.batches.append(list(numbers))
            self.running += 1
            self.max_running = max(self.max_running, self.running)
        try:
            if self._unavailable:
                raise Unavailable("the database cannot be reached")
            if self._poison in numbers:
                raise ValueError("poison")
            return [NotFound(str(number)) if number % 2 else 2 * number for number in numbers]
        finally:
            with self._lock:
                self.running -= 1


def outcomes(doubler: Doubler, numbers: Sequence[int]) -> list[int | BaseException]:
    async def run() -> list[int | BaseException]:
        batcher = RequestBatcher(doubler)
        return await asyncio.gather(*(batcher.submit(number) for number in numbers), return_exceptions=True)

    return asyncio.run(run())


def test_each_item_gets_its_own_result_or_error() -> None:
    doubler = Doubler()
    for number, outcome in enumerate(outcomes(doubler, range(200))):
        assert isinstance(outcome, NotFound) if number % 2 else outcome == 2 * number
    assert sorted(number for batch in doubler.batches for number in batch) == list(range(200))


def test_an_item_that_arrives_as_the_last_batch_ends_is_processed() -> None:
    async def run() -> list[int]:
        batcher = RequestBatcher(Doubler())
        return [await batcher.submit(number) for number in range(0, 20, 2)]

    assert asyncio.run(asyncio.wait_for(run(), timeout=10)) == list(range(0, 40, 4))


def test_concurrent_items_share_few_batches_that_run_one_at_a_time() -> None:
    doubler = Doubler()
    outcomes(doubler, range(200))
    assert max(map(len, doubler.batches)) <= MAX_BATCH
    assert len(doubler.batches) < 20
    assert doubler.max_running == 1


def test_an_unexpected_error_fails_the_faulty_item_alone() -> None:
    found = outcomes(Doubler(poison=6), range(0, 20, 2))
    assert isinstance(found.pop(3), ValueError)
    assert found == [2 * number for number in range(0, 20, 2) if number != 6]


def test_an_error_of_the_whole_batch_fails_every_item_and_is_not_retried() -> None:
    doubler = Doubler(unavailable=True)
    assert all(isinstance(outcome, Unavailable) for outcome in outcomes(doubler, range(10)))
    assert sum(map(len, doubler.batches)) == 10


def test_a_cancelled_item_does_not_affect_the_others() -> None:
    async def run() -> int:
        batcher = RequestBatcher(Doubler())
        gone, waiting = (asyncio.create_task(batcher.submit(number)) for number in (2, 4))
        await asyncio.sleep(0)
        gone.cancel()
        return await waiting

    assert asyncio.run(run()) == 8


def test_the_batcher_works_again_after_a_pause() -> None:
    async def run() -> list[int]:
        batcher, found = RequestBatcher(Doubler()), []
        for number in (0, 2, 4):
            found.append(await batcher.submit(number))
            await asyncio.sleep(0.01)
        return found

    assert asyncio.run(run()) == [0, 4, 8]
