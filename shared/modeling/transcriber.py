"""The transcriber: speech to text with Whisper, and detection of the language.

Whisper (Radford et al. 2022) was trained on windows of 30 s, so that its encoder spends most of its time on the padding
of a short turn. A window of the clip plus a few seconds of silence gives the same text in a fraction of the time, if
the decoder may emit its timestamp tokens. Where it does not, the decoder's output shows it (improbable, repeating or
endless text), and the clip is decoded again in the full window. Where words are missing, the clip is decoded in two
halves. The language is detected from the same encoder output, so that nothing is encoded twice.

The transcript of a clip does not depend on the other clips. See docs/decisions/0010-short-whisper-windows.md.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

import numpy as np

from shared.audio.decoder import SAMPLE_RATE, Samples
from shared.domain.language import standard_code, whisper_code
from shared.domain.transcript import MIN_LANGUAGE_PROBABILITY, Segment, Transcript, TranscriptSource, Word
from shared.modeling.repetition import compresses
from shared.modeling.segmentation import quietest_time, split_speech
from shared.modeling.spoken_language import combine, likeliest, stretch_language
from shared.modeling.vad import TimeSpan, detect_speech, duration_s, remove_dc_offset
from shared.modeling.whisper import AlignedWord, DecodedWindow, EncodedWindow, SpeechChunk, Whisper

Item = TypeVar("Item")

MAX_CHUNK_S = 15.0
"""Longest audio that is decoded in one piece. Less loses the first words after a pause, and more takes longer."""
MIN_HALVED_S = 1
"""Audio of this length or less, rounded up to seconds, is not cut in two."""
OVERLAP_S = 0.5
"""Audio that two chunks share where speech without a pause is cut between them."""
OVERLAP_TOLERANCE_S = 0.1
"""How differently two chunks may time the same word."""
TIMESTAMP_S = 0.02

MIN_LOG_PROBABILITY = -1.0
MAX_NO_SPEECH_PROBABILITY = 0.6
MAX_CHARACTERS_PER_SECOND = 35
"""Nobody speaks faster, in any script."""
MAX_WORD_S = 1.0
"""Of a word that is timed longer than this, only the edges count as covered: it may stretch over missing words."""
MAX_MISSED_S = 1.0
"""Speech of this length without a word shows that the decoder left words out."""
WORD_SLACK_S = 0.3
"""How far from its time a word may be spoken."""
ONSET_S = 0.1
"""How late the detector of speech may be."""


@dataclass(frozen=True, eq=False)
class Clip:
    """Audio of any length, to be transcribed.

    Attributes:
        samples: 16 kHz mono, shape [samples].
        language: BCP 47 tag of the spoken language, if it is known. It is then not detected, and the transcript's
            `language_probability` is None. A language that Whisper does not know is detected nevertheless.
        speech: the spans of `detect_speech`, if they are already known.
        earlier_languages: the languages of the session's earlier turns, which are likelier than others.
    """

    samples: Samples
    language: str | None = None
    speech: Sequence[TimeSpan] | None = None
    earlier_languages: Sequence[str] = ()


@dataclass(frozen=True, eq=False)
class TranscribedWindow:
    """The transcript of a window.

    Attributes:
        decoded: the decoder's output.
        segments: with words; times in seconds within the clip.
        missed_s: the longest speech in which there is no word, in seconds.
    """

    decoded: DecodedWindow
    segments: tuple[Segment, ...]
    missed_s: float

    @property
    def incomplete(self) -> bool:
        """Whether words are missing: the decoder was stopped, or left out what somebody says."""
        cut_off = self.decoded.endless and self.decoded.loop is None
        return cut_off or self.missed_s > MAX_MISSED_S


class Transcriber:
    """Transcribes clips with one Whisper model. Threads may share it."""

    def __init__(self, whisper: Whisper) -> None:
        self._whisper = whisper

    @classmethod
    def load(cls, folder: Path, device: str = "auto", compute: str = "auto") -> "Transcriber":
        """Returns the transcriber of a CTranslate2 Whisper model; see `Whisper.load`."""
        return cls(Whisper.load(folder, device, compute))

    def transcribe(self, clips: Sequence[Clip]) -> list[Transcript]:
        """Returns the transcript of each clip, without segments if nobody speaks in it."""
        chunks = [chunk for number, clip in enumerate(clips) for chunk in _chunks(number, clip)]
        known = [self._known_language(clip.language) for clip in clips]
        windows, languages = self._detect_languages(self._whisper.encode(chunks), clips, known)
        segments: list[list[Segment]] = [[] for _ in clips]
        for found in self._transcribe(windows):
            window = found.decoded.window
            clip_language, _ = languages[window.chunk.clip]
            own = None if window.language == clip_language else standard_code(window.language)
            earlier = segments[window.chunk.clip]
            earlier += [segment.model_copy(update={"language": own}) for segment in _without_overlap(earlier, found)]
        return [_transcript(*of) for of in zip(languages, segments, strict=True)]

    def detect_speech(self, samples: Samples) -> list[TimeSpan]:
        """Returns the spans in which somebody speaks; see `shared.modeling.vad.detect_speech`."""
        return detect_speech(samples)

    def _known_language(self, tag: str | None) -> str | None:
        code = None if tag is None else whisper_code(tag)
        return code if code in self._whisper.languages else None

    def _detect_languages(
        self, windows: list[EncodedWindow], clips: Sequence[Clip], known: Sequence[str | None]
    ) -> tuple[list[EncodedWindow], list[tuple[str | None, float | None]]]:
        """Detects the languages of the clips whose language is not known.

        If the probability is low, the longest chunk of the clip is encoded again in the full window, which then
        replaces the short one.

        Args:
            windows: the windows of all clips.
            clips: the clips.
            known: for each clip, its language if it is known.

        Returns:
            The windows with the languages in which to decode them, and for each clip its language with its probability.
        """
        unknown = [place for place, window in enumerate(windows) if known[window.chunk.clip] is None]
        found = dict(zip(unknown, self._whisper.detect_languages([windows[place] for place in unknown]), strict=True))
        places: dict[int, list[int]] = {}
        for place in unknown:
            places.setdefault(windows[place].chunk.clip, []).append(place)

        def clip_language(clip: int) -> tuple[str, float]:
            stretches = [(duration_s(windows[place].chunk.span), found[place]) for place in places[clip]]
            earlier = [whisper_code(tag) for tag in clips[clip].earlier_languages]
            return likeliest(combine(stretches, earlier))

        languages = {clip: clip_language(clip) for clip in places}
        unsure = [clip for clip, (_, probability) in languages.items() if probability < MIN_LANGUAGE_PROBABILITY]
        longest = [max(places[clip], key=lambda place: duration_s(windows[place].chunk.span)) for clip in unsure]
        full = self._whisper.encode([windows[place].chunk for place in longest], full=True)
        found |= zip(longest, self._whisper.detect_languages(full), strict=True)
        languages |= {clip: clip_language(clip) for clip in unsure}
        windows = _replaced(windows, longest, full)
        spoken = [
            known[window.chunk.clip]
            or stretch_language(duration_s(window.chunk.span), found[place], languages[window.chunk.clip][0])
            for place, window in enumerate(windows)
        ]
        windows = [replace(window, language=language) for window, language in zip(windows, spoken, strict=True)]
        given = [(language, None) for language in known]
        return windows, [languages.get(clip, of) for clip, of in enumerate(given)]

    def _transcribe(self, windows: Sequence[EncodedWindow], may_halve: bool = True) -> list[TranscribedWindow]:
        """Returns the transcripts of windows in order. Where words are missing, each half is transcribed by itself."""
        found = self._align(self._decode(windows))
        incomplete = [one for one in found if may_halve and one.incomplete and _can_be_halved(one)]
        halves = [half for one in incomplete for half in self._halves(one.decoded.window)]
        retried = iter(self._transcribe(halves, may_halve=False) if halves else [])
        better: dict[int, list[TranscribedWindow]] = {}
        for one in incomplete:
            pair = [next(retried), next(retried)]
            if one.decoded.endless or max(half.missed_s for half in pair) < one.missed_s:
                better[id(one)] = pair
        return [part for one in found for part in better.get(id(one), [one])]

    def _halves(self, window: EncodedWindow) -> list[EncodedWindow]:
        return [replace(half, language=window.language) for half in self._whisper.encode(_halves(window.chunk))]

    def _decode(self, windows: Sequence[EncodedWindow]) -> list[DecodedWindow]:
        """Returns the text of the windows. A short window in which decoding fails is replaced by its full window."""
        first = self._whisper.decode(windows)
        failed = [place for place, text in enumerate(first) if _failed(text) and not windows[place].full]
        full = self._whisper.encode([windows[place].chunk for place in failed], full=True)
        full = [replace(window, language=windows[place].language) for place, window in zip(failed, full, strict=True)]
        decoded = _replaced(first, failed, self._whisper.decode(full))
        failed = [place for place, text in enumerate(decoded) if _runs_on(text)]
        # Slower, but no three tokens can occur twice.
        retried = self._whisper.decode([decoded[place].window for place in failed], beams=5, no_repeat=3)
        last = _replaced(decoded, failed, retried)
        return [old if _runs_on(new) and not _runs_on(old) else new for old, new in zip(first, last, strict=True)]

    def _align(self, decoded: Sequence[DecodedWindow]) -> list[TranscribedWindow]:
        parts = [[] if _is_invented(text) else list(self._parts(text)) for text in decoded]
        spoken = [place for place, own in enumerate(parts) if own]
        words = self._whisper.align(
            [decoded[place].window for place in spoken],
            [[token for _, tokens in parts[place] for token in tokens] for place in spoken],
        )
        words = _replaced([[] for _ in decoded], spoken, words)
        return [self._transcribed(*of) for of in zip(decoded, parts, words, strict=True)]

    def _parts(self, decoded: DecodedWindow) -> Iterator[tuple[TimeSpan, list[int]]]:
        """Returns the text tokens between two timestamp tokens each, with their start and end in seconds in the window.

        Of a loop, the first occurrence is kept.
        """
        tokenizer = self._whisper.tokenizer(decoded.window.language)
        duration = decoded.window.chunk.samples.size / SAMPLE_RATE
        loop, number = decoded.loop, -1
        start, text = 0.0, list[int]()
        for token in decoded.tokens:
            if token < tokenizer.eot:
                number += 1
                if loop is None or not loop.start + loop.unit <= number < loop.start + loop.length:
                    text.append(token)
            elif token >= tokenizer.timestamp_begin:
                time = min(duration, (token - tokenizer.timestamp_begin) * TIMESTAMP_S)
                if text:
                    yield (start, max(start, time)), text
                start, text = time, list[int]()
        if text:
            yield (start, duration), text

    def _transcribed(
        self,
        decoded: DecodedWindow,
        parts: Sequence[tuple[TimeSpan, list[int]]],
        words: Sequence[AlignedWord],
    ) -> TranscribedWindow:
        tokenizer, chunk = self._whisper.tokenizer(decoded.window.language), decoded.window.chunk
        segments: list[Segment] = []
        for ((start, end), tokens), own in zip(parts, _words_of_parts(words, parts, chunk), strict=True):
            kept = [(written, word) for written, word in own if _owns(chunk, word)]
            text = tokenizer.decode(tokens) if len(kept) == len(own) else "".join(written for written, _ in kept)
            if text.strip():
                timed = tuple(word for _, word in kept)
                start, end = (timed[0].start, timed[-1].end) if timed else (start + chunk.span[0], end + chunk.span[0])
                segments.append(Segment(start=round(start, 3), end=round(end, 3), text=text.strip(), words=timed))
        spoken = [word for segment in segments for word in segment.words]
        return TranscribedWindow(decoded, tuple(segments), _missed_s(chunk, spoken))


def _chunks(number: int, clip: Clip) -> list[SpeechChunk]:
    samples = remove_dc_offset(clip.samples)
    speech = detect_speech(samples) if clip.speech is None else clip.speech
    spans = split_speech(speech, samples, MAX_CHUNK_S)
    cuts = {
        before[1]
        for before, after in pairwise(spans)
        if before[1] == after[0] and any(start < before[1] < end for start, end in speech)
    }
    return [_chunk(number, samples, span, speech, cuts) for span in spans]


def _chunk(number: int, samples: Samples, span: TimeSpan, speech: Sequence[TimeSpan], cuts: set[float]) -> SpeechChunk:
    """Returns the audio of a span. Where the span was cut within speech, the audio reaches into its neighbour's."""
    start, end = span
    own_start, own_end = start if start in cuts else -np.inf, end if end in cuts else np.inf
    start, end = max(0.0, start - OVERLAP_S * (start in cuts)), end + OVERLAP_S * (end in cuts)
    inside = [(max(start, a), min(end, b)) for a, b in speech if a < end and start < b]
    audio = samples[round(start * SAMPLE_RATE) : round(end * SAMPLE_RATE)]
    return SpeechChunk(number, (start, start + audio.size / SAMPLE_RATE), audio, inside, (own_start, own_end))


