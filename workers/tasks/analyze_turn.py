"""Analyses a turn: decodes its audio, and runs the models on its text and its audio."""

from collections.abc import Callable, Sequence

import numpy as np

from shared.audio.decoder import DecodedAudio
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
from workers.job_runner import ResultWriter, StageEntered
from workers.stages import Stages

_SUMMARY_TYPE = np.dtype("<f2")
"""How the numbers of an audio summary are stored: little-endian on every machine."""


class AnalyzeTurn:
    """Analyses turns.

    Args:
        audio: decodes the recordings.
    """

    def __init__(
        self,
        settings: Settings,
        blobs: Blobs,
        pipeline: Pipeline,
        stages: Stages,
        audio: AudioSandbox,
    ) -> None:
        self._settings = settings
        self._blobs = blobs
        self._pipeline = pipeline
        self._stages = stages
        self._audio = audio

    def read(self, transaction: Transaction, job: Job) -> TurnWork:
        """Return the turn, the texts of the turns before it, and the audio summaries of its speaker's earlier turns."""
        return transaction.turn_results.read_work(job, self._pipeline.bundle.id, self._pipeline.context_turns)

    def do(self, job: Job, work: TurnWork, on_stage: StageEntered) -> ResultWriter:
        """Run the models on the turn.

        Raises:
            RequestError: the audio cannot be used, or was deleted.
        """
        with self._stages.turn(job.lane) as submit:
            audio = self._decode(work, on_stage)
            analysis = self._pipeline.analyze(
                samples=None if audio is None else audio.samples,
                text=work.turn.text,
                language=work.language_hint,
                earlier=[np.frombuffer(stored, _SUMMARY_TYPE).astype(np.float16) for stored in work.earlier_summaries],
                context=work.context,
                earlier_languages=work.earlier_languages,
                submit=_with_stage(on_stage, submit),
            )
        transcript = analysis.transcript
        if transcript is not None and audio is not None and work.turn.text is None:
            transcript = transcript.later(audio.start_s)
        warnings = (*(() if audio is None else audio.warnings), *analysis.prediction.warnings)
        prediction = analysis.prediction.model_copy(update={"warnings": warnings})
        summary = None if analysis.audio_summary is None else analysis.audio_summary.astype(_SUMMARY_TYPE).tobytes()

        def write(transaction: Transaction) -> Sequence[Message]:
            result = (transcript, prediction, summary)
            transaction.turn_results.write(work.turn.id, self._pipeline.bundle.id, *result)
            return ()

        return write

    def _decode(self, work: TurnWork, on_stage: StageEntered) -> DecodedAudio | None:
        if work.recording is None:
            return None
        on_stage("decode")
        if work.recording.uri is None:
            raise RecordingGone("the recording was deleted before it was analysed")
        with (
            start_as_current_span("decode"),
            STAGE_SECONDS.labels("decode").time(),
            self._blobs.open(work.recording.uri) as recording,
        ):
            return self._audio.decode(recording, self._settings.audio.max_turn_s)


def _with_stage(on_stage: StageEntered, submit: StageRunner) -> StageRunner:
    """Return `submit` with calls of `on_stage`, both when an item is submitted and when its result is read."""

    def run_stage(stage: Stage[Item, Result], item: Item, /) -> Callable[[], Result]:
        on_stage(stage.name)
        wait = submit(stage, item)

        def result() -> Result:
            # Other stages may have been submitted meanwhile.
            on_stage(stage.name)
            return wait()

        return result

    return run_stage
