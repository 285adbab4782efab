"""One turn through all models: decode is done, what comes out is a transcript and a reading."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch

from shared.audio import SAMPLE_RATE, Samples
from shared.domain.bundle import ModelBundle
from shared.domain.emotion import Reading
from shared.domain.transcript import Transcript
from shared.errors import SetupError
from shared.modeling.baseline import Summary
from shared.modeling.lazy import Lazy
from shared.modeling.loading import bundle_folder, read_manifest, verify_files
from shared.modeling.readers import Reader, load_reader
from shared.modeling.transcriber import Transcriber
from shared.modeling.weights import whisper_folder
from shared.settings import Settings


@dataclass(frozen=True)
class Analysis:
    """What is known of a turn. There is no transcript where nothing was said in words or sound.

    Attributes:
        voice_summary: what this turn adds to its speaker's baseline; None where no voice was read, or the bundle
            keeps no baseline.
    """

    transcript: Transcript | None
    reading: Reading
    voice_summary: Summary | None


class Pipeline:
    """A bundle's models. Threads may share it; the speech models are loaded when the first sound comes."""

    def __init__(self, bundle: ModelBundle, reader: Reader, load_transcriber: Callable[[], Transcriber]) -> None:
        self.bundle = bundle
        self._reader = reader
        self._transcriber = Lazy(load_transcriber)

    @classmethod
    def load(cls, folder: Path, load_transcriber: Callable[[], Transcriber], device: str = "cpu") -> Self:
        """The pipeline of the bundle in `folder`.

        Raises:
            BundleError: the bundle is not whole, not valid, or not one that this Tenor knows.
        """
        bundle = read_manifest(folder)
        verify_files(folder, bundle)
        return cls(bundle, load_reader(folder, bundle, device), load_transcriber)

    def analyze(
        self,
        *,
        samples: Samples | None,
        text: str | None,
        language: str | None = None,
        earlier: Sequence[Summary] = (),
        context: Sequence[str] = (),
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
        """
        transcript = None if text is None else Transcript.provided(text, language)
        voice = None
        if samples is not None:
            speech = self._transcriber.get().speech(samples)
            voice = samples if speech else None
            if transcript is None:
                transcript = self._transcriber.get().transcribe(samples, language, speech)
        words = transcript.text if transcript is not None and self._reader.knows(transcript.text) else None
        reading, summary = self._reader.read(words, voice, earlier, context)
        return Analysis(transcript, reading, summary)

    def utterances(self, samples: Samples) -> list[tuple[float, float]]:
        """Where to cut a long recording into turns, in seconds; a short one is one turn."""
        return self._transcriber.get().utterances(samples)

    def warm_up(self) -> None:
        """Load everything and run it once, so that the first turn is as fast as the next."""
        self._transcriber.get().warm_up()
        self._reader.read("warm", np.zeros(SAMPLE_RATE, np.float32))


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


def _device(configured: str) -> str:
    available = torch.cuda.is_available()
    if configured == "cuda" and not available:
        raise SetupError("TENOR_DEVICE is cuda, but this PyTorch finds no CUDA device: use auto or cpu")
    return "cuda" if available and configured != "cpu" else "cpu"
