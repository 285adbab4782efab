"""Speech to text: where somebody speaks, in which language, and what is said.

Whisper (Radford et al. 2022) through CTranslate2, and Silero's voice activity detector; both come with faster-whisper.
Whisper was trained on windows of 30 s, and its encoder spends most of a short turn's time on padding. A window of the
clip plus three seconds of silence gives the same words in a fraction of the time as long as the decoder may emit its
timestamp tokens; where it does not, the decoder shows it (improbable, repeating or endless text) and the clip is
decoded anew in the full window. The language is read off the same encoder output, so nothing is encoded twice.
"""

import os
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import ctranslate2
import numpy as np
from faster_whisper import WhisperModel
from faster_whisper.tokenizer import Tokenizer
from faster_whisper.transcribe import merge_punctuations
from faster_whisper.vad import VadOptions, get_speech_timestamps

from shared.audio import SAMPLE_RATE, Samples
from shared.domain.transcript import Segment, Transcript, TranscriptSource, Word

Span = tuple[float, float]
"""Start and end in seconds."""

HOP = 160
"""Samples per feature frame; the encoder halves the frames."""
FULL_FRAMES = 3000
STRETCH_S = 10.0
"""Longest stretch that is decoded at once: in longer ones Whisper base now and then leaves out a sentence."""
MARGIN_S = 3.0
"""Silence after the stretch within a short window."""
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

PAUSE_S = 0.2
TURN_PAUSE_S = 1.0
"""Between two turns of a long recording."""
MIN_SPEECH_S = 0.1
PAD_S = 0.4
"""Kept on each side of a stretch, since the detector is late on soft onsets."""

PREPENDED = "\"'“¿([{-"
APPENDED = "\"'.。,，!！?？:：”)]}、"  # noqa: RUF001


