"""Turns' words and voices into readings, by the models of either kind of bundle.

Each step takes a batch, and gives for every turn what it would give for it alone.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from shared.audio.decoder import Samples
from shared.domain.bundle import Component, ModelBundle
from shared.domain.emotion import EmotionScores, LabelSpace, Modality
from shared.domain.prediction import Prediction
from shared.errors import BundleError
from shared.modeling.audio_classifiers import AudioClassifier
from shared.modeling.baseline import SpeakerBaseline, Summary, summaries
from shared.modeling.execution import Execution
from shared.modeling.fusion import Fused, FusionEnsemble
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

NOTHING_TO_READ = Prediction(
    scores=None,
    text_only=None,
    audio_only=None,
    confidence=0.0,
    abstained=True,
    incongruence=None,
    modalities_used=(),
    baseline_turns=0,
)


@dataclass(frozen=True)
class TextInput:
    """Words that are known, and those of the conversation's turns before, whoever spoke, the oldest first."""

    words: str
    context: Sequence[str] = ()


@dataclass(frozen=True, eq=False)
class EncodedTurn:
    """A turn as a reader's encoders leave it; at least one of words and voice is there.

    Attributes:
        words: what `EmotionPredictor.encode_words` gave for them.
        voice: what `EmotionPredictor.encode_voices` gave for it.
        earlier: the summaries that this bundle made of the speaker's earlier turns, in any order.
    """

    words: Tensor | None
    voice: Tensor | None
    earlier: Sequence[Summary] = ()


class EmotionPredictor(Protocol):
    """What a bundle makes of words and voices. Threads may share it."""

    def knows(self, text: str) -> bool:
        """Whether these words can be read."""
        ...

    def encode_words(self, turns: Sequence[TextInput]) -> list[Tensor]:
        """Features of each turn's own words, shape [tokens, ...]."""
        ...

    def encode_voices(self, voices: Sequence[Samples]) -> list[Tensor]:
        """Features of sounds in which somebody speaks, each of shape [samples]; shape [tokens, ...]."""
        ...

    def fuse(self, turns: Sequence[EncodedTurn]) -> list[tuple[Prediction, Summary | None]]:
        """The readings, and what each voice adds to its speaker's baseline where the bundle keeps one."""
        ...


def load_predictor(folder: Path, bundle: ModelBundle, execution: Execution) -> EmotionPredictor:
    """The models of the bundle in `folder`; those of sound are loaded when the first sound comes.

    Raises:
        BundleError: they are not ones that this Tenor knows.
    """
    match bundle:
        case ModelBundle(classifier=Component() as classifier):
            space = bundle.label_space
            return ClassifierPredictor(bundle, lambda: execution.place(load_classifier(folder, classifier, space)))
        case ModelBundle(
            text_encoder=Component() as text, speech_encoder=Component() as speech, fusion=Component() as f
        ):
            return FusionPredictor(
                bundle,
                execution.place(load_text_encoder(folder, text)),
                execution.place(load_fusion(folder, f)),
                lambda: execution.place(load_speech_encoder(folder, speech)),
                execution.device,
            )
    raise BundleError(f"the bundle {bundle.name!r} has no models")


class FusionPredictor:
    """Words and voice, encoded and fused."""

    def __init__(
        self,
        bundle: ModelBundle,
        text_encoder: AnyTextEncoder,
        fusion: FusionEnsemble,
        load_speech: Callable[[], AnySpeechEncoder],
        device: str = "cpu",
    ) -> None:
        self._bundle = bundle
        self._text_encoder = text_encoder
        self._fusion = fusion
        self._speech_encoder = LazyModel(load_speech)
        self._device = device

    def knows(self, text: str) -> bool:
        return self._text_encoder.knows(text)

    @torch.inference_mode()
    def encode_words(self, turns: Sequence[TextInput]) -> list[Tensor]:
        words = [turn.words for turn in turns]
        return self._text_encoder(words, [self._before(turn.context) for turn in turns]).unpadded()

    @torch.inference_mode()
    def encode_voices(self, voices: Sequence[Samples]) -> list[Tensor]:
        return self._speech_encoder.get()(voices).unpadded()

    @torch.inference_mode()
    def fuse(self, turns: Sequence[EncodedTurn]) -> list[tuple[Prediction, Summary | None]]:
        config = self._fusion.config
        rows = [_rows(turn) for turn in turns]
        flat = [row for own in rows for row in own]
        text = self._tokens([row.words for row in flat], (config.text_width,))
        sound = self._tokens([row.voice for row in flat], (config.voice_layers, config.voice_width))
        heard = [row.earlier if config.relative else () for row in flat]
        fused = self._fusion(text, sound, SpeakerBaseline.of(heard, config.summary_shape, self._device))
        summed = summaries(sound).cpu().numpy().astype(np.float16)
        readings = []
        for turn, (first, end) in zip(turns, pairwise(accumulate(map(len, rows), initial=0)), strict=True):
            part = Fused(fused.logits[first:end], fused.valence[first:end])
            kept = turn.voice is not None and config.relative
            readings.append((self._reading(turn, part), summed[first] if kept else None))
        return readings

    def _reading(self, turn: EncodedTurn, fused: Fused) -> Prediction:
        dimensions = [dict.fromkeys(self._bundle.label_space.dimensions, float(value)) for value in fused.valence]
        has_text, has_voice = turn.words is not None, turn.voice is not None
        baseline = len(turn.earlier) if has_voice and self._fusion.config.relative else 0
        return _reading(self._bundle, fused.logits, dimensions, has_text, has_voice, baseline)

    def _before(self, context: Sequence[str]) -> Sequence[str]:
        turns = self._text_encoder.config.context_turns
        return [text for text in context[-turns:] if self.knows(text)] if turns else []

    def _tokens(self, features: Sequence[Tensor | None], shape: tuple[int, ...]) -> Tokens:
        nothing = torch.zeros(0, *shape, device=self._device)
        return Tokens.padded([nothing if row is None else row for row in features])


