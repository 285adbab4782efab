"""One turn through all models: decode is done, what comes out is a transcript and a reading."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Self

import numpy as np
import torch
from torch import Tensor

from shared.audio import SAMPLE_RATE, Samples
from shared.domain.bundle import ModelBundle
from shared.domain.emotion import EmotionScores, LabelSpace, Modality, Reading
from shared.domain.transcript import Transcript
from shared.errors import SetupError
from shared.modeling.encoders import SpeechEncoder, TextEncoder, Tokens
from shared.modeling.fusion import FusionEnsemble
from shared.modeling.loading import (
    bundle_folder,
    load_fusion,
    load_speech_encoder,
    load_text_encoder,
    read_manifest,
    verify_files,
)
from shared.modeling.transcriber import Transcriber
from shared.modeling.weights import whisper_folder
from shared.settings import Settings


@dataclass(frozen=True)
class Analysis:
    """What is known of a turn. There is no transcript where nothing was said in words or sound."""

    transcript: Transcript | None
    reading: Reading


class Pipeline:
    """A bundle's models. Threads may share it; the speech models are loaded when the first sound comes."""

    def __init__(
        self,
        bundle: ModelBundle,
        text_encoder: TextEncoder,
        fusion: FusionEnsemble,
        load_speech: Callable[[], SpeechEncoder],
        load_transcriber: Callable[[], Transcriber],
        device: str = "cpu",
    ) -> None:
        self.bundle = bundle
        self._device = device
        self._text_encoder = text_encoder
        self._fusion = fusion
        self._load_speech = load_speech
        self._load_transcriber = load_transcriber
        self._loading = Lock()
        self._loaded_speech: SpeechEncoder | None = None
        self._loaded_transcriber: Transcriber | None = None

    @classmethod
    def load(cls, folder: Path, load_transcriber: Callable[[], Transcriber], device: str = "cpu") -> Self:
        """The pipeline of the bundle in `folder`.

        Raises:
            BundleError: the bundle is not whole, not valid, or not one that this Tenor knows.
        """
        bundle = read_manifest(folder)
        verify_files(folder, bundle)
        return cls(
            bundle,
            load_text_encoder(folder, bundle.text_encoder).to(device),
            load_fusion(folder, bundle.fusion).to(device),
            lambda: load_speech_encoder(folder, bundle.speech_encoder).to(device),
            load_transcriber,
            device,
        )

    def analyze(self, *, samples: Samples | None, text: str | None, language: str | None = None) -> Analysis:
        """Read a turn: its sound, its words, or both.

        Words that come with the turn are taken as they are, and no transcript is made. Sound in which nobody speaks is
        not read, and neither are words in a script that the text encoder does not know.

        Args:
            samples: the whole turn, shape [samples], or None.
            text: its words, or None.
            language: ISO 639-1 code where it is known.
        """
        transcript = None if text is None else Transcript.provided(text, language)
        voice = None
        if samples is not None:
            speech = self._transcriber.speech(samples)
            voice = samples if speech else None
            if transcript is None:
                transcript = self._transcriber.transcribe(samples, language, speech)
        words = transcript.text if transcript is not None and self._text_encoder.knows(transcript.text) else None
        return Analysis(transcript, self._read(words, voice))

    def utterances(self, samples: Samples) -> list[tuple[float, float]]:
        """Where to cut a long recording into turns, in seconds; a short one is one turn."""
        return self._transcriber.utterances(samples)

    def warm_up(self) -> None:
        """Load everything and run it once, so that the first turn is as fast as the next."""
        self._transcriber.warm_up()
        self._read("warm", np.zeros(SAMPLE_RATE, np.float32))

    @property
    def _speech_encoder(self) -> SpeechEncoder:
        with self._loading:
            if self._loaded_speech is None:
                self._loaded_speech = self._load_speech()
            return self._loaded_speech

    @property
    def _transcriber(self) -> Transcriber:
        with self._loading:
            if self._loaded_transcriber is None:
                self._loaded_transcriber = self._load_transcriber()
            return self._loaded_transcriber

    @torch.inference_mode()
    def _read(self, words: str | None, voice: Samples | None) -> Reading:
        if words is None and voice is None:
            return Reading(
                scores=None,
                text_only=None,
                audio_only=None,
                confidence=0.0,
                abstained=True,
                incongruence=None,
                modalities_used=(),
            )
        text = self._no_text() if words is None else self._text_encoder([words])
        sound = self._no_voice() if voice is None else self._speech_encoder([voice])
        both = words is not None and voice is not None
        # One batch of three: both modalities, the words alone, the voice alone.
        rows = 3 if both else 1
        keep_text = torch.tensor([[True], [True], [False]][:rows], device=text.mask.device)
        keep_sound = torch.tensor([[True], [False], [True]][:rows], device=sound.mask.device)
        fused = self._fusion(
            Tokens(text.features.expand(rows, -1, -1), text.mask & keep_text),
            Tokens(sound.features.expand(rows, -1, -1, -1), sound.mask & keep_sound),
        )
        return _reading(self.bundle, fused.logits, fused.valence, words is not None, voice is not None)

    def _no_text(self) -> Tokens:
        return Tokens(torch.zeros(1, 1, self._fusion.config.text_width, device=self._device), self._nothing())

    def _no_voice(self) -> Tokens:
        config = self._fusion.config
        return Tokens(torch.zeros(1, 1, config.voice_layers, config.voice_width, device=self._device), self._nothing())

    def _nothing(self) -> Tensor:
        return torch.zeros(1, 1, dtype=torch.bool, device=self._device)


