"""A turn is read: its sound decoded, its words and its voice put through the models."""

from collections.abc import Callable, Sequence

import numpy as np

from shared.audio.decoder import Samples
from shared.audio.sandbox import AudioSandbox
from shared.domain.job import Job, Message
from shared.domain.turn import TurnWork
from shared.errors import RecordingGone
from shared.modeling.pipeline import Item, Pipeline, Result, Stage, StageRunner
from shared.observability.metrics import STAGE_SECONDS
from shared.observability.tracing import start_as_current_span
from shared.settings import Settings
from shared.storage.blobs import Blobs
from shared.store.database import Transaction
from workers.job_runner import Enter, Write
from workers.stages import Stages

_STORED = np.dtype("<f2")


class AnalyzeTurn:
    """Analyses turns.

    Args:
        audio: what decodes recordings; by default a pool of this task's own.
    """

    def __init__(
        self,
        settings: Settings,
        blobs: Blobs,
        pipeline: Pipeline,
        stages: Stages,
        audio: AudioSandbox | None = None,
    ) -> None:
        self._settings = settings
        self._blobs = blobs
        self._pipeline = pipeline
        self._stages = stages
        self._audio = audio or AudioSandbox()

    def read(self, transaction: Transaction, job: Job) -> TurnWork:
        """What the turn is, and what came before it."""
        return transaction.turn_results.read_work(job, self._pipeline.bundle.id)

    def do(self, job: Job, work: TurnWork, enter: Enter) -> Write:
        """Put the turn through the models."""
        with self._stages.turn(job.lane) as submit:
            analysis = self._pipeline.analyze(
                samples=self._samples(work, enter),
                text=work.turn.text,
                language=work.language_hint,
                earlier=[np.frombuffer(stored, _STORED).astype(np.float16) for stored in work.earlier_summaries],
                context=work.context,
                submit=_entering(enter, submit),
            )
        summary = None if analysis.audio_summary is None else analysis.audio_summary.astype(_STORED).tobytes()

        def write(transaction: Transaction) -> Sequence[Message]:
            result = (analysis.transcript, analysis.prediction, summary)
            transaction.turn_results.write(work.turn.id, self._pipeline.bundle.id, *result)
            return ()

        return write

    def _samples(self, work: TurnWork, enter: Enter) -> Samples | None:
        if work.recording is None:
            return None
        enter("decode")
        if work.recording.uri is None:
            raise RecordingGone("the recording was deleted before it was analysed")
        with (
            start_as_current_span("decode"),
            STAGE_SECONDS.labels("decode").time(),
            self._blobs.open(work.recording.uri) as recording,
        ):
            return self._audio.decode(recording, self._settings.max_turn_s)


def _entering(enter: Enter, submit: StageRunner) -> StageRunner:
    """Hands in as `submit` does. A stage's time is that of waiting for it, before and after, and of running."""

    def entered(stage: Stage[Item, Result], item: Item, /) -> Callable[[], Result]:
        enter(stage.name)
        wait = submit(stage, item)

        def result() -> Result:
            enter(stage.name)
            return wait()

        return result

    return entered
