"""The transcriber: speech to text with Whisper, and detection of the language.

Whisper (Radford et al. 2022) runs in CTranslate2, which faster-whisper installs. Whisper was trained on windows of
30 s, so that its encoder spends most of its time on the padding of a short turn. A window of the clip plus three
seconds of silence gives the same text in a fraction of the time, if the decoder may emit its timestamp tokens. Where it
does not, the decoder's output shows it (improbable, repeating or endless text), and the clip is decoded again in the
full window. The language is detected from the same encoder output, so that nothing is encoded twice.

The lengths of windows are whole seconds. Windows of the same length share a batch, whichever clips they belong to. No
window is padded to the length of another, so that the transcript of a clip does not depend on the other clips. See
docs/decisions/0010-short-whisper-windows.md.
"""

# CTranslate2 has no annotations, and those of faster-whisper are incomplete.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false, reportUnknownLambdaType=false

import os
import zlib
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, TypeVar

import ctranslate2
import numpy as np
from faster_whisper import WhisperModel
from faster_whisper.feature_extractor import FeatureExtractor
from faster_whisper.tokenizer import Tokenizer
from faster_whisper.transcribe import merge_punctuations
from numpy.typing import NDArray

from shared.audio.decoder import SAMPLE_RATE, Samples
from shared.domain.language import standard_code, whisper_code
from shared.domain.transcript import Segment, Transcript, TranscriptSource, Word
from shared.errors import SetupError
from shared.modeling.segmentation import split_speech
from shared.modeling.vad import TimeSpan, detect_speech, duration_s, remove_dc_offset

Item = TypeVar("Item")
Result = TypeVar("Result")

HOP = 160
"""Samples per frame of the spectrogram. The encoder's output has half as many frames."""
FRAMES_PER_SECOND = SAMPLE_RATE // HOP
FULL_WINDOW_S = 30
"""The window that Whisper was trained on."""
MAX_CHUNK_S = 10.0
"""Longest audio that is decoded in one piece. In longer audio, Whisper base sometimes leaves out a sentence."""
MARGIN_S = 3
"""Least silence after the chunk in a short window. Up to a second is added to round the window to whole seconds."""
MAX_BATCH_WINDOWS = 16
"""Most windows in one batch."""
TIMESTAMP_S = 0.02
MAX_FIRST_TIMESTAMP = 50
"""In units of `TIMESTAMP_S`, so 1 s: Whisper's own limit for the first timestamp."""

MIN_LANGUAGE_PROBABILITY = 0.7
MIN_LOG_PROBABILITY = -1.0
MAX_COMPRESSION = 2.0
MAX_NO_SPEECH_PROBABILITY = 0.6
TOKENS_PER_SECOND = 25
"""The decoder is stopped beyond this rate, which no speech reaches, even in scripts with several tokens per letter."""
SPARE_TOKENS = 16

PREPENDED = "\"'“¿([{-"
APPENDED = "\"'.。,，!！?？:：”)]}、"  # noqa: RUF001


@dataclass(frozen=True, eq=False)
class Clip:
    """Audio of any length, to be transcribed.

    Attributes:
        samples: 16 kHz mono, shape [samples].
        language: BCP 47 tag of the spoken language, if it is known. It is then not detected, and the transcript's
            `language_probability` is None. A language that Whisper does not know is detected nevertheless.
        speech: the spans of `detect_speech`, if they are already known.
    """

    samples: Samples
    language: str | None = None
    speech: Sequence[TimeSpan] | None = None


@dataclass(frozen=True, eq=False)
class SpeechChunk:
    """Audio that is decoded in one piece.

    Attributes:
        span: start and end within the clip.
        samples: shape [samples].
    """

    span: TimeSpan
    samples: Samples

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
    """

    chunk: SpeechChunk
    full: bool
    features: NDArray[np.float32]

    @property
    def shape(self) -> tuple[bool, int]:
        """Windows of equal shape can share a batch."""
        return self.full, self.chunk.seconds


@dataclass(frozen=True)
class DecodedWindow:
    """The decoder's output for a window.

    Attributes:
        tokens: text and timestamp tokens.
        text: the text tokens as text.
        log_probability: mean over the tokens.
        no_speech_probability: Whisper's probability that nobody speaks.
        endless: whether the decoder was stopped at the limit of tokens.
    """

    tokens: list[int]
    text: str
    log_probability: float
    no_speech_probability: float
    endless: bool

    @property
    def repeats(self) -> bool:
        """Whether the text repeats itself, which shows in how well it can be compressed."""
        text = self.text.encode()
        return self.endless or len(text) > MAX_COMPRESSION * len(zlib.compress(text))

    @property
    def failed(self) -> bool:
        """Whether to decode again in the full window."""
        return self.repeats or self.log_probability < MIN_LOG_PROBABILITY

    @property
    def is_silence(self) -> bool:
        """Whether to drop the text, by Whisper's own rule against text that it invents for silence."""
        return self.no_speech_probability > MAX_NO_SPEECH_PROBABILITY and self.log_probability < MIN_LOG_PROBABILITY


