"""Whisper in CTranslate2, which runs batches of windows: encodes them, detects languages, decodes and aligns.

The lengths of windows are whole seconds. Windows of the same length share a batch, whichever clips they belong to. No
window is padded to the length of another, so that its result does not depend on the other windows.
"""

# CTranslate2 has no annotations, and those of faster-whisper are incomplete.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false, reportUnknownLambdaType=false

import os
from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Self, TypeVar

import ctranslate2
import numpy as np
from faster_whisper import WhisperModel
from faster_whisper.feature_extractor import FeatureExtractor
from faster_whisper.tokenizer import Tokenizer
from faster_whisper.transcribe import merge_punctuations
from numpy.typing import NDArray

from shared.audio.decoder import SAMPLE_RATE, Samples
from shared.errors import SetupError
from shared.modeling.repetition import Repetition, find_loop
from shared.modeling.spoken_language import LanguageProbabilities
from shared.modeling.vad import TimeSpan

Item = TypeVar("Item")
Result = TypeVar("Result")

HOP = 160
"""Samples per frame of the spectrogram. The encoder's output has half as many frames."""
FRAMES_PER_SECOND = SAMPLE_RATE // HOP
FULL_WINDOW_S = 30
"""The window that Whisper was trained on."""
MARGIN_S = 4
"""Least silence after the audio in a short window. Up to a second is added to round the window to whole seconds. With
less, Whisper often does not end the text of a single word."""
MAX_BATCH_WINDOWS = 16
"""Most windows in one batch."""
MAX_FIRST_TIMESTAMP = 50
"""In units of 20 ms, so 1 s: Whisper's own limit for the first timestamp."""
TOKENS_PER_SECOND = 25
"""The decoder is stopped beyond this rate, which no speech reaches, even in scripts with several tokens per letter."""
SPARE_TOKENS = 16

PREPENDED = "\"'“¿([{-"
APPENDED = "\"'.。,，!！?？:：”)]}、"  # noqa: RUF001


