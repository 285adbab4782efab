"""Segmentation: cuts long recordings into utterances, at the pauses between spans of speech."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from shared.audio.decoder import SAMPLE_RATE, Samples
from shared.modeling.vad import TimeSpan, detect_speech

UTTERANCE_PAUSE_S = 1.0
"""A pause of this length or more ends an utterance."""
MAX_UTTERANCE_S = 30.0
QUIET_S = 0.15
"""Least silence between words, roughly. The closure of a consonant within a word is shorter."""
PADDING_S = 0.4
"""Audio kept before and after each span of speech, because the detector is late on soft onsets."""


def find_utterances(samples: Samples, max_s: float = MAX_UTTERANCE_S) -> list[TimeSpan]:
    """Returns the utterances of a recording, in order and without overlap, none longer than `max_s` seconds.

    Every pause of `UTTERANCE_PAUSE_S` or more is a cut. An utterance that is still too long is cut at its longest
    pauses, and if it has none, where it is quietest. The silence between utterances belongs to none of them.

    Args:
        samples: 16 kHz mono audio, shape [samples].
        max_s: longest utterance, in seconds.
    """
    return split_speech(detect_speech(samples), samples, max_s, UTTERANCE_PAUSE_S)


class UtteranceSplitter:
    """Cuts a recording into utterances while it is decoded part by part.

    Between two parts it keeps in memory only the audio of an utterance that may not have ended yet.
    """

    def __init__(self) -> None:
        self._pending = np.empty(0, np.float32)
        self._pending_start = 0

    def add(self, part: Samples) -> list[tuple[float, Samples]]:
        """Returns the utterances that have certainly ended, given the next part of the recording.

        Args:
            part: 16 kHz mono audio, shape [samples].

        Returns:
            For each utterance, its start in seconds within the recording and its samples.
        """
        self._pending = np.concatenate([self._pending, part])
        # Later audio could still move an edge that is closer to the end than this.
        return self._take_ended(self._pending.size / SAMPLE_RATE - UTTERANCE_PAUSE_S - PADDING_S)

    def finish(self) -> list[tuple[float, Samples]]:
        """Returns the remaining utterances, when there is no further part."""
        return self._take_ended(self._pending.size / SAMPLE_RATE)

    def _take_ended(self, until_s: float) -> list[tuple[float, Samples]]:
        samples = self._pending
        edges = [(int(start * SAMPLE_RATE), int(end * SAMPLE_RATE)) for start, end in find_utterances(samples)]
        ended = [span for span in edges if span[1] <= until_s * SAMPLE_RATE]
        offset = self._pending_start
        rest = edges[len(ended)][0] if len(ended) < len(edges) else max(0, int(until_s * SAMPLE_RATE))
        # A copy, because a view would keep the whole array in memory.
        self._pending, self._pending_start = samples[rest:].copy(), offset + rest
        return [((offset + start) / SAMPLE_RATE, samples[start:end]) for start, end in ended]


def split_speech(
    speech: Sequence[TimeSpan], samples: Samples, max_s: float, max_pause_s: float = np.inf
) -> list[TimeSpan]:
    """Groups spans of speech into longer spans of at most `max_s` seconds, padded with the silence around them.

    Args:
        speech: spans of speech in order, as `detect_speech` returns them.
        samples: the recording, 16 kHz mono, shape [samples].
        max_s: longest span returned, in seconds. A longer span of speech is cut where it is quietest.
        max_pause_s: a pause of this length or more, in seconds, is always a cut.
    """
    groups: list[TimeSpan] = []
    stack = [list(speech)] if speech else []
    while stack:
        group = stack.pop()
        pauses = [after[0] - before[1] for before, after in pairwise(group)]
        if group[-1][1] - group[0][0] <= max_s and max(pauses, default=0.0) < max_pause_s:
            groups.append((group[0][0], group[-1][1]))
        elif len(group) == 1:
            groups.extend(_quiet_cuts(group[0], samples, max_s))
        else:
            cut = int(np.argmax(pauses)) + 1
            stack += [group[cut:], group[:cut]]  # the earlier half is popped first, which keeps the order
    return _padded(groups, samples.size / SAMPLE_RATE, max_s)


def quietest_time(samples: Samples, span: TimeSpan) -> float:
    """Returns the middle of the quietest `QUIET_S` within a span, in seconds: the place where a cut harms speech least.

    Args:
        samples: 16 kHz mono, shape [samples].
        span: from where to where to look.
    """
    start, end = (round(time * SAMPLE_RATE) for time in span)
    hop = SAMPLE_RATE // 100
    power = _power(samples[start:end], hop)
    width = min(round(QUIET_S * 100), power.size)
    if not width:
        return (span[0] + span[1]) / 2
    smooth = np.convolve(power, np.ones(width), "valid")
    return min(span[1], span[0] + (int(np.argmin(smooth)) + width / 2) * hop / SAMPLE_RATE)


def _power(samples: Samples, hop: int) -> NDArray[np.float64]:
    frames = samples[: samples.size // hop * hop].reshape(-1, hop)
    return np.square(frames, dtype=np.float64).mean(axis=1)


def _quiet_cuts(span: TimeSpan, samples: Samples, max_s: float) -> list[TimeSpan]:
    """Cuts a span of speech into parts of at most `max_s` seconds, each at the quietest place of its second half."""
    parts: list[TimeSpan] = []
    start, end = span
    while end - start > max_s:
        # The last part is not shorter than a quarter of the longest: too little speech is understood badly.
        cut = quietest_time(samples, (start + max_s / 2, min(start + max_s, end - max_s / 4)))
        parts.append((start, cut))
        start = cut
    return [*parts, (start, end)]


def _padded(spans: Sequence[TimeSpan], recording_s: float, max_s: float) -> list[TimeSpan]:
    """Widens each span by `PADDING_S` on both sides, as far as `max_s` and half of the pause to its neighbour allow."""
    edges = [0.0, *(edge for span in spans for edge in span), recording_s]
    padded: list[TimeSpan] = []
    for i, (start, end) in enumerate(spans):
        room = max(0.0, (max_s - (end - start)) / 2)
        before = (start - edges[2 * i]) / (2 if i else 1)
        after = (edges[2 * i + 3] - end) / (2 if i < len(spans) - 1 else 1)
        padded.append((start - min(PADDING_S, room, before), end + min(PADDING_S, room, after)))
    return padded
