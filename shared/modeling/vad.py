"""Where somebody speaks, and where to cut what is long.

Silero's voice activity detector, which comes with faster-whisper.
"""

import os
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from faster_whisper.vad import VadOptions, get_speech_timestamps

from shared.audio.decoder import SAMPLE_RATE, Samples

# ONNX Runtime, which the detector imports when it is first used, would send its maker statistics of use.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

Span = tuple[float, float]
"""Start and end in seconds."""

PAUSE_S = 0.2
TURN_PAUSE_S = 1.0
"""Between two turns of a long recording."""
LONGEST_TURN_S = 30.0
"""That a long recording is cut into."""
MIN_SPEECH_S = 0.1
PAD_S = 0.4
"""Kept on each side of a stretch, since the detector is late on soft onsets."""


def speech(samples: Samples) -> list[Span]:
    """Where somebody speaks: tight stretches, parted by pauses of at least 0.2 s."""
    if samples.size < MIN_SPEECH_S * SAMPLE_RATE:
        return []
    options = VadOptions(
        min_speech_duration_ms=int(MIN_SPEECH_S * 1000),
        min_silence_duration_ms=int(PAUSE_S * 1000),
        speech_pad_ms=0,
    )
    stretches = get_speech_timestamps(centred(samples), options)
    return [(stretch["start"] / SAMPLE_RATE, stretch["end"] / SAMPLE_RATE) for stretch in stretches]


def centred(samples: Samples) -> Samples:
    """Without its constant offset, which would drown the quiet bands of the features."""
    return samples - samples.mean(dtype=np.float64).astype(np.float32) if samples.size else samples


def utterances(samples: Samples, max_s: float = LONGEST_TURN_S) -> list[Span]:
    """Stretches of speech, none longer than `max_s`, to be read one by one.

    Cuts lie in every pause of a second or more, and in a longer stretch in its longest pauses; within speech only
    where it goes on for longer than `max_s`. The silence between is left out. Spans are in order and do not overlap.
    """
    return split(speech(samples), samples.size / SAMPLE_RATE, max_s, TURN_PAUSE_S)


class Cutter:
    """Cuts a long recording into utterances while it comes, of which no more than one is kept between two parts."""

    def __init__(self) -> None:
        self._held = np.empty(0, np.float32)
        self._held_from = 0

    def add(self, part: Samples) -> list[tuple[float, Samples]]:
        """The utterances that are known to have ended by the end of a further part, shape [samples].

        Each comes with the second at which it starts.
        """
        self._held = np.concatenate([self._held, part])
        return self._ended(self._held.size / SAMPLE_RATE - TURN_PAUSE_S - PAD_S)

    def end(self) -> list[tuple[float, Samples]]:
        """The utterances that remain when there is no further part."""
        return self._ended(self._held.size / SAMPLE_RATE)

    def _ended(self, known: float) -> list[tuple[float, Samples]]:
        sound = self._held
        edges = [(int(start * SAMPLE_RATE), int(end * SAMPLE_RATE)) for start, end in utterances(sound)]
        ended = [span for span in edges if span[1] <= known * SAMPLE_RATE]
        offset = self._held_from
        rest = edges[len(ended)][0] if len(ended) < len(edges) else max(0, int(known * SAMPLE_RATE))
        # Copied, as a view would keep all of it.
        self._held, self._held_from = sound[rest:].copy(), offset + rest
        return [((offset + start) / SAMPLE_RATE, sound[start:end]) for start, end in ended]


def split(speech: Sequence[Span], duration: float, max_s: float, max_pause_s: float = np.inf) -> list[Span]:
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
    count = int(np.ceil(length(span) / max_s))
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


def length(span: Span) -> float:
    """In seconds."""
    return span[1] - span[0]
