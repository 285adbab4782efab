"""Runs the pipeline on audio files or a text, without a server."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Self

from pydantic import BaseModel

from shared.audio.decoder import SAMPLE_RATE, Samples
from shared.audio.sandbox import AudioSandbox
from shared.domain.emotion import Modality
from shared.domain.prediction import AbstentionReason
from shared.domain.turn import MAX_BASELINE_TURNS, context_of
from shared.domain.warning import AnalysisWarning
from shared.errors import NotFound, SetupError, TenorError
from shared.modeling.baseline import AudioSummary
from shared.modeling.pipeline import Analysis, Pipeline
from shared.modeling.segmentation import MAX_UTTERANCE_S, find_utterances
from shared.modeling.vad import TimeSpan


class Row(BaseModel):
    """A turn and its prediction, as `tenor analyze --format jsonl` prints it. Times are seconds within the file."""

    file: str | None
    start: float | None
    end: float | None
    speaker: str
    text: str
    language: str | None
    emotion: str | None
    scores: dict[str, float] | None
    valence: float | None
    confidence: float
    abstained: bool
    incongruence: float | None
    modalities_used: tuple[Modality, ...]
    baseline_turns: int
    context_turns: int
    reason: AbstentionReason | None
    level_dbfs: float | None
    warnings: tuple[AnalysisWarning, ...]

    @classmethod
    def of(
        cls,
        analysis: Analysis,
        speaker: str,
        file: str | None = None,
        start: float | None = None,
        end: float | None = None,
        warnings: tuple[AnalysisWarning, ...] = (),
    ) -> Self:
        """Return the row of a turn. `warnings` are those about its file."""
        reading = analysis.prediction
        return cls(
            file=file,
            start=start,
            end=end,
            speaker=speaker,
            text=_text(analysis),
            language=None if analysis.transcript is None else analysis.transcript.language,
            emotion=reading.emotion,
            scores=None if reading.scores is None else reading.scores.categories,
            valence=reading.valence,
            confidence=reading.confidence,
            abstained=reading.abstained,
            incongruence=reading.incongruence,
            modalities_used=reading.modalities_used,
            baseline_turns=reading.baseline_turns,
            context_turns=reading.context_turns,
            reason=reading.reason,
            level_dbfs=reading.level_dbfs,
            warnings=(*warnings, *reading.warnings),
        )


class Analyzer:
    """Analyses audio files and texts with one pipeline.

    Args:
        pipeline: with the models.
        speaker: name of the speaker.
        language: BCP 47 tag of the spoken language; None to detect it.
        conversation: whether the turns of all files are one speaker's turns of one conversation, in order. Each turn
            then has the baseline and the context that it would have in a session of the service. Otherwise every turn
            stands alone.
        context: whether the turns of a conversation are read with the texts before them.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        speaker: str,
        language: str | None,
        conversation: bool = False,
        context: bool = True,
    ) -> None:
        self._pipeline = pipeline
        self._sandbox = AudioSandbox()
        self._speaker = speaker
        self._language = language
        self._conversation = conversation
        self._context_turns = pipeline.context_turns if context else 0
        self._summaries: list[AudioSummary] = []
        self._texts: list[str] = []

    def close(self) -> None:
        """End the processes that decode audio."""
        self._sandbox.close()

    def text(self, text: str) -> list[Row]:
        """Return the only row of a text."""
        analysis = self._pipeline.analyze(samples=None, text=text, language=self._language)
        return [Row.of(analysis, self._speaker)]

    def files(self, files: Sequence[Path]) -> Iterator[tuple[Path, list[Row] | TenorError]]:
        """Yield each file with the rows of its turns, or with the error that it caused.

        Raises:
            SetupError: the models cannot be loaded.
        """
        for file in files:
            try:
                yield file, self._rows(file)
            except SetupError:
                raise  # every file would cause it
            except TenorError as error:
                yield file, error

    def _rows(self, file: Path) -> list[Row]:
        if not file.is_file():
            raise NotFound("this is a folder: name its files" if file.is_dir() else "there is no such file")
        audio = self._sandbox.decode(file)
        # JSON is Unicode, which a file name need not be.
        name = str(file).encode(errors="surrogateescape").decode(errors="backslashreplace")
        rows: list[Row] = []
        for start, end in _turns(audio.samples):
            analysis = self._analyze_turn(audio.samples[int(start * SAMPLE_RATE) : int(end * SAMPLE_RATE)])
            rows.append(Row.of(analysis, self._speaker, name, round(start, 3), round(end, 3), audio.warnings))
        return rows

    def _analyze_turn(self, samples: Samples) -> Analysis:
        analysis = self._pipeline.analyze(
            samples=samples,
            text=None,
            language=self._language,
            earlier=self._summaries[-MAX_BASELINE_TURNS:],
            context=context_of(self._texts, self._context_turns),
        )
        if self._conversation:
            self._texts.append(_text(analysis))
            if analysis.audio_summary is not None:
                self._summaries.append(analysis.audio_summary)
        return analysis


def _text(analysis: Analysis) -> str:
    return "" if analysis.transcript is None else analysis.transcript.text


def _turns(samples: Samples) -> list[TimeSpan]:
    """Return the spans of the turns of a long recording. A short one, or one without speech, is a single turn."""
    duration = samples.size / SAMPLE_RATE
    return (find_utterances(samples) if duration > MAX_UTTERANCE_S else []) or [(0.0, duration)]
