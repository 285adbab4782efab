"""Runs the stages of the pipeline: the turns of many threads in one micro-batcher for each stage that gains by it."""

import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, TypeVar

from shared.domain.job import Lane
from shared.modeling.execution import release_cached_memory
from shared.modeling.pipeline import Pipeline, Stage, StageRunner, run_immediately
from shared.observability.metrics import STAGE_SECONDS
from shared.observability.tracing import start_as_current_span
from shared.settings import Batches
from workers.micro_batcher import MicroBatcher

Item = TypeVar("Item")
Result = TypeVar("Result")


class BulkThrottle:
    """Pauses bulk turns before each stage while an interactive turn is analysed, for `max_pause_s` at most.

    That interactive items go first into the next batch is not enough where all stages share a few cores: a stage that
    is busy with bulk items slows down the other ones.
    """

    def __init__(self, max_pause_s: float) -> None:
        self._max_pause_s = max_pause_s
        self._interactive = 0
        self._changed = threading.Condition()

    @contextmanager
    def interactive_turn(self) -> Generator[None]:
        """Pause bulk turns within this context."""
        with self._changed:
            self._interactive += 1
        try:
            yield
        finally:
            with self._changed:
                self._interactive -= 1
                self._changed.notify_all()

    def pause_bulk(self) -> None:
        """Wait until no interactive turn is analysed, or until the longest pause is over."""
        with self._changed:
            self._changed.wait_for(lambda: not self._interactive, self._max_pause_s)


class Stages:
    """Runs the stages of all turns: in a micro-batcher where batches make a stage faster, else on the turn's thread.

    The voice activity detector is recurrent and takes one clip at a time, so only threads make it faster.

    Args:
        pipeline: whose stages are run.
        limits: the limits of each stage's batches.
        max_bulk_pause_s: longest pause of a bulk turn before each stage; see `BulkThrottle`.
    """

    def __init__(self, pipeline: Pipeline, limits: Batches, max_bulk_pause_s: float) -> None:
        stages: tuple[Stage[Any, Any], ...] = (pipeline.transcribe, pipeline.text, pipeline.speech, pipeline.fuse)
        self._batchers = {
            # CTranslate2 cannot use the memory that PyTorch caches on a device.
            stage.name: MicroBatcher[Any, Any](
                stage.name, stage.run, getattr(limits, stage.name), stage.size, release_cached_memory
            )
            for stage in stages
        }
        self._bulk_throttle = BulkThrottle(max_bulk_pause_s)

    @contextmanager
    def turn(self, lane: Lane) -> Generator[StageRunner]:
        """Yield the function that runs a turn's stages. Bulk turns pause while a turn of another lane is within."""
        if lane is Lane.bulk:
            yield self.stage_runner(lane)
        else:
            with self._bulk_throttle.interactive_turn():
                yield self.stage_runner(lane)

    def stage_runner(self, lane: Lane, timeout_s: float | None = None) -> StageRunner:
        """Return the function that runs the stages of a lane's turns.

        Args:
            lane: the turns' lane.
            timeout_s: longest time in one stage. After it the result raises Unavailable.
        """

        def submit(stage: Stage[Item, Result], item: Item, /) -> Callable[[], Result]:
            if lane is Lane.bulk:
                self._bulk_throttle.pause_bulk()
            if batcher := self._batchers.get(stage.name):
                return batcher.submit(item, lane, timeout_s)
            with start_as_current_span(stage.name), STAGE_SECONDS.labels(stage.name).time():
                return run_immediately(stage, item)

        return submit

    def close(self) -> None:
        """Run the items that wait, and end the threads."""
        for batcher in self._batchers.values():
            batcher.close()
