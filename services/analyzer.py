"""Runs the pipeline on turns, without a server: on each alone, or as the turns of conversations."""

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Self

from pydantic import BaseModel

from shared.audio.decoder import Samples
from shared.domain.emotion import EmotionScores, Modality
from shared.domain.prediction import AbstentionReason
from shared.domain.turn import MAX_BASELINE_TURNS, MAX_LANGUAGE_TURNS, context_of
from shared.domain.warning import AnalysisWarning
from shared.modeling.baseline import AudioSummary
from shared.modeling.pipeline import Analysis, Pipeline


@dataclass(frozen=True)
class InputTurn:
    """A turn to analyse: a text, or 16 kHz mono audio of shape [samples].

    Attributes:
        session: the name of its conversation.
        file: the name of the file that it comes from, if any.
        line: its line in that file, from 1, if it is a text.
        start: where its audio starts within the file, in seconds.
        end: likewise.
        warnings: those about its file.
    """

    speaker: str
    text: str | None = None
    samples: Samples | None = None
    session: str | None = None
    file: str | None = None
    line: int | None = None
    start: float | None = None
    end: float | None = None
    warnings: tuple[AnalysisWarning, ...] = ()


class Row(BaseModel):
    """A turn and its prediction, as `tenor analyze --format jsonl` prints it. Times are seconds within the file."""

    file: str | None
    line: int | None
    start: float | None
    end: float | None
    session: str | None
    speaker: str
    text: str
    language: str | None
    language_probability: float | None
    emotion: str | None
    scores: dict[str, float] | None
    text_only: dict[str, float] | None
    audio_only: dict[str, float] | None
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
    def of(cls, turn: InputTurn, analysis: Analysis) -> Self:
        """Return the row of a turn."""
        prediction = analysis.prediction
        return cls(
            file=turn.file,
            line=turn.line,
            start=turn.start,
            end=turn.end,
            session=turn.session,
            speaker=turn.speaker,
            text=_text(analysis),
            language=None if analysis.transcript is None else analysis.transcript.language,
            language_probability=None if analysis.transcript is None else analysis.transcript.language_probability,
            emotion=prediction.emotion,
            scores=_categories(prediction.scores),
            text_only=_categories(prediction.text_only),
            audio_only=_categories(prediction.audio_only),
            valence=prediction.valence,
            confidence=prediction.confidence,
            abstained=prediction.abstained,
            incongruence=prediction.incongruence,
            modalities_used=prediction.modalities_used,
            baseline_turns=prediction.baseline_turns,
            context_turns=prediction.context_turns,
            reason=prediction.reason,
            level_dbfs=prediction.level_dbfs,
            warnings=(*turn.warnings, *prediction.warnings),
        )


@dataclass
class _Session:
    """The earlier turns of a conversation: their texts, their languages, and the audio summaries of each speaker."""

    texts: list[str] = field(default_factory=list[str])
    languages: list[str] = field(default_factory=list[str])
    summaries: defaultdict[str, list[AudioSummary]] = field(default_factory=lambda: defaultdict(list[AudioSummary]))


class Analyzer:
    """Analyses turns.

    Args:
        pipeline: with the models.
        language: BCP 47 tag of the spoken language; None to detect it.
        conversation: whether the turns of a session are one conversation, in order. Each turn then has the baseline and
            the context that it would have in a session of the service. Otherwise every turn stands alone.
        context: whether the turns of a conversation are read with the texts before them.
    """

    def __init__(
        self, pipeline: Pipeline, language: str | None = None, *, conversation: bool = False, context: bool = True
    ) -> None:
        self._pipeline = pipeline
        self._context_turns = pipeline.context_turns if context else 0
        self._language = language
        self._conversation = conversation
        self._sessions = defaultdict[str | None, _Session](_Session)

    def analyze(self, turn: InputTurn) -> Row:
        """Return the row of a turn.

        Raises:
            SetupError: the models cannot be loaded.
        """
        session = self._sessions[turn.session] if self._conversation else _Session()
        summaries = session.summaries[turn.speaker]
        analysis = self._pipeline.analyze(
            samples=turn.samples,
            text=turn.text,
            language=self._language,
            earlier=summaries[-MAX_BASELINE_TURNS:],
            context=context_of(session.texts, self._context_turns),
            earlier_languages=session.languages[-MAX_LANGUAGE_TURNS:],
        )
        session.texts.append(_text(analysis))
        if analysis.transcript is not None and analysis.transcript.certain_language is not None:
            session.languages.append(analysis.transcript.certain_language)
        if analysis.audio_summary is not None:
            summaries.append(analysis.audio_summary)
        return Row.of(turn, analysis)


def _text(analysis: Analysis) -> str:
    return "" if analysis.transcript is None else analysis.transcript.text


def _categories(scores: EmotionScores | None) -> dict[str, float] | None:
    return None if scores is None else scores.categories