class ClassifierPredictor:
    """The voice alone, as one classifier hears it: no words are known to it, and it keeps no baseline."""

    def __init__(self, bundle: ModelBundle, load_classifier: Callable[[], AudioClassifier]) -> None:
        self._bundle = bundle
        self._classifier = LazyModel(load_classifier)

    def knows(self, text: str) -> bool:
        return False

    def encode_words(self, turns: Sequence[TextInput]) -> list[Tensor]:
        raise ValueError("no words are known to this bundle, so none can be encoded")

    @torch.inference_mode()
    def encode_voices(self, voices: Sequence[Samples]) -> list[Tensor]:
        return list(self._classifier.get()(voices)[:, None])

    def fuse(self, turns: Sequence[EncodedTurn]) -> list[tuple[Prediction, Summary | None]]:
        voices = [turn.voice for turn in turns if turn.voice is not None]
        return [(_reading(self._bundle, logits, [{}], False, True, baseline_turns=0), None) for logits in voices]


def incongruence(text_only: EmotionScores, audio_only: EmotionScores) -> float:
    """Jensen-Shannon distance of two readings, in [0, 1]: the square root of the divergence in bits (Lin 1991)."""
    p = np.array(list(text_only.categories.values()))
    q = np.array(list(audio_only.categories.values()))
    middle = (p + q) / 2

    def divergence(a: np.ndarray) -> float:
        some = a > 0
        return float(np.sum(a[some] * np.log2(a[some] / middle[some])))

    return float(np.sqrt(np.clip((divergence(p) + divergence(q)) / 2, 0.0, 1.0)))


def _rows(turn: EncodedTurn) -> list[EncodedTurn]:
    """What is fused for a turn: all of it, and where it has both, also the words alone and the voice alone."""
    if turn.words is None or turn.voice is None:
        return [turn]
    return [turn, EncodedTurn(turn.words, None), EncodedTurn(None, turn.voice, turn.earlier)]


def _reading(
    bundle: ModelBundle,
    logits: Tensor,
    dimensions: Sequence[dict[str, float]],
    has_text: bool,
    has_voice: bool,
    baseline_turns: int,
) -> Prediction:
    calibration = bundle.calibration
    both = has_text and has_voice
    first = calibration.temperature_of(text=has_text, audio=has_voice)
    temperatures = [first, calibration.text_temperature, calibration.audio_temperature]
    read = [
        _scores(bundle.label_space, row, values, temperature)
        for row, values, temperature in zip(logits.cpu(), dimensions, temperatures, strict=False)
    ]
    scores = read[0]
    text_only = read[1] if both else scores if has_text else None
    audio_only = read[2] if both else scores if has_voice else None
    confidence = scores.categories[scores.top]
    return Prediction(
        scores=scores,
        text_only=text_only,
        audio_only=audio_only,
        confidence=confidence,
        abstained=confidence < calibration.abstain_below,
        incongruence=incongruence(text_only, audio_only) if text_only and audio_only else None,
        modalities_used=tuple(
            modality for modality, used in ((Modality.text, has_text), (Modality.audio, has_voice)) if used
        ),
        baseline_turns=baseline_turns,
    )


def _scores(space: LabelSpace, logits: Tensor, dimensions: dict[str, float], temperature: float) -> EmotionScores:
    probabilities = torch.softmax(logits.double() / temperature, dim=-1).tolist()
    return EmotionScores(
        label_space=space.name,
        categories=dict(zip(space.categories, probabilities, strict=True)),
        dimensions=dimensions,
    )
