"""Emotion predictors: encode the text and the audio of turns and predict an emotion, by the models of a bundle.

Each step takes a batch and returns for every item what it would return for that item alone.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
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
        features: of the text's tokens without those of its context, shape [tokens, width].
        context_turns: how many turns before were read together with the text.
    """

    features: Tensor
    context_turns: int


@dataclass(frozen=True, eq=False)
class EncodedTurn:
    """A turn after encoding. At least one of text and audio is not None.

    Attributes:
        text: as `EmotionPredictor.encode_text` returned it.
        audio: as `EmotionPredictor.encode_audio` returned it.
        earlier: audio summaries of the speaker's earlier turns, made by the same bundle, in any order.
    """

    text: EncodedText | None
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
        contexts = [self._usable(turn.context) for turn in turns]
        features = self._text_encoder([turn.text for turn in turns], contexts).unpadded()
        return [EncodedText(row, len(context)) for row, context in zip(features, contexts, strict=True)]

    @torch.inference_mode()
    def encode_audio(self, clips: Sequence[Samples]) -> list[Tensor]:
        return self._speech_encoder.get()(clips).unpadded()

    @torch.inference_mode()
    def fuse(self, turns: Sequence[EncodedTurn]) -> list[tuple[Prediction, AudioSummary | None]]:
        config = self._fusion.config
        rows_of_turns = [_rows(turn) for turn in turns]
        rows = [row for rows in rows_of_turns for row in rows]
        features = [None if row.text is None else row.text.features for row in rows]
        text = self._tokens(features, (config.text_width,))
        audio = self._tokens([row.audio for row in rows], (config.audio_layers, config.audio_width))
        earlier = [row.earlier if config.relative else () for row in rows]
        baseline = SpeakerBaseline.from_summaries(earlier, config.summary_shape, self._device)
        output = self._fusion(text, audio, baseline)
        summaries = summarize_audio(audio).cpu().numpy().astype(np.float16)
        results: list[tuple[Prediction, AudioSummary | None]] = []
        edges = pairwise(accumulate(map(len, rows_of_turns), initial=0))
        for turn, (first, end) in zip(turns, edges, strict=True):
            prediction = self._predict(turn, FusionOutput(output.logits[first:end], output.valence[first:end]))
            has_summary = turn.audio is not None and config.relative
            results.append((prediction, summaries[first] if has_summary else None))
        return results

    def _predict(self, turn: EncodedTurn, output: FusionOutput) -> Prediction:
        dimensions = [dict.fromkeys(self._bundle.label_space.dimensions, float(value)) for value in output.valence]
        has_text, has_audio = turn.text is not None, turn.audio is not None
        baseline_turns = len(turn.earlier) if has_audio and self._fusion.config.relative else 0
        context_turns = 0 if turn.text is None else turn.text.context_turns
        return _predict(self._bundle, output.logits, dimensions, has_text, has_audio, baseline_turns, context_turns)

    def _usable(self, context: Sequence[str]) -> Sequence[str]:
        """The last `context_turns` texts, without those that the text encoder cannot encode."""
        # Without the first condition, [-0:] would be the whole context.
        return [text for text in context[-self.context_turns :] if self.can_encode(text)] if self.context_turns else []

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
        logits = [turn.audio for turn in turns if turn.audio is not None]
        return [(_predict(self._bundle, row, [{}], False, True), None) for row in logits]


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


def _rows(turn: EncodedTurn) -> list[EncodedTurn]:
    """The rows of the batch that are fused for a turn: the turn, and if it has both modalities, each of them alone."""
    if turn.text is None or turn.audio is None:
        return [turn]
    return [turn, EncodedTurn(turn.text, None), EncodedTurn(None, turn.audio, turn.earlier)]


def _predict(
    bundle: ModelBundle,
    logits: Tensor,
    dimensions: Sequence[dict[str, float]],
    has_text: bool,
    has_audio: bool,
    baseline_turns: int = 0,
    context_turns: int = 0,
) -> Prediction:
    """Returns a turn's prediction from the logits and dimensions of its rows, see `_rows`."""
    calibration = bundle.calibration
    has_both = has_text and has_audio
    first = calibration.temperature_of(text=has_text, audio=has_audio)
    temperatures = [first, calibration.text_temperature, calibration.audio_temperature]
    rows = [
        _scores(bundle.label_space, row, values, temperature)
        for row, values, temperature in zip(logits.cpu(), dimensions, temperatures, strict=False)
    ]
    scores = rows[0]
    text_only = rows[1] if has_both else scores if has_text else None
    audio_only = rows[2] if has_both else scores if has_audio else None
    confidence = scores.categories[scores.top]
    abstained = confidence < calibration.abstain_below
    used = ((Modality.text, has_text), (Modality.audio, has_audio))
    return Prediction(
        scores=scores,
        text_only=text_only,
        audio_only=audio_only,
        confidence=confidence,
        abstained=abstained,
        incongruence=incongruence(text_only, audio_only) if text_only and audio_only else None,
        modalities_used=tuple(modality for modality, is_used in used if is_used),
        baseline_turns=baseline_turns,
        context_turns=context_turns,
        reason=AbstentionReason.too_uncertain if abstained else None,
    )


def _scores(space: LabelSpace, logits: Tensor, dimensions: dict[str, float], temperature: float) -> EmotionScores:
    probabilities = torch.softmax(logits.double() / temperature, dim=-1).numpy(force=True)
    return EmotionScores(
        label_space=space.name,
        categories=dict(zip(space.categories, map(float, probabilities), strict=True)),
        dimensions=dimensions,
    )