def _can_be_halved(transcribed: TranscribedWindow) -> bool:
    return transcribed.decoded.window.chunk.seconds > MIN_HALVED_S


def _halves(chunk: SpeechChunk) -> list[SpeechChunk]:
    """Returns a chunk in two parts, cut in the middle of its longest pause or, without one, where it is quietest."""
    start, end = chunk.span
    pauses = [(before[1], after[0]) for before, after in pairwise(chunk.speech)]
    if pauses:
        cut = sum(max(pauses, key=duration_s)) / 2
    else:
        quarter = (end - start) / 4
        cut = start + quietest_time(chunk.samples, (quarter, 3 * quarter))
    place = round((cut - start) * SAMPLE_RATE)
    first = [(a, min(b, cut)) for a, b in chunk.speech if a < cut]
    second = [(max(a, cut), b) for a, b in chunk.speech if b > cut]
    return [
        replace(chunk, span=(start, cut), samples=chunk.samples[:place], speech=first),
        replace(chunk, span=(cut, end), samples=chunk.samples[place:], speech=second),
    ]


def _failed(decoded: DecodedWindow) -> bool:
    """Whether to decode again in the full window."""
    improbable = decoded.log_probability < MIN_LOG_PROBABILITY
    return _runs_on(decoded) or decoded.endless or improbable or compresses(decoded.text)


