"""The pipeline without a server: recordings or a text in, rows out."""

from collections.abc import Iterator
from pathlib import Path
from typing import Self

from pydantic import BaseModel

from shared.audio.decoder import SAMPLE_RATE, Samples
from shared.audio.sandbox import AudioSandbox
from shared.domain.emotion import Modality
from shared.domain.turn import MAX_BASELINE_TURNS
from shared.errors import NotFound, SetupError, TenorError
from shared.modeling.baseline import Summary
from shared.modeling.pipeline import Analysis, Pipeline, load_pipeline
from shared.modeling.vad import LONGEST_TURN_S, Span, utterances
from shared.settings import Settings


class Row(BaseModel):
    """One turn, as `tenor analyze --format jsonl` prints it. Times in seconds within the file."""

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

    @classmethod
    def of(
        cls,
        analysis: Analysis,
        speaker: str,
        file: str | None = None,
        start: float | None = None,
        end: float | None = None,
    ) -> Self:
        transcript, reading = analysis.transcript, analysis.reading
        return cls(
            file=file,
            start=start,
            end=end,
            speaker=speaker,
            text="" if transcript is None else transcript.text,
            language=None if transcript is None else transcript.language,
            emotion=reading.emotion,
            scores=None if reading.scores is None else reading.scores.categories,
            valence=reading.valence,
            confidence=reading.confidence,
            abstained=reading.abstained,
            incongruence=reading.incongruence,
            modalities_used=reading.modalities_used,
            baseline_turns=reading.baseline_turns,
        )


class Analyzer:
    """The models, loaded once.

    In a conversation the turns of all files are one speaker's, in the order given, and each voice is read against those
    before it; else every turn is a stranger's.

    Raises:
        SetupError: they cannot be loaded.
    """

    def __init__(self, settings: Settings, speaker: str, language: str | None, conversation: bool = False) -> None:
        self._pipeline: Pipeline = load_pipeline(settings)
        self._audio = AudioSandbox()
        self._speaker = speaker
        self._language = language
        self._conversation = conversation
        self._heard: list[Summary] = []

    def text(self, text: str) -> list[Row]:
        analysis = self._pipeline.analyze(samples=None, text=text, language=self._language)
        return [Row.of(analysis, self._speaker)]

    def files(self, files: list[Path]) -> Iterator[tuple[Path, list[Row] | TenorError]]:
        """Each file with its rows, or with what is wrong with it.

        Raises:
            SetupError: Whisper is nowhere to be had.
        """
        for file in files:
            try:
                yield file, self._file(file)
            except SetupError:
                raise  # the next file would meet it too
            except TenorError as error:
                yield file, error

    def _file(self, file: Path) -> list[Row]:
        if not file.is_file():
            raise NotFound("this is a folder: name its files" if file.is_dir() else "there is no such file")
        samples = self._audio.decode(file)
        # A name need not be Unicode, but JSON is.
        name = str(file).encode(errors="surrogateescape").decode(errors="backslashreplace")
        rows = []
        for start, end in _turns(samples):
            analysis = self._turn(samples[int(start * SAMPLE_RATE) : int(end * SAMPLE_RATE)])
            rows.append(Row.of(analysis, self._speaker, name, round(start, 3), round(end, 3)))
        return rows

    def _turn(self, samples: Samples) -> Analysis:
        earlier = self._heard[-MAX_BASELINE_TURNS:]
        analysis = self._pipeline.analyze(samples=samples, text=None, language=self._language, earlier=earlier)
        if self._conversation and analysis.voice_summary is not None:
            self._heard.append(analysis.voice_summary)
        return analysis


def _turns(samples: Samples) -> list[Span]:
    """Where to cut a long recording; a short one, or one in which nobody speaks, is one turn."""
    duration = samples.size / SAMPLE_RATE
    return (utterances(samples) if duration > LONGEST_TURN_S else []) or [(0.0, duration)]
