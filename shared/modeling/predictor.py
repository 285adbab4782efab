"""Emotion predictors: encode the text and the audio of turns and predict an emotion, by the models of a bundle.

Each step takes a batch and returns for every item what it would return for that item alone.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, islice, pairwise
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shared.audio.decoder import Samples
from shared.domain.bundle import Component, ModelBundle
from shared.domain.emotion import EmotionScores, LabelSpace, Modality
from shared.domain.prediction import AbstentionReason, Prediction
from shared.errors import BundleError
from shared.modeling.audio_classifiers import AudioClassifier
from shared.modeling.baseline import AudioSummary, SpeakerBaseline, summarize_audio
from shared.modeling.execution import Execution
from shared.modeling.fusion import FusionEnsemble, FusionOutput
from shared.modeling.lazy_model import LazyModel
from shared.modeling.loading import (
    AnySpeechEncoder,
    AnyTextEncoder,
    load_classifier,
    load_fusion,
    load_speech_encoder,
    load_text_encoder,
)
from shared.modeling.tokens import Tokens

MAX_ENCODED_ROWS = 32
"""Most windows of texts that are encoded at once, which limits the memory that long texts need."""
NEUTRAL = "neutral"
"""The category of texts without emotion, in the label spaces that have one."""


def no_prediction(reason: AbstentionReason) -> Prediction:
    """Returns the prediction for a turn that has no input for the models."""
    return Prediction(
        scores=None,
        text_only=None,
        audio_only=None,
        confidence=0.0,
        abstained=True,
        incongruence=None,
        modalities_used=(),
        reason=reason,
    )


@dataclass(frozen=True)
class TextInput:
    """The text of a turn, and its context: the texts of the session's turns before it, the oldest first."""

    text: str
    context: Sequence[str] = ()


@dataclass(frozen=True, eq=False)
class EncodedText:
    """The text of a turn after encoding.

    Attributes:
        windows: features of the tokens of each window of the text, without those of its context, each of shape
            [tokens, width]. Most texts have one window.
        context_turns: how many turns before were read together with the text.
        unread: how many of the text's letters and digits were left out, because the vocabulary lacks them.
    """

    windows: tuple[Tensor, ...]
    context_turns: int = 0
    unread: int = 0


@dataclass(frozen=True, eq=False)
class EncodedTurn:
    """A turn after encoding. At least one of text and audio is not None.

    Attributes:
        text: as `EmotionPredictor.encode_text` returned it.
        audio: as `EmotionPredictor.encode_audio` returned it.
        earlier: audio summaries of the speaker's earlier turns, made by the same bundle, in any order.
        text_weight: from 0 to 1, how far the text is trusted; see `Transcript.text_weight`.
    """

    text: EncodedText | None
    audio: Tensor | None
    earlier: Sequence[AudioSummary] = ()
    text_weight: float = 1.0


@dataclass(frozen=True, eq=False)
class _Row:
    """A row of the batch that is fused: features of a window of text, of audio, or of both."""

    text: Tensor | None
    audio: Tensor | None
    earlier: Sequence[AudioSummary] = ()


class EmotionPredictor(Protocol):
    """The emotion models of a bundle. Threads may share a predictor."""

    @property
    def context_turns(self) -> int:
        """How many turns before a turn the text encoder reads as context."""
        ...

    def can_encode(self, text: str) -> bool:
        """Whether `encode_text` accepts this text."""
        ...

    def encode_text(self, turns: Sequence[TextInput]) -> list[EncodedText]:
        """Returns each turn's text, encoded."""
        ...

    def encode_audio(self, clips: Sequence[Samples]) -> list[Tensor]:
        """Returns features of clips in which somebody speaks, each of shape [samples]; shape [tokens, ...]."""
        ...

    def fuse(self, turns: Sequence[EncodedTurn]) -> list[tuple[Prediction, AudioSummary | None]]:
        """Returns each turn's prediction, and its audio summary if it has audio and the bundle keeps baselines."""
        ...