def _runs_on(decoded: DecodedWindow) -> bool:
    """Whether the decoder wrote more than anybody could have said."""
    return (
        decoded.loop is not None
        or len(decoded.text) > MAX_CHARACTERS_PER_SECOND * decoded.window.chunk.samples.size / SAMPLE_RATE
    )


def _is_invented(decoded: DecodedWindow) -> bool:
    """Whether to drop the text: Whisper invented it for silence, by its own rule, or nobody can have said so much."""
    if _runs_on(decoded) and decoded.loop is None:
        return True
    improbable = decoded.log_probability < MIN_LOG_PROBABILITY
    return improbable and decoded.no_speech_probability > MAX_NO_SPEECH_PROBABILITY


def _words_of_parts(
    words: Sequence[AlignedWord], parts: Sequence[tuple[TimeSpan, list[int]]], chunk: SpeechChunk
) -> Iterator[list[tuple[str, Word]]]:
    """Yields the words of each part, as written and timed. An alignment covers the tokens of all parts as one text."""
    aligned, taken = iter(words), 0
    for boundary in np.cumsum([len(tokens) for _, tokens in parts]):
        own: list[tuple[str, Word]] = []
        while taken < boundary and (word := next(aligned, None)):
            taken += word.tokens
            if text := word.text.strip():
                start, end = _within_speech((chunk.span[0] + word.span[0], chunk.span[0] + word.span[1]), chunk)
                timed = Word(start=round(start, 3), end=round(end, 3), text=text, probability=word.probability)
                own.append((word.text, timed))
        yield own


