"""Work of many requests done at once: to each its own result, to each its own error."""

import asyncio
import threading
from collections.abc import Sequence

from services.api.request_batcher import MAX_BATCH, RequestBatcher
from shared.errors import NotFound, TenorError, Unavailable


class Doubles:
    """Doubles numbers and keeps the batches. Odd ones are not found; a poison one fails its whole batch."""

    def __init__(self, poison: int | None = None, away: bool = False) -> None:
        self.batches: list[list[int]] = []
        self.at_once, self.most_at_once = 0, 0
        self._poison, self._away = poison, away
        self._lock = threading.Lock()

    def __call__(self, numbers: Sequence[int]) -> list[int | TenorError]:
        with self._lock:
            self.batches.append(list(numbers))
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            if self._away:
                raise Unavailable("the database cannot be reached")
            if self._poison in numbers:
                raise ValueError("poison")
            return [NotFound(str(number)) if number % 2 else 2 * number for number in numbers]
        finally:
            with self._lock:
                self.at_once -= 1


def outcomes(doubles: Doubles, numbers: Sequence[int]) -> list[int | BaseException]:
    async def ask() -> list[int | BaseException]:
        together = RequestBatcher(doubles)
        return await asyncio.gather(*(together.do(number) for number in numbers), return_exceptions=True)

    return asyncio.run(ask())


def test_everyone_gets_their_own_result_or_error() -> None:
    doubles = Doubles()
    for number, outcome in enumerate(outcomes(doubles, range(200))):
        assert isinstance(outcome, NotFound) if number % 2 else outcome == 2 * number
    assert sorted(number for batch in doubles.batches for number in batch) == list(range(200))


def test_who_comes_as_the_last_batch_ends_is_served() -> None:
    async def ask() -> list[int]:
        together = RequestBatcher(Doubles())
        return [await together.do(number) for number in range(0, 20, 2)]

    assert asyncio.run(asyncio.wait_for(ask(), timeout=10)) == list(range(0, 40, 4))


def test_what_comes_together_is_done_in_few_batches_one_at_a_time() -> None:
    doubles = Doubles()
    outcomes(doubles, range(200))
    assert max(map(len, doubles.batches)) <= MAX_BATCH
    assert len(doubles.batches) < 20
    assert doubles.most_at_once == 1


def test_an_unforeseen_error_is_only_theirs_who_are_at_fault() -> None:
    found = outcomes(Doubles(poison=6), range(0, 20, 2))
    assert isinstance(found.pop(3), ValueError)
    assert found == [2 * number for number in range(0, 20, 2) if number != 6]


def test_what_ails_the_whole_is_told_to_all_and_not_tried_again() -> None:
    doubles = Doubles(away=True)
    assert all(isinstance(outcome, Unavailable) for outcome in outcomes(doubles, range(10)))
    assert sum(map(len, doubles.batches)) == 10


def test_who_no_longer_waits_does_not_harm_the_others() -> None:
    async def ask() -> int:
        together = RequestBatcher(Doubles())
        gone, waiting = (asyncio.create_task(together.do(number)) for number in (2, 4))
        await asyncio.sleep(0)
        gone.cancel()
        return await waiting

    assert asyncio.run(ask()) == 8


def test_it_works_again_after_a_pause() -> None:
    async def ask() -> list[int]:
        together, found = RequestBatcher(Doubles()), []
        for number in (0, 2, 4):
            found.append(await together.do(number))
            await asyncio.sleep(0.01)
        return found

    assert asyncio.run(ask()) == [0, 4, 8]