def load_predictor(folder: Path, bundle: ModelBundle, execution: Execution) -> EmotionPredictor:
    """Returns the predictor of the bundle in `folder`. Models of audio are loaded when the first audio is encoded.

    Raises:
        BundleError: a model is of an unknown kind, or does not fit its manifest, or the bundle reads more turns as
            context than its text encoder was trained with.
    """
    match bundle:
        case ModelBundle(classifier=Component() as classifier):
            space = bundle.label_space
            return ClassifierPredictor(bundle, lambda: execution.place(load_classifier(folder, classifier, space)))
        case ModelBundle(
            text_encoder=Component() as text, speech_encoder=Component() as speech, fusion=Component() as fusion
        ):
            text_encoder = load_text_encoder(folder, text)
            if bundle.context_turns > text_encoder.config.context_turns:
                raise BundleError(
                    f"the bundle {bundle.name!r} reads {bundle.context_turns} turns as context, but its text encoder "
                    f"was trained with {text_encoder.config.context_turns}"
                )
            return FusionPredictor(
                bundle,
                execution.place(text_encoder),
                execution.place(load_fusion(folder, fusion)),
                lambda: execution.place(load_speech_encoder(folder, speech)),
                execution.device,
            )
        case _:
            raise BundleError(f"the bundle {bundle.name!r} has no models")


class FusionPredictor:
    """Encodes text and audio and fuses them."""

    def __init__(
        self,
        bundle: ModelBundle,
        text_encoder: AnyTextEncoder,
        fusion: FusionEnsemble,
        load_speech_encoder: Callable[[], AnySpeechEncoder],
        device: str = "cpu",
    ) -> None:
        self._bundle = bundle
        self._text_encoder = text_encoder
        self._fusion = fusion
        self._speech_encoder = LazyModel(load_speech_encoder)
        self._device = device

    @property
    def context_turns(self) -> int:
        return self._bundle.context_turns

    def can_encode(self, text: str) -> bool:
        return self._text_encoder.can_encode(text)

    @torch.inference_mode()
    def encode_text(self, turns: Sequence[TextInput]) -> list[EncodedText]:
        tokenizer = self._text_encoder.turn_tokenizer
        texts = [tokenizer.read(turn.text) for turn in turns]
        windows = [tokenizer.windows(text) for text in texts]
        # A text that fills several windows leaves no room for context.
        contexts = [self._usable(turn) if len(own) == 1 else () for turn, own in zip(turns, windows, strict=True)]
        rows = [(window, context) for own, context in zip(windows, contexts, strict=True) for window in own]
        features = iter(self._encode_rows(rows))
        return [
            EncodedText(tuple(islice(features, len(own))), len(context), text.unread)
            for text, own, context in zip(texts, windows, contexts, strict=True)
        ]

    def _encode_rows(self, rows: Sequence[tuple[str, Sequence[str]]]) -> list[Tensor]:
        encoded: list[Tensor] = []
        for first in range(0, len(rows), MAX_ENCODED_ROWS):
            part = rows[first : first + MAX_ENCODED_ROWS]
            encoded += self._text_encoder([text for text, _ in part], [context for _, context in part]).unpadded()
        return encoded

    @torch.inference_mode()
    def encode_audio(self, clips: Sequence[Samples]) -> list[Tensor]:
        return self._speech_encoder.get()(clips).unpadded()

    @torch.inference_mode()
    def fuse(self, turns: Sequence[EncodedTurn]) -> list[tuple[Prediction, AudioSummary | None]]:
        config = self._fusion.config
        rows_of_turns = [_rows(turn) for turn in turns]
        rows = [row for rows in rows_of_turns for row in rows]
        text = self._tokens([row.text for row in rows], (config.text_width,))
        audio = self._tokens([row.audio for row in rows], (config.audio_layers, config.audio_width))
        earlier = [row.earlier if config.relative else () for row in rows]
        baseline = SpeakerBaseline.from_summaries(earlier, config.summary_shape, self._device)
        output = self._fusion(text, audio, baseline)
        summaries = summarize_audio(audio).cpu().numpy().astype(np.float16)
        results: list[tuple[Prediction, AudioSummary | None]] = []
        edges = pairwise(accumulate(map(len, rows_of_turns), initial=0))
        for turn, own, (first, end) in zip(turns, rows_of_turns, edges, strict=True):
            scores = self._scores(own, FusionOutput(output.logits[first:end], output.valence[first:end]))
            has_baseline = turn.audio is not None and config.relative
            prediction = _predict(self._bundle, turn, own, scores, len(turn.earlier) if has_baseline else 0)
            results.append((prediction, summaries[end - 1] if has_baseline else None))
        return results

    def _scores(self, rows: Sequence[_Row], output: FusionOutput) -> list[EmotionScores]:
        dimensions = [dict.fromkeys(self._bundle.label_space.dimensions, float(value)) for value in output.valence]
        return _scores(self._bundle, rows, output.logits, dimensions)

    def _usable(self, turn: TextInput) -> Sequence[str]:
        """The last `context_turns` texts that fit, without those that the text encoder cannot encode."""
        # Without this condition, [-0:] would be the whole context.
        if not self.context_turns:
            return ()
        last = [text for text in turn.context[-self.context_turns :] if self.can_encode(text)]
        return self._text_encoder.turn_tokenizer.fitting(turn.text, last)

    def _tokens(self, features: Sequence[Tensor | None], shape: tuple[int, ...]) -> Tokens:
        empty = torch.zeros(0, *shape, device=self._device)
        return Tokens.padded([empty if row is None else row for row in features])