def load_pipeline(settings: Settings) -> Pipeline:
    """The pipeline that the settings name.

    Raises:
        BundleError: the bundle cannot be used.
        SetupError: the device is not there.
        WeightsMissing: raised when sound comes first: Whisper is nowhere to be had.
    """
    # One thread a call: the worker's own threads use the cores, and two pools of threads that wait for one another
    # on the same cores make a text of 16 ms last a second.
    torch.set_num_threads(1)
    device = _device(settings.device)

    def load_transcriber() -> Transcriber:
        folder = whisper_folder(settings.whisper_dir, settings.data_dir / "models")
        return Transcriber.load(folder, device=device)

    return Pipeline.load(bundle_folder(settings.bundle), load_transcriber, device)


def incongruence(text_only: EmotionScores, audio_only: EmotionScores) -> float:
    """Jensen-Shannon distance of two readings, in [0, 1]: the square root of the divergence in bits (Lin 1991)."""
    p = np.array(list(text_only.categories.values()))
    q = np.array(list(audio_only.categories.values()))
    middle = (p + q) / 2

    def divergence(a: np.ndarray) -> float:
        some = a > 0
        return float(np.sum(a[some] * np.log2(a[some] / middle[some])))

    return float(np.sqrt(np.clip((divergence(p) + divergence(q)) / 2, 0.0, 1.0)))


def _device(configured: str) -> str:
    available = torch.cuda.is_available()
    if configured == "cuda" and not available:
        raise SetupError("TENOR_DEVICE is cuda, but this PyTorch finds no CUDA device: use auto or cpu")
    return "cuda" if available and configured != "cpu" else "cpu"


def _reading(bundle: ModelBundle, logits: Tensor, valence: Tensor, has_text: bool, has_voice: bool) -> Reading:
    calibration = bundle.calibration
    both = has_text and has_voice
    first = calibration.temperature_of(text=has_text, voice=has_voice)
    temperatures = [first, calibration.text_temperature, calibration.audio_temperature]
    read = [
        _scores(bundle.label_space, row, value, temperature)
        for row, value, temperature in zip(logits.cpu(), valence.cpu(), temperatures, strict=False)
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
    )


def _scores(space: LabelSpace, logits: Tensor, valence: Tensor, temperature: float) -> EmotionScores:
    probabilities = torch.softmax(logits.double() / temperature, dim=-1).tolist()
    return EmotionScores(
        label_space=space.name,
        categories=dict(zip(space.categories, probabilities, strict=True)),
        dimensions=dict.fromkeys(space.dimensions, float(valence)),
    )
