"""The pipeline's stages as this process runs them: those of many turns together, each on its own thread."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch

from shared.domain.job import Lane
from shared.modeling.pipeline import Pipeline, Stage, Submit, at_once
from shared.settings import Batches
from shared.telemetry import STAGE_SECONDS
from shared.tracing import span
from workers.batching import MicroBatcher

Item = TypeVar("Item")
Result = TypeVar("Result")


class Stages:
    """A micro-batcher for every stage that gains by one.

    The others run on the turns' own threads, as decoding does: the voice activity detector is recurrent and takes one
    clip at a time, so that threads are all that makes it faster.
    """

    def __init__(self, pipeline: Pipeline, limits: Batches) -> None:
        stages: tuple[Stage[Any, Any], ...] = (pipeline.transcribe, pipeline.text, pipeline.speech, pipeline.fuse)
        self._batchers = {
            # What PyTorch keeps in store on a device, CTranslate2 cannot use.
            stage.name: MicroBatcher[Any, Any](
                stage.name, stage.run, getattr(limits, stage.name), stage.size, torch.cuda.empty_cache
            )
            for stage in stages
        }

    def lane(self, lane: Lane, timeout_s: float | None = None) -> Submit:
        """How a turn of a lane goes through a stage.

        Args:
            lane: the turn's.
            timeout_s: longest time in one stage; after it the turn fails with Unavailable.
        """

        def submit(stage: Stage[Item, Result], item: Item, /) -> Callable[[], Result]:
            if batcher := self._batchers.get(stage.name):
                return batcher.submit(item, lane, timeout_s)
            with span(stage.name), STAGE_SECONDS.labels(stage.name).time():
                return at_once(stage, item)

        return submit

    def close(self) -> None:
        """Run what was handed in, and end."""
        for batcher in self._batchers.values():
            batcher.close()