class Transcriber:
    """A Whisper model in memory. Threads may share it. A call with several clips uses all of the model's workers."""

    def __init__(self, whisper: WhisperModel) -> None:
        self._whisper = whisper
        self._workers = ThreadPoolExecutor(whisper.model.num_workers, "transcriber")
        self._tokenizer = lru_cache(maxsize=None)(self._make_tokenizer)

    @classmethod
    def load(cls, folder: Path, device: str = "auto", compute: str = "auto") -> "Transcriber":
        """Returns the transcriber of a CTranslate2 Whisper model.

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

    def transcribe(self, clips: Sequence[Clip]) -> list[Transcript]:
        """Returns the transcript of each clip, without segments if nobody speaks in it."""
        chunks = [self._chunks(clip) for clip in clips]
        owners = [row for row, own in enumerate(chunks) for _ in own]
        windows = self._encode([chunk for own in chunks for chunk in own])
        known = [self._known_language(clip.language) for clip in clips]
        windows, detected = self._detect(windows, owners, known)
        languages = [known[row] or detected[row][0] for row in owners]
        segments: list[list[Segment]] = [[] for _ in clips]
        for row, found in zip(owners, self._segments(windows, languages), strict=True):
            segments[row] += found
        return [_transcript(*detected.get(row, (known[row], None)), tuple(segments[row])) for row in range(len(clips))]

    def detect_speech(self, samples: Samples) -> list[TimeSpan]:
        """Returns the spans in which somebody speaks; see `shared.modeling.vad.detect_speech`."""
        return detect_speech(samples)

    def _chunks(self, clip: Clip) -> list[SpeechChunk]:
        samples = remove_dc_offset(clip.samples)
        spoken = detect_speech(samples) if clip.speech is None else clip.speech
        spans = split_speech(spoken, samples, MAX_CHUNK_S)
        edges = [[round(time * SAMPLE_RATE) for time in span] for span in spans]
        return [SpeechChunk(span, samples[start:end]) for span, (start, end) in zip(spans, edges, strict=True)]

    def _encode(self, chunks: Sequence[SpeechChunk], full: bool = False) -> list[EncodedWindow]:
        def encode(batch: Sequence[SpeechChunk]) -> list[EncodedWindow]:
            seconds = FULL_WINDOW_S if full else batch[0].seconds + MARGIN_S
            spectrograms = np.stack([self._spectrogram(chunk.samples, seconds) for chunk in batch])
            # In main memory, because the next steps batch the windows differently.
            encoded = self._whisper.model.encode(ctranslate2.StorageView.from_array(spectrograms), to_cpu=True)
            rows = np.array(encoded.to(ctranslate2.DataType.float32))
            return [EncodedWindow(chunk, full, row) for chunk, row in zip(batch, rows, strict=True)]

        return self._run_in_batches(chunks, lambda chunk: chunk.seconds, encode)

    def _spectrogram(self, samples: Samples, seconds: int) -> NDArray[np.float32]:
        # The audio is padded and not the spectrogram: in a log-mel spectrogram, zeros are a loud hum.
        padded = np.pad(samples, (0, seconds * SAMPLE_RATE - samples.size))
        return self._whisper.feature_extractor(padded)[:, : seconds * FRAMES_PER_SECOND]

    def _detect(
        self, windows: list[EncodedWindow], owners: Sequence[int], known: Sequence[str | None]
    ) -> tuple[list[EncodedWindow], dict[int, tuple[str, float]]]:
        """Detects the languages of the clips whose language is not known.

        The language of a clip is detected in its longest chunk, which is usually its only one. If the probability is
        low, the chunk is encoded again in the full window, which then replaces the short one.

        Args:
            windows: the windows of all clips.
            owners: for each window, the index of its clip.
            known: for each clip, its language if it is known.

        Returns:
            The windows, and for each clip whose language was detected, the language and its probability.
        """
        by_length = sorted(range(len(windows)), key=lambda place: duration_s(windows[place].chunk.span))
        longest = {owners[place]: place for place in by_length if known[owners[place]] is None}
        places = list(longest.values())
        found = dict(zip(places, self._languages([windows[place] for place in places]), strict=True))
        unsure = [place for place, (_, probability) in found.items() if probability < MIN_LANGUAGE_PROBABILITY]
        full = self._encode([windows[place].chunk for place in unsure], full=True)
        found |= zip(unsure, self._languages(full), strict=True)
        return _replaced(windows, unsure, full), {row: found[place] for row, place in longest.items()}

    def _languages(self, windows: Sequence[EncodedWindow]) -> list[tuple[str, float]]:
        if not self._whisper.model.is_multilingual:
            return [("en", 1.0)] * len(windows)

        def detect(batch: Sequence[EncodedWindow]) -> list[tuple[str, float]]:
            likeliest = [candidates[0] for candidates in self._whisper.model.detect_language(_storage(batch))]
            return [(token.strip("<|>"), probability) for token, probability in likeliest]

        return self._run_in_batches(windows, lambda window: window.shape, detect)

    def _segments(self, windows: list[EncodedWindow], languages: Sequence[str]) -> list[list[Segment]]:
        windows, decoded = self._decode(windows, languages)
        tokenizers = [self._tokenizer(language) for language in languages]
        parts = [
            [] if text.is_silence else list(_parts(text.tokens, tokenizer, duration_s(window.chunk.span)))
            for window, text, tokenizer in zip(windows, decoded, tokenizers, strict=True)
        ]
        words = self._align(windows, languages, parts)
        return [list(_timed_segments(*of)) for of in zip(windows, tokenizers, parts, words, strict=True)]

    def _decode(
        self, windows: list[EncodedWindow], languages: Sequence[str]
    ) -> tuple[list[EncodedWindow], list[DecodedWindow]]:
        """Returns the text of the windows. A short window in which decoding fails is replaced by its full window."""
        decoded = self._generate(windows, languages)
        failed = [place for place, text in enumerate(decoded) if text.failed and not windows[place].full]
        full = self._encode([windows[place].chunk for place in failed], full=True)
        windows = _replaced(windows, failed, full)
        decoded = _replaced(decoded, failed, self._generate(full, [languages[place] for place in failed]))
        endless = [place for place, text in enumerate(decoded) if text.endless]
        # Slower, but a loop of repeated text cannot arise.
        retried = self._generate(
            [windows[place] for place in endless], [languages[place] for place in endless], beams=5, no_repeat=3
        )
        return windows, _replaced(decoded, endless, retried)

    def _generate(
        self, windows: Sequence[EncodedWindow], languages: Sequence[str], beams: int = 1, no_repeat: int = 0
    ) -> list[DecodedWindow]:
        """Runs the decoder.

        Args:
            windows: the windows to decode.
            languages: the language of each window.
            beams: the beam size.
            no_repeat: the length of token sequences that may not occur twice; 0 allows repetition.
        """

        def generate(batch: Sequence[tuple[EncodedWindow, str]]) -> list[DecodedWindow]:
            tokenizers = [self._tokenizer(language) for _, language in batch]
            prompts = [tokenizer.sot_sequence for tokenizer in tokenizers]
            max_tokens = SPARE_TOKENS + TOKENS_PER_SECOND * batch[0][0].chunk.seconds
            # CTranslate2 ends the decoding at half of `max_length`, the prompt not counted.
            max_tokens = min(self._whisper.max_length // 2, max_tokens)
            results = self._whisper.model.generate(
                _storage([window for window, _ in batch]),
                prompts,
                beam_size=beams,
                no_repeat_ngram_size=no_repeat,
                max_length=2 * max_tokens,
                max_initial_timestamp_index=MAX_FIRST_TIMESTAMP,
                return_scores=True,
                return_no_speech_prob=True,
            )
            return [_decoded(*of, max_tokens) for of in zip(results, tokenizers, strict=True)]

        return self._run_in_batches(list(zip(windows, languages, strict=True)), lambda item: item[0].shape, generate)

    def _align(
        self,
        windows: Sequence[EncodedWindow],
        languages: Sequence[str],
        parts: Sequence[Sequence[tuple[TimeSpan, list[int]]]],
    ) -> list[list[tuple[Word, ...]]]:
        """Returns the words of each window's parts, with times from the decoder's attention to the audio."""
        # faster-whisper's own annotations of these two are one level of lists short.
        find: Any = self._whisper.find_alignment
        merge: Any = merge_punctuations

        def align(batch: Sequence[int]) -> list[list[tuple[Word, ...]]]:
            those = [windows[place] for place in batch]
            texts = [[tokens for _, tokens in parts[place]] for place in batch]
            flat = [[token for part in text for token in part] for text in texts]
            frames = [window.chunk.frames for window in those]
            alignments = find(self._tokenizer(languages[batch[0]]), flat, _storage(those), frames)
            for alignment in alignments:
                merge(alignment, PREPENDED, APPENDED)
            spans = [window.chunk.span for window in those]
            return [list(_words(*of)) for of in zip(alignments, texts, spans, strict=True)]

        spoken = [place for place, own in enumerate(parts) if own]
        words = self._run_in_batches(spoken, lambda place: (languages[place], windows[place].shape), align)
        return _replaced([[] for _ in windows], spoken, words)

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

    def _known_language(self, language: str | None) -> str | None:
        if language is None:
            return None
        code = whisper_code(language)
        return code if code in self._languages_known else None

    @cached_property
    def _languages_known(self) -> set[str]:
        """Languages with a token in this model's vocabulary. Cantonese has none before large-v3."""
        has_token = self._whisper.hf_tokenizer.token_to_id
        multilingual = self._whisper.model.is_multilingual
        return {code for code in self._whisper.supported_languages if not multilingual or has_token(f"<|{code}|>")}


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