@dataclass(frozen=True, eq=False)
class SpeechChunk:
    """Audio that is decoded in one piece.

    Attributes:
        clip: the index of the clip that it belongs to.
        span: start and end within the clip, in seconds.
        samples: shape [samples].
        speech: where somebody speaks in it, in seconds within the clip.
        owned: the words of this span are taken from this chunk; those outside of it are a neighbour's.
    """

    clip: int
    span: TimeSpan
    samples: Samples
    speech: Sequence[TimeSpan]
    owned: TimeSpan = (-np.inf, np.inf)

    @property
    def frames(self) -> int:
        """Length in frames of the spectrogram, rounded up."""
        return -(-self.samples.size // HOP)

    @property
    def seconds(self) -> int:
        """Length in seconds, rounded up."""
        return -(-self.samples.size // SAMPLE_RATE)


@dataclass(frozen=True, eq=False)
class EncodedWindow:
    """A chunk, padded and encoded.

    Attributes:
        chunk: the audio.
        full: whether it was padded to Whisper's 30 s, and not to a short window.
        features: the output of Whisper's encoder, shape [frames / 2, width].
        language: in which it is decoded, as Whisper's code.
    """

    chunk: SpeechChunk
    full: bool
    features: NDArray[np.float32]
    language: str = "en"

    @property
    def shape(self) -> tuple[bool, int]:
        """Windows of equal shape can share a batch."""
        return self.full, self.chunk.seconds


@dataclass(frozen=True, eq=False)
class DecodedWindow:
    """The decoder's output for a window.

    Attributes:
        window: what was decoded.
        tokens: text and timestamp tokens.
        text_tokens: those of the text.
        text: the text tokens as text.
        log_probability: mean over the tokens.
        no_speech_probability: Whisper's probability that nobody speaks.
        endless: whether the decoder was stopped at the limit of tokens.
    """

    window: EncodedWindow
    tokens: list[int]
    text_tokens: list[int]
    text: str
    log_probability: float
    no_speech_probability: float
    endless: bool

    @cached_property
    def loop(self) -> Repetition | None:
        """The sequence of tokens that the decoder repeats, although nobody says it so often; None if there is none."""
        seconds = self.window.chunk.samples.size / SAMPLE_RATE
        return find_loop(self.text_tokens, seconds, self.endless)


@dataclass(frozen=True)
class AlignedWord:
    """A word with its time in the window.

    Attributes:
        text: with the space before it, if there is one.
        tokens: how many tokens it has.
        span: start and end within the window, in seconds.
        probability: mean over its tokens.
    """

    text: str
    tokens: int
    span: TimeSpan
    probability: float


class Whisper:
    """A Whisper model in memory. Threads may share it. Every call uses all of the model's workers."""

    def __init__(self, model: WhisperModel) -> None:
        self._whisper = model
        self._workers = ThreadPoolExecutor(model.model.num_workers, "transcriber")
        self.tokenizer = lru_cache(maxsize=None)(self._make_tokenizer)

    @classmethod
    def load(cls, folder: Path, device: str = "auto", compute: str = "auto") -> Self:
        """Returns a CTranslate2 Whisper model.

        Args:
            folder: the folder of the model, from `whisper_folder`.
            device: auto, cpu or cuda.
            compute: CTranslate2's compute type; auto is int8 on the CPU and float16 on CUDA.

        Raises:
            SetupError: the device does not support the compute type.
        """
        if device == "auto":
            device = "cuda" if ctranslate2.get_cuda_device_count() else "cpu"
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        # More threads hardly speed up one short window, but two windows at once take little longer than one.
        threads = max(1, min(4, cores // 2))
        whisper = WhisperModel(
            str(folder),
            device=device,
            compute_type=_compute_type(compute, device),
            cpu_threads=threads,
            num_workers=cores // threads if device == "cpu" else 1,
        )
        # The folder may lack the number of mel bands: 80, or 128 from large-v3 on.
        whisper.feature_extractor = FeatureExtractor(feature_size=whisper.model.n_mels)
        return cls(whisper)

    @property
    def mel_bands(self) -> int:
        """80, or 128 from large-v3 on."""
        return self._whisper.model.n_mels

    @property
    def compute_type(self) -> str:
        """The type that the model computes with."""
        return self._whisper.model.compute_type

    @cached_property
    def languages(self) -> set[str]:
        """Languages with a token in this model's vocabulary. Cantonese has none before large-v3."""
        has_token = self._whisper.hf_tokenizer.token_to_id
        multilingual = self._whisper.model.is_multilingual
        return {code for code in self._whisper.supported_languages if not multilingual or has_token(f"<|{code}|>")}

    def encode(self, chunks: Sequence[SpeechChunk], full: bool = False) -> list[EncodedWindow]:
        """Encodes chunks, padded to the full window or to a short one."""

        def encode(batch: Sequence[SpeechChunk]) -> list[EncodedWindow]:
            seconds = FULL_WINDOW_S if full else batch[0].seconds + MARGIN_S
            spectrograms = np.stack([self._spectrogram(chunk.samples, seconds) for chunk in batch])
            # In main memory, because the next steps batch the windows differently.
            encoded = self._whisper.model.encode(ctranslate2.StorageView.from_array(spectrograms), to_cpu=True)
            rows = np.array(encoded.to(ctranslate2.DataType.float32))
            return [EncodedWindow(chunk, full, row) for chunk, row in zip(batch, rows, strict=True)]

        return self._run_in_batches(chunks, lambda chunk: chunk.seconds, encode)

    def detect_languages(self, windows: Sequence[EncodedWindow]) -> list[LanguageProbabilities]:
        """Returns the probabilities of the languages that may be spoken in each window."""
        if not self._whisper.model.is_multilingual:
            return [{"en": 1.0} for _ in windows]

        def detect(batch: Sequence[EncodedWindow]) -> list[LanguageProbabilities]:
            found = self._whisper.model.detect_language(_storage(batch))
            return [{token.strip("<|>"): probability for token, probability in row} for row in found]

        return self._run_in_batches(windows, lambda window: window.shape, detect)

    def decode(self, windows: Sequence[EncodedWindow], beams: int = 1, no_repeat: int = 0) -> list[DecodedWindow]:
        """Returns the text of each window, in its language.

        Args:
            windows: the windows to decode.
            beams: the beam size.
            no_repeat: the length of token sequences that may not occur twice; 0 allows repetition.
        """

        def decode(batch: Sequence[EncodedWindow]) -> list[DecodedWindow]:
            tokenizers = [self.tokenizer(window.language) for window in batch]
            max_tokens = SPARE_TOKENS + TOKENS_PER_SECOND * batch[0].chunk.seconds
            # CTranslate2 ends the decoding at half of `max_length`, the prompt not counted.
            max_tokens = min(self._whisper.max_length // 2, max_tokens)
            results = self._whisper.model.generate(
                _storage(batch),
                [tokenizer.sot_sequence for tokenizer in tokenizers],
                beam_size=beams,
                no_repeat_ngram_size=no_repeat,
                max_length=2 * max_tokens,
                max_initial_timestamp_index=MAX_FIRST_TIMESTAMP,
                return_scores=True,
                return_no_speech_prob=True,
            )
            return [_decoded(*of, max_tokens) for of in zip(batch, results, tokenizers, strict=True)]

        return self._run_in_batches(windows, lambda window: window.shape, decode)

    def align(self, windows: Sequence[EncodedWindow], texts: Sequence[Sequence[int]]) -> list[list[AlignedWord]]:
        """Returns the words of each window's text, with times from the decoder's attention to the audio."""
        # faster-whisper's own annotations of these two are one level of lists short.
        find: Any = self._whisper.find_alignment
        merge: Any = merge_punctuations

        def align(batch: Sequence[tuple[EncodedWindow, Sequence[int]]]) -> list[list[AlignedWord]]:
            those = [window for window, _ in batch]
            frames = [window.chunk.frames for window in those]
            tokenizer = self.tokenizer(those[0].language)
            alignments = find(tokenizer, [[*text] for _, text in batch], _storage(those), frames)
            for alignment in alignments:
                merge(alignment, PREPENDED, APPENDED)
            return [[_aligned_word(word) for word in alignment] for alignment in alignments]

        items = list(zip(windows, texts, strict=True))
        return self._run_in_batches(items, lambda item: (item[0].language, item[0].shape), align)

    def _spectrogram(self, samples: Samples, seconds: int) -> NDArray[np.float32]:
        # The audio is padded and not the spectrogram: in a log-mel spectrogram, zeros are a loud hum.
        padded = np.pad(samples, (0, seconds * SAMPLE_RATE - samples.size))
        return self._whisper.feature_extractor(padded)[:, : seconds * FRAMES_PER_SECOND]

    def _run_in_batches(
        self, items: Sequence[Item], key: Callable[[Item], Hashable], run: Callable[[Sequence[Item]], list[Result]]
    ) -> list[Result]:
        """Runs items with equal keys in batches, on all workers of the model, and returns the results in order.

        A batch has at most `MAX_BATCH_WINDOWS` items, and fewer if another worker would otherwise be idle.
        """
        groups: dict[Hashable, list[int]] = defaultdict(list)
        for place, item in enumerate(items):
            groups[key(item)].append(place)
        most = max(1, min(MAX_BATCH_WINDOWS, -(-len(items) // self._whisper.model.num_workers)))
        batches = [places[first : first + most] for places in groups.values() for first in range(0, len(places), most)]
        results_of_batches = self._workers.map(lambda places: run([items[place] for place in places]), batches)
        results: dict[int, Result] = {}
        for places, own in zip(batches, results_of_batches, strict=True):
            results |= zip(places, own, strict=True)
        return [results[place] for place in range(len(items))]

    def _make_tokenizer(self, language: str) -> Tokenizer:
        multilingual = self._whisper.model.is_multilingual
        return Tokenizer(self._whisper.hf_tokenizer, multilingual, task="transcribe", language=language)


def _compute_type(configured: str, device: str) -> str:
    if configured == "auto":
        configured = "float16" if device == "cuda" else "int8"
    supported = ctranslate2.get_supported_compute_types(device)
    if configured not in supported:
        raise SetupError(
            f"TENOR_MODELS_WHISPER_COMPUTE is {configured}, which this {device} does not support: "
            f"use auto or one of {', '.join(sorted(supported))}"
        )
    return configured


def _storage(windows: Sequence[EncodedWindow]) -> ctranslate2.StorageView:
    return ctranslate2.StorageView.from_array(np.stack([window.features for window in windows]))


def _decoded(
    window: EncodedWindow,
    result: ctranslate2.models.WhisperGenerationResult,
    tokenizer: Tokenizer,
    max_tokens: int,
) -> DecodedWindow:
    tokens = result.sequences_ids[0]
    return DecodedWindow(
        window=window,
        tokens=tokens,
        text_tokens=[token for token in tokens if token < tokenizer.eot],
        text=tokenizer.decode(tokens).strip(),
        # CTranslate2 divides the sum by the number of tokens. Whisper's thresholds expect one more, the end token.
        log_probability=result.scores[0] * len(tokens) / (len(tokens) + 1),
        no_speech_probability=result.no_speech_prob,
        endless=len(tokens) >= max_tokens,
    )


def _aligned_word(word: dict[str, Any]) -> AlignedWord:
    span = (float(word["start"]), float(word["end"]))
    return AlignedWord(word["word"], len(word["tokens"]), span, float(word["probability"]))
