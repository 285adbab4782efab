"""The pipeline's stages as this process runs them: those of many turns together, each on its own thread."""

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
from workers.batching import MicroBatcher

Item = TypeVar("Item")
Result = TypeVar("Result")


class BulkThrottle:
    """Bulk turns stand back before each stage while an interactive turn is under way, but for `longest_s` at most.

    Going first into the next batch is not enough where all stages share a few cores: one that is busy with bulk slows
    down the others.
    """

    def __init__(self, longest_s: float) -> None:
        self._longest_s = longest_s
        self._under_way = 0
        self._changed = threading.Condition()

    @contextmanager
    def expected(self) -> Generator[None]:
        """Meanwhile, an interactive turn is under way."""
        with self._changed:
            self._under_way += 1
        try:
            yield
        finally:
            with self._changed:
                self._under_way -= 1
                self._changed.notify_all()

    def stand_back(self) -> None:
        """Wait until no interactive turn is under way, or long enough."""
        with self._changed:
            self._changed.wait_for(lambda: not self._under_way, self._longest_s)


class Stages:
    """A micro-batcher for every stage that gains by one.

    The others run on the turns' own threads, as decoding does: the voice activity detector is recurrent and takes one
    clip at a time, so that threads are all that makes it faster.
    """

    def __init__(self, pipeline: Pipeline, limits: Batches, courtesy_s: float) -> None:
        stages: tuple[Stage[Any, Any], ...] = (pipeline.transcribe, pipeline.text, pipeline.speech, pipeline.fuse)
        self._batchers = {
            # What PyTorch keeps in store on a device, CTranslate2 cannot use.
            stage.name: MicroBatcher[Any, Any](
                stage.name, stage.run, getattr(limits, stage.name), stage.size, release_cached_memory
            )
            for stage in stages
        }
        self._courtesy = BulkThrottle(courtesy_s)

    @contextmanager
    def turn(self, lane: Lane) -> Generator[StageRunner]:
        """How a turn of a lane goes through a stage, as long as it is under way."""
        if lane is Lane.bulk:
            yield self.lane(lane)
        else:
            with self._courtesy.expected():
                yield self.lane(lane)

    def lane(self, lane: Lane, timeout_s: float | None = None) -> StageRunner:
        """How a turn of a lane goes through a stage.

        Args:
            lane: the turn's.
            timeout_s: longest time in one stage; after it the turn fails with Unavailable.
        """

        def submit(stage: Stage[Item, Result], item: Item, /) -> Callable[[], Result]:
            if lane is Lane.bulk:
                self._courtesy.stand_back()
            if batcher := self._batchers.get(stage.name):
                return batcher.submit(item, lane, timeout_s)
            with start_as_current_span(stage.name), STAGE_SECONDS.labels(stage.name).time():
                return run_immediately(stage, item)

        return submit

    def close(self) -> None:
        """Run what was handed in, and end."""
        for batcher in self._batchers.values():
            batcher.close()