def _replaced(items: Sequence[Item], places: Sequence[int], others: Sequence[Item]) -> list[Item]:
    """Returns the items with those at some places replaced."""
    changed = dict(zip(places, others, strict=True))
    return [changed.get(place, item) for place, item in enumerate(items)]


def _storage(windows: Sequence[EncodedWindow]) -> ctranslate2.StorageView:
    return ctranslate2.StorageView.from_array(np.stack([window.features for window in windows]))


def _decoded(
    result: ctranslate2.models.WhisperGenerationResult, tokenizer: Tokenizer, max_tokens: int
) -> DecodedWindow:
    tokens = result.sequences_ids[0]
    return DecodedWindow(
        tokens=tokens,
        text=tokenizer.decode(tokens).strip(),
        # CTranslate2 divides the sum by the number of tokens. Whisper's thresholds expect one more, the end token.
        log_probability=result.scores[0] * len(tokens) / (len(tokens) + 1),
        no_speech_probability=result.no_speech_prob,
        endless=len(tokens) >= max_tokens,
    )


def _words(
    alignment: Sequence[dict[str, Any]], parts: Sequence[list[int]], span: TimeSpan
) -> Iterator[tuple[Word, ...]]:
    """Returns the words of each part. An alignment covers the tokens of all parts of a window as one text."""
    offset, limit = span
    aligned, taken = iter(alignment), 0
    for boundary in np.cumsum([len(part) for part in parts]):
        words = []
        while taken < boundary and (word := next(aligned, None)):
            taken += len(word["tokens"])
            if text := word["word"].strip():
                start, end = (round(min(limit, offset + float(word[side])), 3) for side in ("start", "end"))
                words.append(Word(start=start, end=end, text=text, probability=float(word["probability"])))
        yield tuple(words)


