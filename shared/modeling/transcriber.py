"""Speech to text: in which language, and what is said.

Whisper (Radford et al. 2022) through CTranslate2, which comes with faster-whisper.
Whisper was trained on windows of 30 s, and its encoder spends most of a short turn's time on padding. A window of the
clip plus three seconds of silence gives the same words in a fraction of the time as long as the decoder may emit its
timestamp tokens; where it does not, the decoder shows it (improbable, repeating or endless text) and the clip is
decoded anew in the full window. The language is read off the same encoder output, so nothing is encoded twice.

Windows are of whole seconds, and those of one length go through the model together, whosever clips they are of. No
window is ever padded further for another's sake, so a clip's words are the same in whatever company it comes.
"""

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
from shared.domain.transcript import Segment, Transcript, TranscriptSource, Word
from shared.errors import SetupError
from shared.modeling.vad import Span, centred, length, speech, split

Item = TypeVar("Item")
Result = TypeVar("Result")

HOP = 160
"""Samples per feature frame; the encoder halves the frames."""
FRAMES_PER_SECOND = SAMPLE_RATE // HOP
FULL_S = 30
STRETCH_S = 10.0
"""Longest stretch that is decoded at once: in longer ones Whisper base now and then leaves out a sentence."""
MARGIN_S = 3
"""Silence after the stretch within a short window, at least; less than a second more makes it whole seconds."""
MOST_WINDOWS = 16
"""That go through a worker of the model at once."""
TIMESTAMP_S = 0.02
MAX_FIRST_TIMESTAMP = 50
"""A second: Whisper's own limit for the first timestamp."""

MIN_LANGUAGE_PROBABILITY = 0.7
MIN_LOG_PROBABILITY = -1.0
MAX_COMPRESSION = 2.0
MAX_NO_SPEECH_PROBABILITY = 0.6
TOKENS_PER_SECOND = 25
"""Far above any speech, also in scripts that take several tokens a letter."""
SPARE_TOKENS = 16

WHISPERS_OWN_CODES = {"jv": "jw", "nb": "no"}
"""Javanese and Norwegian Bokmål, by their ISO 639-1 codes."""

PREPENDED = "\"'“¿([{-"
APPENDED = "\"'.。,，!！?？:：”)]}、"  # noqa: RUF001


@dataclass(frozen=True, eq=False)
class Clip:
    """A recording of any length, to be transcribed.

    Attributes:
        samples: shape [samples].
        language: what is spoken, where that is known (`en`, or `en-GB`): it is not detected then, and the transcript's
            `language_probability` is None. One that Whisper does not know is detected.
        speech: where somebody speaks, as `speech` tells, where that was asked before.
    """

    samples: Samples
    language: str | None = None
    speech: Sequence[Span] | None = None


