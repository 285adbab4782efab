"""One turn through all models: decode is done, what comes out is a transcript and a reading.

The way of a turn is told once, as a walk through stages. Each stage takes a batch and gives for every item what it
would give for it alone: so a command may run them one item at a time, and a worker those of many turns together.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Protocol, Self, TypeVar

import numpy as np
import torch
from torch import Tensor

from shared.audio.decoder import SAMPLE_RATE, Samples
from shared.domain.bundle import Component, ModelBundle
from shared.domain.prediction import Prediction
from shared.domain.transcript import Transcript
from shared.modeling.baseline import Summary
from shared.modeling.execution import ON_CPU, Execution
from shared.modeling.lazy_model import LazyModel
from shared.modeling.loading import bundle_folder, read_manifest, verify_files
from shared.modeling.predictor import NOTHING_TO_READ, EmotionPredictor, EncodedTurn, TextInput, load_predictor
from shared.modeling.transcriber import MARGIN_S, Clip, Span, Transcriber
from shared.modeling.whisper_weights import configured_transcriber, delete_temporary_model, whisper_folder, whisper_name
from shared.self_check import TEXT, checking, decode_clip
from shared.settings import Settings

Item = TypeVar("Item")
Result = TypeVar("Result")

LETTERS_A_TOKEN = 4
LEAST_TOKENS = 16
"""What a text costs however short it is."""


@dataclass(frozen=True)
class Stage(Generic[Item, Result]):
    """One step of the way, for a batch.

    Attributes:
        run: the results of some items, in their order; an item's does not depend on the others.
        size: what an item costs, above 0; a batch costs its longest item's for each.
    """

    name: str
    run: Callable[[Sequence[Item]], list[Result]]
    size: Callable[[Item], float]


class Submit(Protocol):
    """Hands an item to a stage; what is returned waits for its result, or raises what went wrong with it."""

    def __call__(self, stage: Stage[Item, Result], item: Item, /) -> Callable[[], Result]: ...


def at_once(stage: Stage[Item, Result], item: Item, /) -> Callable[[], Result]:
    """Runs a stage on one item, here and now."""
    (result,) = stage.run([item])
    return lambda: result


@dataclass(frozen=True)
class Analysis:
    """What is known of a turn. There is no transcript where nothing was said in words or sound.

    Attributes:
        audio_summary: what this turn adds to its speaker's baseline; None where no voice was read, or the bundle
            keeps no baseline.
    """

    transcript: Transcript | None
    reading: Prediction
    audio_summary: Summary | None


class Pipeline:
    """A bundle's models. Threads may share it; the speech models are loaded when the first sound comes.

    Attributes:
        vad: where somebody speaks; seconds of sound.
        transcribe: what they say; seconds of windows.
        text: the words' features; tokens.
        speech: the voice's features; seconds of sound.
        fuse: both, or one of them, into a reading; tokens.
    """

    def __init__(
        self, bundle: ModelBundle, reader: EmotionPredictor, load_transcriber: Callable[[], Transcriber]
    ) -> None:
        self.bundle = bundle
        self._reader = reader
        self._transcriber = LazyModel(load_transcriber)
        self.vad = Stage("vad", self._speech, lambda samples: _seconds(samples) + 1)
        self.transcribe = Stage("transcribe", self._transcripts, lambda clip: _seconds(clip.samples) + MARGIN_S)
        self.text = Stage("text", reader.encode_words, _tokens_said)
        self.speech = Stage("speech", reader.encode_voices, lambda samples: _seconds(samples) + 1)
        self.fuse = Stage("fuse", reader.fuse, _tokens_encoded)

    @classmethod
    def load(
        cls,
        folder: Path,
        load_transcriber: Callable[[], Transcriber],
        execution: Execution = ON_CPU,
        asr: Component | None = None,
    ) -> Self:
        """The pipeline of the bundle in `folder`.

        Args:
            folder: the bundle's.
            load_transcriber: called when the first sound comes.
            execution: how the models are run.
            asr: what is loaded as the transcriber, where it is not the bundle's; the bundle's id tells of it.

        Raises:
            BundleError: the bundle is not whole, not valid, or not one that this Tenor knows.
        """
        bundle = read_manifest(folder)
        verify_files(folder, bundle)
        if asr is not None:
            bundle = bundle.model_copy(update={"asr": asr})
        return cls(bundle, load_predictor(folder, bundle, execution), load_transcriber)

    def analyze(
        self,
        *,
        samples: Samples | None,
        text: str | None,
        language: str | None = None,
        earlier: Sequence[Summary] = (),
        context: Sequence[str] = (),
        submit: Submit = at_once,
    ) -> Analysis:
        """Read a turn: its sound, its words, or both.

        Words that come with the turn are taken as they are, and no transcript is made. Sound in which nobody speaks is
        not read, and neither are words that the bundle does not know: those in another script than its text encoder's,
        or any at all where it has no text encoder.

        Args:
            samples: the whole turn, shape [samples], or None.
            text: its words, or None.
            language: ISO 639-1 code where it is known.
            earlier: the voice summaries that this bundle made of the speaker's earlier turns, in any order.
            context: the words of the conversation's turns before, whoever spoke, the oldest first.
            submit: how the turn goes through a stage.
        """
        transcript = None if text is None else Transcript.provided(text, language)
        voice = None
        if samples is not None:
            spans = submit(self.vad, samples)()
            voice = submit(self.speech, samples) if spans else None
            if transcript is None:
                transcript = submit(self.transcribe, Clip(samples, language, spans))()
        said = transcript.text if transcript is not None and self._reader.knows(transcript.text) else None
        words = None if said is None else submit(self.text, TextInput(said, context))
        if words is None and voice is None:
            return Analysis(transcript, NOTHING_TO_READ, None)
        encoded = EncodedTurn(None if words is None else words(), None if voice is None else voice(), earlier)
        reading, summary = submit(self.fuse, encoded)()
        return Analysis(transcript, reading, summary)

    def warm_up(self) -> None:
        """Load everything and analyse a short clip and a text, so that the first turn works and is as fast as the next.

        Raises:
            SetupError: the installed packages cannot do it. The message names the stage and its packages.
            WeightsMissing: Whisper is nowhere to be had.
        """
        self._check_stages()
        # One item, items of one length and of several: for each of them there is code to be compiled.
        for lengths in ((1,), (1, 1), (1, 2, 3)):
            voices = self._reader.encode_voices([np.zeros(size * SAMPLE_RATE, np.float32) for size in lengths])
            words: list[Tensor | None] = [None for _ in lengths]
            if self._reader.knows("warm"):
                words = [*self._reader.encode_words([TextInput("warm " * size) for size in lengths])]
            self._reader.fuse([EncodedTurn(*of) for of in zip(words, voices, strict=True)])

    def _check_stages(self) -> None:
        """Take the clip of the self-check through all stages, whether or not it passes for speech."""
        samples = decode_clip()
        whole = [(0.0, samples.size / SAMPLE_RATE)]
        with checking("load Whisper", "faster-whisper", "ctranslate2"):
            self._transcriber.get()
        with checking("find speech", "faster-whisper", "onnxruntime"):
            (spans,) = self.vad.run([samples])
        with checking("transcribe", "faster-whisper", "ctranslate2"):
            self.transcribe.run([Clip(samples, speech=spans or whole)])
        words: list[Tensor | None] = [None]
        if self._reader.knows(TEXT):
            with checking("read a text", "torch", "transformers", "tokenizers"):
                words = [*self.text.run([TextInput(TEXT)])]
        with checking("read a voice", "torch", "transformers"):
            voices = self.speech.run([samples])
        with checking("find an emotion", "torch"):
            self.fuse.run([EncodedTurn(words[0], voices[0])])

    def _speech(self, sounds: Sequence[Samples]) -> list[list[Span]]:
        transcriber = self._transcriber.get()
        return [transcriber.speech(samples) for samples in sounds]

    def _transcripts(self, clips: Sequence[Clip]) -> list[Transcript]:
        return self._transcriber.get().transcribe(clips)


def load_pipeline(settings: Settings) -> Pipeline:
    """The pipeline that the settings name.

    Raises:
        BundleError: the bundle cannot be used.
        SetupError: the device is not there, or does not run models as the settings say.
        WeightsMissing: Whisper is nowhere to be had. Raised when sound comes first, but at once for an unknown name.
    """
    # One thread a call: the worker's own threads use the cores, and two pools of threads that wait for one another
    # on the same cores make a text of 16 ms last a second.
    torch.set_num_threads(1)
    execution = Execution.of(settings)
    folder = bundle_folder(settings.bundle)
    asr = configured_transcriber(settings.whisper, settings.whisper_dir) or read_manifest(folder).asr

    def load_transcriber() -> Transcriber:
        whisper = whisper_folder(settings.whisper_dir, settings.data_dir / "models", whisper_name(asr))
        try:
            return Transcriber.load(whisper, execution.device, settings.whisper_compute)
        finally:
            delete_temporary_model()

    return Pipeline.load(folder, load_transcriber, execution, asr)


def _seconds(samples: Samples) -> float:
    return samples.size / SAMPLE_RATE


def _tokens_said(said: TextInput) -> float:
    return LEAST_TOKENS + sum(map(len, (said.words, *said.context))) / LETTERS_A_TOKEN


def _tokens_encoded(turn: EncodedTurn) -> float:
    return LEAST_TOKENS + sum(len(features) for features in (turn.words, turn.voice) if features is not None)