def _timed_segments(
    window: EncodedWindow,
    tokenizer: Tokenizer,
    parts: Sequence[tuple[TimeSpan, list[int]]],
    words_of_parts: Sequence[tuple[Word, ...]],
) -> Iterator[Segment]:
    offset = window.chunk.span[0]
    for ((start, end), tokens), words in zip(parts, words_of_parts, strict=True):
        if text := tokenizer.decode(tokens).strip():
            yield Segment(start=round(offset + start, 3), end=round(offset + end, 3), text=text, words=words)


def _parts(tokens: Sequence[int], tokenizer: Tokenizer, duration: float) -> Iterator[tuple[TimeSpan, list[int]]]:
    """Returns the text tokens between two timestamp tokens each, with their start and end in seconds in the window."""
    start, text = 0.0, []
    for token in tokens:
        if token < tokenizer.eot:
            text.append(token)
        elif token >= tokenizer.timestamp_begin:
            time = min(duration, (token - tokenizer.timestamp_begin) * TIMESTAMP_S)
            if text:
                yield (start, max(start, time)), text
            start, text = time, []
    if text:
        yield (start, duration), text


def _transcript(language: str | None, probability: float | None, segments: tuple[Segment, ...]) -> Transcript:
    return Transcript(
        language=None if language is None else standard_code(language),
        language_probability=probability,
        segments=segments,
        source=TranscriptSource.asr,
    )