def _within_speech(span: TimeSpan, chunk: SpeechChunk) -> TimeSpan:
    """Returns the time of a word without the silence before and after it."""
    start, end = (min(time, chunk.span[1]) for time in span)
    heard = [(a, b) for a, b in chunk.speech if a - ONSET_S < end and start < b + ONSET_S]
    if heard:
        start, end = max(start, heard[0][0] - ONSET_S), min(end, heard[-1][1] + ONSET_S)
    return start, max(start, end)


def _owns(chunk: SpeechChunk, word: Word) -> bool:
    middle = (word.start + word.end) / 2
    return chunk.owned[0] - OVERLAP_TOLERANCE_S <= middle < chunk.owned[1] + OVERLAP_TOLERANCE_S


def _without_overlap(earlier: Sequence[Segment], found: TranscribedWindow) -> Sequence[Segment]:
    """Returns the segments of a window without a first word that the window before has as its last word."""
    if not (earlier and earlier[-1].words and found.segments and found.segments[0].words):
        return found.segments
    last, first = earlier[-1].words[-1], found.segments[0].words[0]
    if first.start > last.end or _letters(first.text) != _letters(last.text):
        return found.segments
    words = found.segments[0].words[1:]
    if not words:
        return found.segments[1:]
    text = found.segments[0].text.removeprefix(first.text).strip()
    rest = found.segments[0].model_copy(update={"start": words[0].start, "text": text, "words": words})
    return [rest, *found.segments[1:]]


def _letters(text: str) -> str:
    return "".join(filter(str.isalnum, text.lower()))


def _missed_s(chunk: SpeechChunk, words: Sequence[Word]) -> float:
    """Returns the longest speech in which there is no word, in seconds."""
    covered = sorted(part for word in words for part in _covered(word))
    longest = 0.0
    for start, end in chunk.speech:
        for covered_start, covered_end in [*covered, (end, end)]:
            longest = max(longest, min(covered_start, end) - start)
            start = max(start, covered_end)
    return longest


def _covered(word: Word) -> list[TimeSpan]:
    start, end = word.start - WORD_SLACK_S, word.end + WORD_SLACK_S
    if word.end - word.start <= MAX_WORD_S:
        return [(start, end)]
    return [(start, word.start + MAX_WORD_S / 2), (word.end - MAX_WORD_S / 2, end)]


def _replaced(items: Sequence[Item], places: Sequence[int], others: Sequence[Item]) -> list[Item]:
    """Returns the items with those at some places replaced."""
    changed = dict(zip(places, others, strict=True))
    return [changed.get(place, item) for place, item in enumerate(items)]


def _transcript(language: tuple[str | None, float | None], segments: Sequence[Segment]) -> Transcript:
    code, probability = language
    return Transcript(
        language=None if code is None else standard_code(code),
        language_probability=probability,
        segments=tuple(segments),
        source=TranscriptSource.asr,
    )