@dataclass(frozen=True)
class Window:
    """A stretch of speech, encoded.

    Attributes:
        span: where it lies in the recording.
        frames: feature frames that hold sound; the rest of the encoded ones is silence.
        full: whether the encoder saw its 30 s.
        encoded: shape [1, encoded frames / 2, width].
    """

    span: Span
    frames: int
    full: bool
    encoded: ctranslate2.StorageView


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
    """A Whisper model in memory. Threads may share it; on the CPU one call already uses up to four cores."""

    def __init__(self, whisper: WhisperModel) -> None:
        self._whisper = whisper
        self._tokenizer = lru_cache(maxsize=None)(self._make_tokenizer)

    @classmethod
    def load(cls, folder: Path, device: str = "auto", compute_type: str | None = None) -> "Transcriber":
        """Read a CTranslate2 Whisper model.

        Args:
            folder: as `whisper_folder` gives it.
            device: auto, cpu or cuda.
            compute_type: CTranslate2's; int8 on the CPU and float16 on CUDA if not given.
        """
        if device == "auto":
            device = "cuda" if ctranslate2.get_cuda_device_count() else "cpu"
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        threads = min(4, cores)
        whisper = WhisperModel(
            str(folder),
            device=device,
            compute_type=compute_type or ("float16" if device == "cuda" else "int8"),
            cpu_threads=threads,
            num_workers=max(1, cores // threads),
        )
        return cls(whisper)

    def transcribe(
        self, samples: Samples, language: str | None = None, speech: Sequence[Span] | None = None
    ) -> Transcript:
        """The words of a recording of any length; no segments where nobody speaks.

        Args:
            samples: shape [samples].
            language: what is spoken, where that is known (`en`, or `en-GB`): it is not detected then, and the
                transcript's `language_probability` is None. One that Whisper does not know is detected.
            speech: where somebody speaks, as `speech` tells, where that was asked before.
        """
        probability = None
        language = self._known_language(language)
        samples = _centred(samples)
        spans = _split(self._speech(samples) if speech is None else speech, samples.size / SAMPLE_RATE, STRETCH_S)
        if not spans:
            return _transcript(language, None, ())
        # The longest stretch tells the language best, and most turns are but one stretch.
        longest = max(spans, key=_length)
        window = self._encode(samples, longest)
        if language is None:
            window, language, probability = self._detect(samples, window)
        segments: list[Segment] = []
        for span in spans:
            stretch = window if span == longest else self._encode(samples, span)
            segments += self._segments(samples, stretch, language)
        return _transcript(language, probability, tuple(segments))

    def warm_up(self) -> None:
        """Run everything once, so that the first turn is as fast as the next."""
        second = np.zeros(SAMPLE_RATE, np.float32)
        self._speech(second)
        self._segments(second, self._encode(second, (0.0, 1.0)), "en")

    def speech(self, samples: Samples) -> list[Span]:
        """Where somebody speaks: tight stretches, parted by pauses of at least 0.2 s."""
        return self._speech(_centred(samples))

    def utterances(self, samples: Samples, max_s: float = 30.0) -> list[Span]:
        """The recording as one utterance if it is no longer than `max_s`, else cut into stretches of speech.

        Cuts lie in every pause of a second or more, and in a longer stretch in its longest pauses; within speech only
        where it goes on for longer than `max_s`. The silence between is left out. Spans are in order, do not overlap
        and are at most `max_s` long.
        """
        duration = samples.size / SAMPLE_RATE
        if duration <= max_s:
            return [(0.0, duration)]
        return _split(self.speech(samples), duration, max_s, TURN_PAUSE_S)

    def _speech(self, samples: Samples) -> list[Span]:
        if samples.size < MIN_SPEECH_S * SAMPLE_RATE:
            return []
        options = VadOptions(
            min_speech_duration_ms=int(MIN_SPEECH_S * 1000),
            min_silence_duration_ms=int(PAUSE_S * 1000),
            speech_pad_ms=0,
        )
        stretches = get_speech_timestamps(samples, options)
        return [(stretch["start"] / SAMPLE_RATE, stretch["end"] / SAMPLE_RATE) for stretch in stretches]

    def _encode(self, samples: Samples, span: Span, full: bool = False) -> Window:
        start, end = (round(time * SAMPLE_RATE) for time in span)
        sound = samples[start:end]
        frames = -(-sound.size // HOP)
        window = FULL_FRAMES if full else (frames + round(MARGIN_S * SAMPLE_RATE / HOP)) // 2 * 2
        # Padded as sound, not as features: zeros among the features are a hum that the decoder stumbles over.
        padded = np.pad(sound, (0, window * HOP - sound.size))
        features = self._whisper.feature_extractor(padded)[:, :window]
        return Window(span, frames, full, self._whisper.encode(features))

    def _detect(self, samples: Samples, window: Window) -> tuple[Window, str, float]:
        language, probability = self._language(window)
        if not window.full and probability < MIN_LANGUAGE_PROBABILITY:
            window = self._encode(samples, window.span, full=True)
            language, probability = self._language(window)
        return window, language, probability

    def _language(self, window: Window) -> tuple[str, float]:
        if not self._whisper.model.is_multilingual:
            return "en", 1.0
        token, probability = self._whisper.model.detect_language(window.encoded)[0][0]
        return token.strip("<|>"), probability

    def _segments(self, samples: Samples, window: Window, language: str) -> list[Segment]:
        decoded = self._decode(window, language)
        if not window.full and decoded.failed:
            window = self._encode(samples, window.span, full=True)
            decoded = self._decode(window, language)
        if decoded.endless:
            decoded = self._decode(window, language, beams=5, unrepeated=3)
        if decoded.is_silence:
            return []
        tokenizer = self._tokenizer(language)
        parts = list(_parts(decoded.tokens, tokenizer, _length(window.span)))
        timed = self._words(window, tokenizer, [tokens for _, tokens in parts]) if parts else []
        segments = []
        for ((start, end), tokens), spoken in zip(parts, timed, strict=True):
            if text := tokenizer.decode(tokens).strip():
                offset = window.span[0]
                segments.append(
                    Segment(start=round(offset + start, 3), end=round(offset + end, 3), text=text, words=spoken)
                )
        return segments

    def _decode(self, window: Window, language: str, beams: int = 1, unrepeated: int = 0) -> Decoded:
        tokenizer = self._tokenizer(language)
        prompt = tokenizer.sot_sequence
        budget = min(
            self._whisper.max_length, len(prompt) + SPARE_TOKENS + int(TOKENS_PER_SECOND * _length(window.span))
        )
        result = self._whisper.model.generate(
            window.encoded,
            [prompt],
            beam_size=beams,
            no_repeat_ngram_size=unrepeated,
            max_length=budget,
            max_initial_timestamp_index=MAX_FIRST_TIMESTAMP,
            return_scores=True,
            return_no_speech_prob=True,
        )[0]
        tokens = result.sequences_ids[0]
        return Decoded(
            tokens=tokens,
            text=tokenizer.decode(tokens).strip(),
            log_probability=result.scores[0] * len(tokens) / (len(tokens) + 1),
            no_speech_probability=result.no_speech_prob,
            endless=len(prompt) + len(tokens) >= budget,
        )

    def _words(self, window: Window, tokenizer: Tokenizer, parts: Sequence[list[int]]) -> list[tuple[Word, ...]]:
        """Each part's words, timed by the decoder's attention to the sound."""
        tokens = [token for part in parts for token in part]
        # faster-whisper's own annotations of these two are one level of lists short.
        find: Any = self._whisper.find_alignment
        merge: Any = merge_punctuations
        (alignment,) = find(tokenizer, [tokens], window.encoded, window.frames)
        merge(alignment, PREPENDED, APPENDED)
        offset, limit = window.span
        timed: list[tuple[Word, ...]] = []
        taken = 0
        for boundary in np.cumsum([len(part) for part in parts]):
            words = []
            while alignment and taken < boundary:
                word = alignment.pop(0)
                taken += len(word["tokens"])
                if text := word["word"].strip():
                    start, end = (round(min(limit, offset + float(word[side])), 3) for side in ("start", "end"))
                    words.append(Word(start=start, end=end, text=text, probability=float(word["probability"])))
            timed.append(tuple(words))
        return timed

    def _make_tokenizer(self, language: str) -> Tokenizer:
        multilingual = self._whisper.model.is_multilingual
        return Tokenizer(self._whisper.hf_tokenizer, multilingual, task="transcribe", language=language)

    def _known_language(self, language: str | None) -> str | None:
        if language is None:
            return None
        code = language.lower().replace("_", "-").split("-")[0]
        code = WHISPERS_OWN_CODES.get(code, code)
        return code if code in self._whisper.supported_languages else None


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


def _split(speech: Sequence[Span], duration: float, max_s: float, max_pause_s: float = np.inf) -> list[Span]:
    """Stretches of speech of at most `max_s` and without a pause of `max_pause_s` or more.

    They are padded into the pauses beside them as far as there is room.
    """
    groups, waiting = [], [list(speech)] if speech else []
    while waiting:
        group = waiting.pop()
        pauses = [after[0] - before[1] for before, after in pairwise(group)]
        if group[-1][1] - group[0][0] <= max_s and max(pauses, default=0.0) < max_pause_s:
            groups.append((group[0][0], group[-1][1]))
        elif len(group) == 1:
            groups.extend(_hard_cuts(group[0], max_s))
        else:
            cut = int(np.argmax(pauses)) + 1
            waiting += [group[cut:], group[:cut]]  # the earlier half is taken first
    return _padded(groups, duration, max_s)


def _hard_cuts(span: Span, max_s: float) -> list[Span]:
    count = int(np.ceil(_length(span) / max_s))
    edges = np.linspace(*span, count + 1).tolist()
    return list(pairwise(edges))


def _padded(spans: Sequence[Span], duration: float, max_s: float) -> list[Span]:
    edges = [0.0, *(edge for span in spans for edge in span), duration]
    padded = []
    for i, (start, end) in enumerate(spans):
        room = max(0.0, (max_s - (end - start)) / 2)
        before = (start - edges[2 * i]) / (2 if i else 1)
        after = (edges[2 * i + 3] - end) / (2 if i < len(spans) - 1 else 1)
        padded.append((start - min(PAD_S, room, before), end + min(PAD_S, room, after)))
    return padded


def _length(span: Span) -> float:
    return span[1] - span[0]


def _centred(samples: Samples) -> Samples:
    """Without its constant offset, which would drown the quiet bands of the features."""
    return samples - samples.mean(dtype=np.float64).astype(np.float32) if samples.size else samples


def _transcript(language: str | None, probability: float | None, segments: tuple[Segment, ...]) -> Transcript:
    return Transcript(
        language=language, language_probability=probability, segments=segments, source=TranscriptSource.asr
    )
