"""The laws of the micro-batches: every item once, nobody's error another's, no limit exceeded, nobody left behind."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.domain.job import TURN_LANES, Lane
from shared.errors import Unavailable
from shared.settings import Batches, BatchLimits, Settings
from workers.batch_scheduler import BULK_SHARE, MAX_LENGTH_RATIO
from workers.micro_batcher import MicroBatcher

LIMITS = BatchLimits(items=4, budget=100, wait_s=0, waiting=1000, bulk_s=1000)

Item = tuple[int, float]
"""A number that tells it from the others, and a size."""


class Stage:
    """Echoes what it is given, fails on poison, and keeps the batches. Held, it begins none."""

    def __init__(self, poison: frozenset[int] = frozenset(), memory: float = float("inf")) -> None:
        self.batches: list[list[Item]] = []
        self.free = 0
        self._poison, self._memory = poison, memory
        self._gate, self._begun = threading.Event(), threading.Event()
        self._gate.set()

    def run(self, items: Sequence[Item]) -> list[Item]:
        self._begun.set()
        self._gate.wait(10)
        self.batches.append(list(items))
        if cost(items) > self._memory:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
        if self._poison & {number for number, _ in items}:
            raise ValueError("poison")
        return list(items)

    def relieve(self) -> None:
        self.free += 1

    @contextmanager
    def held(self, batcher: MicroBatcher[Item, Item]) -> Iterator[None]:
        """What is handed in here waits together; only what occupies the stage is run before."""
        self._gate.clear()
        self._begun.clear()
        occupied = batcher.submit((-1, 1.0))
        self._begun.wait(10)
        try:
            yield
        finally:
            self._gate.set()
        occupied()
        self.batches.remove([(-1, 1.0)])


@contextmanager
def batching(stage: Stage, limits: BatchLimits = LIMITS) -> Iterator[MicroBatcher[Item, Item]]:
    batcher = MicroBatcher[Item, Item]("test", stage.run, limits, lambda item: item[1], stage.relieve)
    try:
        yield batcher
    finally:
        batcher.close()


def cost(items: Sequence[Item]) -> float:
    return len(items) * max(size for _, size in items)


def outcome(wait: Callable[[], Item]) -> Item | str:
    try:
        return wait()
    except (ValueError, RuntimeError) as error:
        return type(error).__name__


sizes = st.lists(st.floats(0.5, 150), max_size=30)
lanes = st.sampled_from(TURN_LANES)


@given(st.lists(st.tuples(st.floats(0.5, 150), lanes), max_size=30))
@settings(deadline=None, max_examples=50)
def test_every_item_is_run_once_and_its_result_is_its_own(arrivals: list[tuple[float, Lane]]) -> None:
    stage, items = Stage(), [(number, size) for number, (size, _) in enumerate(arrivals)]
    with batching(stage) as batcher:
        with stage.held(batcher):
            waits = [batcher.submit(item, lane) for item, (_, lane) in zip(items, arrivals, strict=True)]
        assert [wait() for wait in waits] == items
    assert sorted(item for batch in stage.batches for item in batch) == items


@given(sizes)
@settings(deadline=None, max_examples=50)
def test_no_batch_exceeds_its_limits_but_an_item_alone(lengths: list[float]) -> None:
    stage = Stage()
    with batching(stage) as batcher:
        with stage.held(batcher):
            waits = [batcher.submit(item) for item in enumerate(lengths)]
        for wait in waits:
            wait()
    for batch in stage.batches:
        alone = [size for _, size in batch]
        assert len(batch) <= LIMITS.items
        assert max(alone) <= MAX_LENGTH_RATIO * min(alone)
        assert len(batch) == 1 or cost(batch) <= LIMITS.budget


@given(sizes, st.sets(st.integers(0, 29)))
@settings(deadline=None, max_examples=50)
def test_an_item_that_raises_fails_alone(lengths: list[float], poison: set[int]) -> None:
    stage = Stage(frozenset(poison))
    with batching(stage) as batcher:
        with stage.held(batcher):
            waits = [batcher.submit(item) for item in enumerate(lengths)]
        outcomes = [outcome(wait) for wait in waits]
    assert outcomes == ["ValueError" if number in poison else (number, size) for number, size in enumerate(lengths)]


@given(st.lists(st.floats(1, 10), min_size=2, max_size=20), st.floats(10, 40))
@settings(deadline=None, max_examples=50)
def test_a_batch_too_large_for_the_memory_is_halved_and_that_size_is_not_tried_again(
    lengths: list[float], memory: float
) -> None:
    stage = Stage(memory=memory)
    with batching(stage, LIMITS.model_copy(update={"items": 16, "budget": 1000.0})) as batcher:
        allowed = 1000.0
        for _ in range(3):
            stage.batches.clear()
            with stage.held(batcher):
                waits = [batcher.submit(item) for item in enumerate(lengths)]
            assert [wait() for wait in waits] == list(enumerate(lengths))
            assert all(cost(batch) <= allowed for batch in stage.batches if len(batch) > 1)
            allowed = min([allowed, *(cost(batch) / 2 for batch in stage.batches if cost(batch) > memory)])
    assert allowed == 1000 or stage.free > 0


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("CUDA failed with error out of memory"), RuntimeError("std::bad_alloc")]
)
def test_an_item_too_large_for_the_memory_fails_alone(error: Exception) -> None:
    def run(items: Sequence[Item]) -> Sequence[Item]:
        if any(size > 50 for _, size in items):
            raise error
        return items

    batcher = MicroBatcher[Item, Item]("test", run, LIMITS, lambda item: item[1])
    large, small = batcher.submit((0, 60.0)), batcher.submit((1, 40.0))
    assert small() == (1, 40.0)
    with pytest.raises(type(error)):
        large()
    batcher.close()


def test_interactive_items_enter_the_next_batch_before_bulk_items() -> None:
    stage = Stage()
    with batching(stage) as batcher, stage.held(batcher):
        for number in range(6):
            batcher.submit((number, 1.0), Lane.bulk)
        for number in range(10, 13):
            batcher.submit((number, 1.0))
    assert [number for number, _ in stage.batches[0]] == [10, 11, 12, 0]


def test_a_batch_is_filled_with_the_items_nearest_in_length() -> None:
    stage = Stage()
    with batching(stage) as batcher, stage.held(batcher):
        for item in enumerate([10.0, 6.0, 15.0, 9.0, 11.0, 40.0, 10.0]):
            batcher.submit(item)
    assert [sorted(size for _, size in batch) for batch in stage.batches] == [
        [9.0, 10.0, 10.0, 11.0],
        [6.0],
        [15.0],
        [40.0],
    ]


@given(st.lists(st.tuples(lanes, st.sampled_from([1.0, 10.0])), min_size=1, max_size=60))
@settings(deadline=None, max_examples=100)
def test_every_item_is_run_within_a_bounded_number_of_batches(arrivals: list[tuple[Lane, float]]) -> None:
    stage = Stage()
    with batching(stage) as batcher, stage.held(batcher):
        for number, (lane, size) in enumerate(arrivals):
            batcher.submit((number, size), lane)
    run_in = {number: place for place, batch in enumerate(stage.batches) for number, _ in batch}
    for lane, batches_an_item in ((Lane.interactive, BULK_SHARE / (BULK_SHARE - 1)), (Lane.bulk, BULK_SHARE)):
        line = [number for number, (its, _) in enumerate(arrivals) if its is lane]
        for before, number in enumerate(line):
            assert run_in[number] + 1 <= -(-(before + 1) * batches_an_item // 1)


def test_bulk_items_are_run_while_interactive_items_never_stop() -> None:
    stage = Stage()
    with batching(stage, LIMITS.model_copy(update={"items": 1})) as batcher, stage.held(batcher):
        batcher.submit((99, 1.0), Lane.bulk)
        for number in range(10):
            batcher.submit((number, 1.0))
    assert [number for ((number, _),) in stage.batches][:BULK_SHARE] == [0, 1, 2, 99]


def test_a_batch_filled_with_bulk_items_stays_within_its_time() -> None:
    batches: list[int] = []

    def run(items: Sequence[Item]) -> Sequence[Item]:
        time.sleep(0.02 * len(items))
        batches.append(len(items))
        return items

    batcher = MicroBatcher[Item, Item]("test", run, LIMITS.model_copy(update={"items": 16, "bulk_s": 0.07}))
    batcher.submit((0, 1.0))()  # tells the pace
    for lane, longest in ((Lane.bulk, 3), (Lane.interactive, 16)):
        waits = [batcher.submit((number, 1.0), lane) for number in range(12)]
        for wait in waits:
            wait()
        assert 1 < max(batches) <= longest
    assert max(batches) > 3
    batcher.close()


def test_submitters_wait_for_room_and_bulk_waits_first() -> None:
    stage = Stage()
    with batching(stage, LIMITS.model_copy(update={"waiting": 4})) as batcher:
        with stage.held(batcher):
            for number in range(2):
                batcher.submit((number, 1.0), Lane.bulk)
            with pytest.raises(Unavailable, match="took no more"):
                batcher.submit((2, 1.0), Lane.bulk, timeout_s=0.01)
            for number in range(4):
                batcher.submit((number, 1.0))
            with pytest.raises(Unavailable, match="took no more"):
                batcher.submit((4, 1.0), timeout_s=0.01)
        assert batcher.submit((5, 1.0), Lane.bulk, timeout_s=5)() == (5, 1.0)


def test_a_caller_that_times_out_withdraws_its_waiting_items() -> None:
    stage = Stage()
    with batching(stage) as batcher:
        with stage.held(batcher):
            wait = batcher.submit((7, 1.0), timeout_s=0.01)
            with pytest.raises(Unavailable, match="in time"):
                wait()
        assert batcher.submit((8, 1.0))() == (8, 1.0)
    assert stage.batches == [[(8, 1.0)]]


def test_items_submitted_before_closing_are_run_and_later_ones_are_refused() -> None:
    stage = Stage()
    batcher = MicroBatcher[Item, Item]("test", stage.run, LIMITS)
    with ThreadPoolExecutor(8) as threads:
        waits = list(threads.map(lambda number: batcher.submit((number, 1.0)), range(50)))
    batcher.close()
    assert [wait() for wait in waits] == [(number, 1.0) for number in range(50)]
    with pytest.raises(Unavailable, match="closed"):
        batcher.submit((0, 1.0))


def test_a_stage_that_returns_too_few_results_fails_its_items_and_goes_on() -> None:
    batcher = MicroBatcher[Item, Item]("test", lambda items: [item for item in items if item[0]], LIMITS)
    with pytest.raises(RuntimeError, match="0 results for 1 items"):
        batcher.submit((0, 1.0))()
    assert batcher.submit((1, 1.0))() == (1, 1.0)
    batcher.close()


def test_one_limit_of_one_stage_is_set_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TENOR_BATCHES_TRANSCRIBE", '{"items": 8}')
    changed, usual = Settings().batches, Batches()
    assert changed.transcribe == usual.transcribe.model_copy(update={"items": 8})
    assert changed.text == usual.text