class ClassifierPredictor:
    """Classifies audio alone. It encodes no text and keeps no baseline."""

    context_turns = 0

    def __init__(self, bundle: ModelBundle, load_classifier: Callable[[], AudioClassifier]) -> None:
        self._bundle = bundle
        self._classifier = LazyModel(load_classifier)

    def can_encode(self, text: str) -> bool:
        return False

    def encode_text(self, turns: Sequence[TextInput]) -> list[EncodedText]:
        raise ValueError("this bundle has no text encoder")

    @torch.inference_mode()
    def encode_audio(self, clips: Sequence[Samples]) -> list[Tensor]:
        return list(self._classifier.get()(clips)[:, None])

    def fuse(self, turns: Sequence[EncodedTurn]) -> list[tuple[Prediction, AudioSummary | None]]:
        return [(self._predict(turn, turn.audio), None) for turn in turns if turn.audio is not None]

    def _predict(self, turn: EncodedTurn, logits: Tensor) -> Prediction:
        rows = [_Row(None, logits)]
        return _predict(self._bundle, turn, rows, _scores(self._bundle, rows, logits, [{}]), baseline_turns=0)


def incongruence(text_only: EmotionScores, audio_only: EmotionScores) -> float:
    """Returns the Jensen-Shannon distance of the two categorical distributions, from 0 (equal) to 1.

    The distance is the square root of the Jensen-Shannon divergence in bits (Lin 1991).
    """
    p = np.array(list(text_only.categories.values()))
    q = np.array(list(audio_only.categories.values()))
    middle = (p + q) / 2

    def divergence(a: NDArray[np.float64]) -> float:
        positive = a > 0
        return float(np.sum(a[positive] * np.log2(a[positive] / middle[positive])))

    return float(np.sqrt(np.clip((divergence(p) + divergence(q)) / 2, 0.0, 1.0)))


def _rows(turn: EncodedTurn) -> list[_Row]:
    """The rows that are fused for a turn: each window of text with the audio, each window alone, the audio alone."""
    windows = () if turn.text is None else turn.text.windows
    alone = [_Row(window, None) for window in windows]
    if turn.audio is None:
        return alone
    return [
        *(_Row(window, turn.audio, turn.earlier) for window in windows),
        *alone,
        _Row(None, turn.audio, turn.earlier),
    ]


