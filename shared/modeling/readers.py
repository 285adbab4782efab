"""A turn's words and voice into a reading, by the models of either kind of bundle."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from shared.audio import Samples
from shared.domain.bundle import Component, ModelBundle
from shared.domain.emotion import EmotionScores, LabelSpace, Modality, Reading
from shared.errors import BundleError
from shared.modeling.baseline import SpeakerBaseline, Summary, summaries
from shared.modeling.classifiers import AudioClassifier
from shared.modeling.encoders import Tokens
from shared.modeling.fusion import FusionEnsemble
from shared.modeling.lazy import Lazy
from shared.modeling.loading import (
    AnySpeechEncoder,
    AnyTextEncoder,
    load_classifier,
    load_fusion,
    load_speech_encoder,
    load_text_encoder,
)

NOTHING_TO_READ = Reading(
    scores=None,
    text_only=None,
    audio_only=None,
    confidence=0.0,
    abstained=True,
    incongruence=None,
    modalities_used=(),
    baseline_turns=0,
)


class Reader(Protocol):
    """What a bundle makes of words and a voice. Threads may share it."""

    def knows(self, text: str) -> bool:
        """Whether these words can be read."""
        ...

    def read(
        self,
        words: str | None,
        voice: Samples | None,
        earlier: Sequence[Summary] = (),
        context: Sequence[str] = (),
    ) -> tuple[Reading, Summary | None]:
        """The reading, and what the voice adds to its speaker's baseline where the bundle keeps one.

        Args:
            words: words that are known, or None.
            voice: sound in which somebody speaks, shape [samples], or None.
            earlier: the summaries that this bundle made of the speaker's earlier turns, in any order.
            context: the words of the conversation's turns before, whoever spoke, the oldest first.
        """
        ...


def load_reader(folder: Path, bundle: ModelBundle, device: str) -> Reader:
    """The models of the bundle in `folder`; those of sound are loaded when the first sound comes.

    Raises:
        BundleError: they are not ones that this Tenor knows.
    """
    match bundle:
        case ModelBundle(classifier=Component() as classifier):
            space = bundle.label_space
            return ClassifierReader(bundle, lambda: load_classifier(folder, classifier, space).to(device))
        case ModelBundle(
            text_encoder=Component() as text, speech_encoder=Component() as speech, fusion=Component() as f
        ):
            return FusionReader(
                bundle,
                load_text_encoder(folder, text).to(device),
                load_fusion(folder, f).to(device),
                lambda: load_speech_encoder(folder, speech).to(device),
                device,
            )
    raise BundleError(f"the bundle {bundle.name!r} has no models")


class FusionReader:
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
        self._speech_encoder = Lazy(load_speech)
        self._device = device

    def knows(self, text: str) -> bool:
        return self._text_encoder.knows(text)

    @torch.inference_mode()
    def read(
        self,
        words: str | None,
        voice: Samples | None,
        earlier: Sequence[Summary] = (),
        context: Sequence[str] = (),
    ) -> tuple[Reading, Summary | None]:
        if words is None and voice is None:
            return NOTHING_TO_READ, None
        text = self._no_text() if words is None else self._text_encoder([words], [self._before(context)])
        sound = self._no_voice() if voice is None else self._speech_encoder.get()([voice])
        both = words is not None and voice is not None
        # One batch of three: both modalities, the words alone, the voice alone.
        rows = 3 if both else 1
        keep_text = torch.tensor([[True], [True], [False]][:rows], device=text.mask.device)
        keep_sound = torch.tensor([[True], [False], [True]][:rows], device=sound.mask.device)
        relative = voice is not None and self._fusion.config.relative
        summary = summaries(sound)[0].cpu().numpy().astype(np.float16) if relative else None
        heard = earlier if relative else ()
        fused = self._fusion(
            Tokens(text.features.expand(rows, -1, -1), text.mask & keep_text),
            Tokens(sound.features.expand(rows, -1, -1, -1), sound.mask & keep_sound),
            SpeakerBaseline.of([heard] * rows, self._fusion.config.summary_shape, self._device),
        )
        dimensions = [dict.fromkeys(self._bundle.label_space.dimensions, float(value)) for value in fused.valence]
        reading = _reading(self._bundle, fused.logits, dimensions, words is not None, voice is not None, len(heard))
        return reading, summary

    def _before(self, context: Sequence[str]) -> Sequence[str]:
        turns = self._text_encoder.config.context_turns
        return [text for text in context[-turns:] if self.knows(text)] if turns else []

    def _no_text(self) -> Tokens:
        return Tokens(torch.zeros(1, 1, self._fusion.config.text_width, device=self._device), self._nothing())

    def _no_voice(self) -> Tokens:
        config = self._fusion.config
        return Tokens(torch.zeros(1, 1, config.voice_layers, config.voice_width, device=self._device), self._nothing())

    def _nothing(self) -> Tensor:
        return torch.zeros(1, 1, dtype=torch.bool, device=self._device)


class ClassifierReader:
    """The voice alone, as one classifier hears it: no words are known to it, and it keeps no baseline."""

    def __init__(self, bundle: ModelBundle, load_classifier: Callable[[], AudioClassifier]) -> None:
        self._bundle = bundle
        self._classifier = Lazy(load_classifier)

    def knows(self, text: str) -> bool:
        return False

    @torch.inference_mode()
    def read(
        self,
        words: str | None,
        voice: Samples | None,
        earlier: Sequence[Summary] = (),
        context: Sequence[str] = (),
    ) -> tuple[Reading, Summary | None]:
        if voice is None:
            return NOTHING_TO_READ, None
        logits = self._classifier.get()([voice])
        return _reading(self._bundle, logits, [{}], has_text=False, has_voice=True, baseline_turns=0), None


def incongruence(text_only: EmotionScores, audio_only: EmotionScores) -> float:
    """Jensen-Shannon distance of two readings, in [0, 1]: the square root of the divergence in bits (Lin 1991)."""
    p = np.array(list(text_only.categories.values()))
    q = np.array(list(audio_only.categories.values()))
    middle = (p + q) / 2

    def divergence(a: np.ndarray) -> float:
        some = a > 0
        return float(np.sum(a[some] * np.log2(a[some] / middle[some])))

    return float(np.sqrt(np.clip((divergence(p) + divergence(q)) / 2, 0.0, 1.0)))


def _reading(
    bundle: ModelBundle,
    logits: Tensor,
    dimensions: Sequence[dict[str, float]],
    has_text: bool,
    has_voice: bool,
    baseline_turns: int,
) -> Reading:
    calibration = bundle.calibration
    both = has_text and has_voice
    first = calibration.temperature_of(text=has_text, voice=has_voice)
    temperatures = [first, calibration.text_temperature, calibration.audio_temperature]
    read = [
        _scores(bundle.label_space, row, values, temperature)
        for row, values, temperature in zip(logits.cpu(), dimensions, temperatures, strict=False)
    ]
    scores = read[0]
    text_only = read[1] if both else scores if has_text else None
    audio_only = read[2] if both else scores if has_voice else None
    confidence = scores.categories[scores.top]
    return Reading(
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