@dataclass(frozen=True, eq=False)
class Stretch:
    """Speech that is decoded at once: where it lies in its recording, and how it sounds."""

    span: Span
    sound: Samples

    @property
    def frames(self) -> int:
        return -(-self.sound.size // HOP)

    @property
    def seconds(self) -> int:
        """Its length, rounded up."""
        return -(-self.sound.size // SAMPLE_RATE)


@dataclass(frozen=True, eq=False)
class Window:
    """A stretch, encoded.

    Attributes:
        full: whether the encoder saw its 30 s.
        encoded: shape [encoded frames / 2, width].
    """

    stretch: Stretch
    full: bool
    encoded: NDArray[np.float32]

    @property
    def kind(self) -> tuple[bool, int]:
        """Windows of one kind may go through the model together."""
        return self.full, self.stretch.seconds


@dataclass(frozen=True)
class Decoded:
    """What the decoder made of a window; `log_probability` is the mean over the tokens."""

    tokens: list[int]
    text: str
    log_probability: float
    no_speech_probability: float
    endless: bool

    @property
    def repeats(self) -> bool:
        """Whether the decoder fell into a loop."""
        text = self.text.encode()
        return self.endless or len(text) > MAX_COMPRESSION * len(zlib.compress(text))

    @property
    def failed(self) -> bool:
        return self.repeats or self.log_probability < MIN_LOG_PROBABILITY

    @property
    def is_silence(self) -> bool:
        """Whisper's own rule against phantom words."""
        return self.no_speech_probability > MAX_NO_SPEECH_PROBABILITY and self.log_probability < MIN_LOG_PROBABILITY


class Transcriber:
    """A Whisper model in memory, which threads may share. A call with several clips uses all of the model's workers."""

    def __init__(self, whisper: WhisperModel) -> None:
        self._whisper = whisper
        self._workers = ThreadPoolExecutor(whisper.model.num_workers, "transcriber")
        self._tokenizer = lru_cache(maxsize=None)(self._make_tokenizer)

    @classmethod
    def load(cls, folder: Path, device: str = "auto", compute: str = "auto") -> "Transcriber":
        """Read a CTranslate2 Whisper model.

        Args:
            folder: as `whisper_folder` gives it.
            device: auto, cpu or cuda.
            compute: CTranslate2's type to compute with; auto is int8 on the CPU and float16 on CUDA.

        Raises:
            SetupError: the device does not compute with that type.
        """
        if device == "auto":
            device = "cuda" if ctranslate2.get_cuda_device_count() else "cpu"
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        # A second thread hardly makes a short window faster, and two windows at once take little longer than one.
        threads = max(1, min(4, cores // 2))
        whisper = WhisperModel(
            str(folder),
            device=device,
            compute_type=_compute_type(compute, device),
            cpu_threads=threads,
            num_workers=cores // threads if device == "cpu" else 1,
        )
        # Its folder need not say how many bands it hears: 80, or 128 from large-v3 on.
        whisper.feature_extractor = FeatureExtractor(feature_size=whisper.model.n_mels)
        return cls(whisper)

    def transcribe(self, clips: Sequence[Clip]) -> list[Transcript]:
        """Each clip's words; no segments where nobody speaks."""
        stretches = [self._stretches(clip) for clip in clips]
        owners = [row for row, own in enumerate(stretches) for _ in own]
        windows = self._encode([stretch for own in stretches for stretch in own])
        known = [self._known_language(clip.language) for clip in clips]
        windows, detected = self._detect(windows, owners, known)
        languages = [known[row] or detected[row][0] for row in owners]
        segments: list[list[Segment]] = [[] for _ in clips]
        for row, heard in zip(owners, self._segments(windows, languages), strict=True):
            segments[row] += heard
        return [_transcript(*detected.get(row, (known[row], None)), tuple(segments[row])) for row in range(len(clips))]

    def speech(self, samples: Samples) -> list[Span]:
        """Where somebody speaks: tight stretches, parted by pauses of at least 0.2 s."""
        return speech(samples)

    def _stretches(self, clip: Clip) -> list[Stretch]:
        samples = centred(clip.samples)
        spoken = speech(samples) if clip.speech is None else clip.speech
        spans = split(spoken, samples.size / SAMPLE_RATE, STRETCH_S)
        edges = [[round(time * SAMPLE_RATE) for time in span] for span in spans]
        return [Stretch(span, samples[start:end]) for span, (start, end) in zip(spans, edges, strict=True)]

    def _encode(self, stretches: Sequence[Stretch], full: bool = False) -> list[Window]:
        def encode(alike: Sequence[Stretch]) -> list[Window]:
            seconds = FULL_S if full else alike[0].seconds + MARGIN_S
            features = np.stack([self._features(stretch.sound, seconds) for stretch in alike])
            # From there to main memory, in which windows are put together anew for whatever comes next.
            encoded = self._whisper.model.encode(ctranslate2.StorageView.from_array(features), to_cpu=True)
            rows = np.array(encoded.to(ctranslate2.DataType.float32))
            return [Window(stretch, full, row) for stretch, row in zip(alike, rows, strict=True)]

        return self._together(stretches, lambda stretch: stretch.seconds, encode)

    def _features(self, sound: Samples, seconds: int) -> NDArray[np.float32]:
        # Padded as sound, not as features: zeros among the features are a hum that the decoder stumbles over.
        padded = np.pad(sound, (0, seconds * SAMPLE_RATE - sound.size))
        return self._whisper.feature_extractor(padded)[:, : seconds * FRAMES_PER_SECOND]

    def _detect(
        self, windows: list[Window], owners: Sequence[int], known: Sequence[str | None]
    ) -> tuple[list[Window], dict[int, tuple[str, float]]]:
        """The languages of the clips of which none is known; a window that leaves it unsure gives way to its full one.

        The longest stretch tells the language best, and most turns are but one stretch.
        """
        by_length = sorted(range(len(windows)), key=lambda place: length(windows[place].stretch.span))
        longest = {owners[place]: place for place in by_length if known[owners[place]] is None}
        asked = list(longest.values())
        found = dict(zip(asked, self._languages([windows[place] for place in asked]), strict=True))
        unsure = [place for place, (_, probability) in found.items() if probability < MIN_LANGUAGE_PROBABILITY]
        full = self._encode([windows[place].stretch for place in unsure], full=True)
        found |= zip(unsure, self._languages(full), strict=True)
        return _replaced(windows, unsure, full), {row: found[place] for row, place in longest.items()}

    def _languages(self, windows: Sequence[Window]) -> list[tuple[str, float]]:
        if not self._whisper.model.is_multilingual:
            return [("en", 1.0)] * len(windows)

        def detect(alike: Sequence[Window]) -> list[tuple[str, float]]:
            likeliest = [candidates[0] for candidates in self._whisper.model.detect_language(_storage(alike))]
            return [(token.strip("<|>"), probability) for token, probability in likeliest]

        return self._together(windows, lambda window: window.kind, detect)

    def _segments(self, windows: list[Window], languages: Sequence[str]) -> list[list[Segment]]:
        windows, decoded = self._decode(windows, languages)
        tokenizers = [self._tokenizer(language) for language in languages]
        parts = [
            [] if text.is_silence else list(_parts(text.tokens, tokenizer, length(window.stretch.span)))
            for window, text, tokenizer in zip(windows, decoded, tokenizers, strict=True)
        ]
        timed = self._align(windows, languages, parts)
        return [list(_timed_segments(*of)) for of in zip(windows, tokenizers, parts, timed, strict=True)]

    def _decode(self, windows: list[Window], languages: Sequence[str]) -> tuple[list[Window], list[Decoded]]:
        """What is said in the windows; one in which decoding fails gives way to its full one."""
        decoded = self._generate(windows, languages)
        failed = [place for place, text in enumerate(decoded) if text.failed and not windows[place].full]
        full = self._encode([windows[place].stretch for place in failed], full=True)
        windows = _replaced(windows, failed, full)
        decoded = _replaced(decoded, failed, self._generate(full, [languages[place] for place in failed]))
        endless = [place for place, text in enumerate(decoded) if text.endless]
        again = self._generate(
            [windows[place] for place in endless], [languages[place] for place in endless], beams=5, unrepeated=3
        )
        return windows, _replaced(decoded, endless, again)

    def _generate(
        self, windows: Sequence[Window], languages: Sequence[str], beams: int = 1, unrepeated: int = 0
    ) -> list[Decoded]:
        def generate(alike: Sequence[tuple[Window, str]]) -> list[Decoded]:
            tokenizers = [self._tokenizer(language) for _, language in alike]
            prompts = [tokenizer.sot_sequence for tokenizer in tokenizers]
            spoken = TOKENS_PER_SECOND * alike[0][0].stretch.seconds
            budget = min(self._whisper.max_length, len(prompts[0]) + SPARE_TOKENS + spoken)
            results = self._whisper.model.generate(
                _storage([window for window, _ in alike]),
                prompts,
                beam_size=beams,
                no_repeat_ngram_size=unrepeated,
                max_length=budget,
                max_initial_timestamp_index=MAX_FIRST_TIMESTAMP,
                return_scores=True,
                return_no_speech_prob=True,
            )
            room = budget - len(prompts[0])
            return [_decoded(result, tokenizer, room) for result, tokenizer in zip(results, tokenizers, strict=True)]

        return self._together(list(zip(windows, languages, strict=True)), lambda item: item[0].kind, generate)

    def _align(
        self, windows: Sequence[Window], languages: Sequence[str], parts: Sequence[Sequence[tuple[Span, list[int]]]]
    ) -> list[list[tuple[Word, ...]]]:
        """The words of each window's parts, timed by the decoder's attention to the sound."""
        # faster-whisper's own annotations of these two are one level of lists short.
        find: Any = self._whisper.find_alignment
        merge: Any = merge_punctuations

        def align(alike: Sequence[int]) -> list[list[tuple[Word, ...]]]:
            those = [windows[place] for place in alike]
            texts = [[tokens for _, tokens in parts[place]] for place in alike]
            flat = [[token for part in text for token in part] for text in texts]
            frames = [window.stretch.frames for window in those]
            found = find(self._tokenizer(languages[alike[0]]), flat, _storage(those), frames)
            for alignment in found:
                merge(alignment, PREPENDED, APPENDED)
            spans = [window.stretch.span for window in those]
            return [list(_words(*of)) for of in zip(found, texts, spans, strict=True)]

        spoken = [place for place, own in enumerate(parts) if own]
        timed = self._together(spoken, lambda place: (languages[place], windows[place].kind), align)
        return _replaced([[] for _ in windows], spoken, timed)

    def _together(
        self, items: Sequence[Item], kind: Callable[[Item], Hashable], run: Callable[[Sequence[Item]], list[Result]]
    ) -> list[Result]:
        """Run items of one kind together, at most `MOST_WINDOWS` and no more than leaves something for each worker.

        The results are in the items' order.
        """
        kinds: dict[Hashable, list[int]] = defaultdict(list)
        for place, item in enumerate(items):
            kinds[kind(item)].append(place)
        most = max(1, min(MOST_WINDOWS, -(-len(items) // self._whisper.model.num_workers)))
        batches = [places[first : first + most] for places in kinds.values() for first in range(0, len(places), most)]
        ran = self._workers.map(lambda places: run([items[place] for place in places]), batches)
        results: dict[int, Result] = {}
        for places, own in zip(batches, ran, strict=True):
            results |= zip(places, own, strict=True)
        return [results[place] for place in range(len(items))]

    def _make_tokenizer(self, language: str) -> Tokenizer:
        multilingual = self._whisper.model.is_multilingual
        return Tokenizer(self._whisper.hf_tokenizer, multilingual, task="transcribe", language=language)

    def _known_language(self, language: str | None) -> str | None:
        if language is None:
            return None
        code = language.lower().replace("_", "-").split("-")[0]
        code = WHISPERS_OWN_CODES.get(code, code)
        return code if code in self._languages_known else None

    @cached_property
    def _languages_known(self) -> set[str]:
        """Those that have a token: Cantonese has none before large-v3."""
        has_token = self._whisper.hf_tokenizer.token_to_id
        multilingual = self._whisper.model.is_multilingual
        return {code for code in self._whisper.supported_languages if not multilingual or has_token(f"<|{code}|>")}


def _compute_type(configured: str, device: str) -> str:
    if configured == "auto":
        configured = "float16" if device == "cuda" else "int8"
    supported = ctranslate2.get_supported_compute_types(device)
    if configured not in supported:
        raise SetupError(
            f"TENOR_WHISPER_COMPUTE is {configured}, with which this {device} does not compute: "
            f"use auto or one of {', '.join(sorted(supported))}"
        )
    return configured


def _replaced(items: Sequence[Item], places: Sequence[int], others: Sequence[Item]) -> list[Item]:
    changed = dict(zip(places, others, strict=True))
    return [changed.get(place, item) for place, item in enumerate(items)]


def _storage(windows: Sequence[Window]) -> ctranslate2.StorageView:
    return ctranslate2.StorageView.from_array(np.stack([window.encoded for window in windows]))


def _decoded(result: ctranslate2.models.WhisperGenerationResult, tokenizer: Tokenizer, room: int) -> Decoded:
    tokens = result.sequences_ids[0]
    return Decoded(
        tokens=tokens,
        text=tokenizer.decode(tokens).strip(),
        log_probability=result.scores[0] * len(tokens) / (len(tokens) + 1),
        no_speech_probability=result.no_speech_prob,
        endless=len(tokens) >= room,
    )


def _words(alignment: Sequence[dict[str, Any]], parts: Sequence[list[int]], span: Span) -> Iterator[tuple[Word, ...]]:
    """Each part's words; the alignment knows the parts' tokens only as one text."""
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
    window: Window,
    tokenizer: Tokenizer,
    parts: Sequence[tuple[Span, list[int]]],
    timed: Sequence[tuple[Word, ...]],
) -> Iterator[Segment]:
    offset = window.stretch.span[0]
    for ((start, end), tokens), words in zip(parts, timed, strict=True):
        if text := tokenizer.decode(tokens).strip():
            yield Segment(start=round(offset + start, 3), end=round(offset + end, 3), text=text, words=words)


def _parts(tokens: Sequence[int], tokenizer: Tokenizer, duration: float) -> Iterator[tuple[Span, list[int]]]:
    """The text tokens between two timestamps, with the times in seconds within the window."""
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
        language=language, language_probability=probability, segments=segments, source=TranscriptSource.asr
    )