def _scores(
    bundle: ModelBundle, rows: Sequence[_Row], logits: Tensor, dimensions: Sequence[dict[str, float]]
) -> list[EmotionScores]:
    """Returns the calibrated scores of rows with these logits, shape [rows, categories], and dimensions."""
    scores: list[EmotionScores] = []
    for row, of_row, values in zip(rows, logits.cpu(), dimensions, strict=True):
        temperature = bundle.calibration.temperature_of(text=row.text is not None, audio=row.audio is not None)
        probabilities = [float(value) for value in torch.softmax(of_row.double() / temperature, dim=-1)]
        categories = dict(zip(bundle.label_space.categories, probabilities, strict=True))
        scores.append(EmotionScores(label_space=bundle.label_space.name, categories=categories, dimensions=values))
    return scores


def _predict(
    bundle: ModelBundle,
    turn: EncodedTurn,
    rows: Sequence[_Row],
    scores: Sequence[EmotionScores],
    baseline_turns: int,
) -> Prediction:
    """Returns a turn's prediction from the scores of its rows, see `_rows`."""
    has_text, has_audio = turn.text is not None, turn.audio is not None
    text_windows = [of for row, of in zip(rows, scores, strict=True) if row.audio is None]
    both_windows = [of for row, of in zip(rows, scores, strict=True) if row.text is not None and row.audio is not None]
    weights = _window_weights(text_windows)
    text_only = _mixed(text_windows, weights) if has_text else None
    audio_only = scores[-1] if has_audio else None
    read = _mixed(both_windows, weights) if has_text and has_audio else text_only or scores[-1]
    if has_text and turn.text_weight < 1:
        without = audio_only or _uninformed(bundle.label_space)
        read = _mixed([read, without], [turn.text_weight, 1 - turn.text_weight])
    confidence = read.categories[read.top]
    abstained = confidence < bundle.calibration.abstain_below
    used = ((Modality.text, has_text), (Modality.audio, has_audio))
    return Prediction(
        scores=read,
        text_only=text_only,
        audio_only=audio_only,
        confidence=confidence,
        abstained=abstained,
        incongruence=incongruence(text_only, audio_only) if text_only and audio_only else None,
        modalities_used=tuple(modality for modality, is_used in used if is_used),
        baseline_turns=baseline_turns,
        context_turns=0 if turn.text is None else turn.text.context_turns,
        reason=AbstentionReason.too_uncertain if abstained else None,
    )


def _window_weights(windows: Sequence[EmotionScores]) -> list[float]:
    """Returns the weights of a text's windows, which sum to 1: the more emotion a window expresses, the higher.

    The emotion of a long text is that of its emotional sentences, however many plain ones surround them. The weight is
    the squared probability that a window is not neutral: with the probability itself, forty plain windows outweigh one
    angry window (docs/quality.md). In a label space without `neutral`, all windows weigh the same.
    """
    emotional = [max(1 - of.categories.get(NEUTRAL, 0.0), 1e-6) ** 2 for of in windows]
    return [weight / sum(emotional) for weight in emotional]


def _mixed(scores: Sequence[EmotionScores], weights: Sequence[float]) -> EmotionScores:
    """Returns the weighted mean of some scores; the weights sum to 1."""
    if len(scores) == 1:
        return scores[0]

    def mean(values: Sequence[dict[str, float]]) -> dict[str, float]:
        return {name: sum(w * of[name] for w, of in zip(weights, values, strict=True)) for name in values[0]}

    return EmotionScores(
        label_space=scores[0].label_space,
        categories=mean([of.categories for of in scores]),
        dimensions=mean([of.dimensions for of in scores]),
    )


def _uninformed(space: LabelSpace) -> EmotionScores:
    """The scores of a turn of which nothing is known."""
    count = len(space.categories)
    return EmotionScores(
        label_space=space.name,
        categories=dict.fromkeys(space.categories, 1 / count),
        dimensions=dict.fromkeys(space.dimensions, 0.0),
    )
