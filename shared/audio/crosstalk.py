"""Crosstalk: removes from each channel of a call what is a copy of another channel.

A channel contains a copy of another one if the waveform of the other one recurs in it, usually weaker and perhaps
later. The delay of the copy is that of the highest cross-correlation, averaged over segments of one second. Its level
is the median difference of the levels. A channel is silenced where it is not clearly louder than the copy. Somebody who
speaks at the same time is louder than the copy, and stays.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import combinations, pairwise, permutations

import numpy as np
from numpy.typing import NDArray

from shared.audio.decoder import SAMPLE_RATE, Samples
from shared.audio.levels import AUDIBLE_DBFS, SILENCE_DBFS
from shared.domain.warning import AnalysisWarning, WarningCode

MIN_CORRELATION = 0.25
"""Less correlation is chance: of 40 pairs of people who speak at the same time, none reached 0.13."""
MIN_SEGMENTS = 2
"""With fewer segments in which a channel is active, the results for the parts before are used."""
MAX_MARGIN_DB = 10.0
"""How far above the level of the copy a channel is silenced; less if the copy is almost as loud as the original."""
ALIKE_CORRELATION = 0.9
"""Channels are alike if their segments correlate so much, and their levels differ by the same everywhere."""
ALIKE_SPREAD_DB = 3.0
"""Widest range of the differences between the levels of channels that are alike, without a tenth at each end."""
ALIKE_DIFFERENCE_DB = 6.0
"""Of channels that differ more, the quieter one is crosstalk of the other."""
ACTIVE_RANGE_DB = 25.0
"""A channel is active where its level is within this range below its loudest segment."""

_RATE = SAMPLE_RATE // 2
_FRAME = _RATE // 100
_MAX_DELAY = 35
"""Longest delay of a copy in frames: an echo of 0.35 s."""
_MAX_LEAD = 5
"""Frames by which a copy may be earlier, because what counts as the original is the louder channel."""
_SEGMENT = _RATE
_TRANSFORM = 2**14
"""Length of the Fourier transforms: more than a segment and the longest delay."""
_ABOUT_DB = 2.0
"""Levels that differ by less than this are about equal."""
_SMOOTHED_FRAMES = 11
_MIN_RUN = 15
"""Frames. Shorter interruptions are ignored, both of what is silenced and of what is not."""
_FADE = SAMPLE_RATE // 200

Mask = NDArray[np.bool_]
"""For frames of 10 ms, shape [frames]."""

_MESSAGES = {
    WarningCode.channels_alike: "channels {first} and {second} hold the same: the {seconds:.1f} s of speech in channel "
    "{second} were removed, and the turns of both are those of the speaker of channel {first}",
    WarningCode.crosstalk_removed: "{seconds:.1f} s of channel {second} repeat channel {first} more quietly, and were "
    "removed",
}


@dataclass(frozen=True)
class Copy:
    """How one channel recurs in another one.

    Attributes:
        delay: in frames of 10 ms; negative if the copy is earlier.
        level_db: of the copy, relative to the original.
    """

    delay: int
    level_db: float

    @property
    def threshold_db(self) -> float:
        """The level, relative to the original, below which the channel contains only the copy.

        It is below 0, so that of two channels that contain copies of each other the louder one stays.
        """
        return min(self.level_db + min(abs(self.level_db) / 2, MAX_MARGIN_DB), -1.0)


class CrosstalkFilter:
    """Removes the copies of other channels from the channels of a recording, part by part.

    Of channels that are alike, it keeps only the first.
    """

    def __init__(self) -> None:
        self._before: dict[int, _End] = {}
        self._copies: dict[tuple[int, int], Copy | None] = {}
        self._alike: dict[tuple[int, int], bool] = {}
        self._frames: defaultdict[tuple[WarningCode, int, int], int] = defaultdict(int)

    def filter(self, channels: Sequence[Samples]) -> list[Samples]:
        """Returns the next part of a recording without the copies.

        A channel without a copy is returned as it is.

        Args:
            channels: 16 kHz audio, each of the same shape [samples].
        """
        if len(channels) == 1 or channels[0].size < 2 * _FRAME:
            return list(channels)
        parts = {number: _Part(samples, self._before.get(number, _End())) for number, samples in enumerate(channels)}
        silenced = {number: np.zeros(part.levels.size, np.bool_) for number, part in parts.items()}
        kept = self._without_alike(parts)
        for number in parts.keys() - kept:
            silenced[number][:] = True
        for original, other in permutations(sorted(kept), 2):
            copy = self._copy(parts, original, other)
            if copy is not None:
                copied = _find_copied(parts[original], parts[other], copy)
                silenced[other] |= copied
                active = copied & (parts[original].delayed(copy.delay) > parts[original].active_dbfs)
                self._frames[WarningCode.crosstalk_removed, original, other] += int(active.sum())
        self._before = {number: part.end for number, part in parts.items()}
        return [_silence(samples, silenced[number]) for number, samples in enumerate(channels)]

    def warnings(self) -> tuple[AnalysisWarning, ...]:
        """Returns the warnings about what was removed from the parts so far."""
        return tuple(
            AnalysisWarning(code, _MESSAGES[code].format(seconds=frames / 100, first=first + 1, second=second + 1))
            for (code, first, second), frames in sorted(self._frames.items())
            if frames
        )

    def _without_alike(self, parts: dict[int, "_Part"]) -> set[int]:
        """Returns the channels of a part, and of those that are alike only the first."""
        kept = set(parts)
        for first, second in combinations(sorted(parts), 2):
            alike = _are_alike(parts[first], parts[second])
            alike = self._alike[first, second] = self._alike.get((first, second), False) if alike is None else alike
            if alike and {first, second} <= kept:
                kept.remove(second)
                active = parts[second].levels > parts[second].active_dbfs
                self._frames[WarningCode.channels_alike, first, second] += int(active.sum())
        return kept

    def _copy(self, parts: dict[int, "_Part"], original: int, other: int) -> Copy | None:
        """Returns the copy of a channel in another one: the one of this part, or of a part before if this is short."""
        first, second = parts[original], parts[other]
        segments = first.active_segments & second.audible_segments
        segments &= second.segment_levels < first.segment_levels + _ABOUT_DB
        if segments.sum() >= MIN_SEGMENTS:
            self._copies[original, other] = _find_copy(first, second, segments)
        return self._copies.get((original, other))


@dataclass(frozen=True)
class _End:
    """What is kept of a channel of a part for the next one: its loudest level, and the levels of its last frames."""

    loudest_dbfs: float = AUDIBLE_DBFS
    levels: NDArray[np.float64] = field(default_factory=lambda: np.full(_MAX_DELAY, SILENCE_DBFS))


class _Part:
    """One channel of a part, at 8 kHz and without frequencies below 100 Hz, and its levels in dBFS.

    Attributes:
        levels: of each frame of 10 ms, smoothed.
        segment_levels: of each segment of one second.
        loudest_dbfs: the level of the loudest segment, in this part or the parts before.
    """

    def __init__(self, samples: Samples, before: _End) -> None:
        frames = samples.size // (2 * _FRAME)
        half_rate = samples[: 2 * _FRAME * frames].reshape(-1, 2).mean(axis=1)
        wave = (half_rate - _moving_average(half_rate, _FRAME)).astype(np.float32)
        energies = np.square(wave, dtype=np.float64).reshape(-1, _FRAME).mean(axis=1)
        self.levels = _decibels(_moving_average(energies, _SMOOTHED_FRAMES))
        self._segments = wave[: wave.size // _SEGMENT * _SEGMENT].reshape(-1, _SEGMENT)
        self.segment_levels = _decibels(np.square(self._segments, dtype=np.float64).mean(axis=1))
        self.loudest_dbfs = float(self.segment_levels.max(initial=before.loudest_dbfs))
        self._before = before.levels

    @property
    def active_dbfs(self) -> float:
        """The level above which the channel is active."""
        return self.loudest_dbfs - ACTIVE_RANGE_DB

    @property
    def active_segments(self) -> Mask:
        return self.segment_levels > self.active_dbfs

    @property
    def audible_segments(self) -> Mask:
        return self.segment_levels > SILENCE_DBFS

    @property
    def end(self) -> _End:
        """What the next part needs."""
        return _End(self.loudest_dbfs, np.concatenate([self._before, self.levels])[-_MAX_DELAY:])

    @cached_property
    def spectra(self) -> NDArray[np.complex64]:
        """The spectra of the segments, each normalised to an energy of 1."""
        norms = np.maximum(np.linalg.norm(self._segments, axis=1, keepdims=True), 1e-9)
        return np.fft.rfft(self._segments / norms, _TRANSFORM).astype(np.complex64, copy=False)

    def delayed(self, delay: int) -> NDArray[np.float64]:
        """Returns the levels, later by some frames; a delay below 0 makes them earlier."""
        if delay < 0:
            return np.append(self.levels[-delay:], np.full(min(-delay, self.levels.size), SILENCE_DBFS))
        return np.concatenate([self._before, self.levels])[_MAX_DELAY - delay :][: self.levels.size]


def _are_alike(first: _Part, second: _Part) -> bool | None:
    """Whether two channels contain the same, or None if they are too short or too silent to tell."""
    segments = (first.active_segments | second.active_segments) & first.audible_segments & second.audible_segments
    if segments.sum() < MIN_SEGMENTS:
        return None
    correlation, delay = _correlate(first, second, segments)
    if correlation < ALIKE_CORRELATION:
        return False
    active = (first.delayed(delay) > first.active_dbfs) | (second.levels > second.active_dbfs)
    differences = (second.levels - first.delayed(delay))[active]
    low, middle, high = np.percentile(differences, [10, 50, 90]) if differences.size else (0, 0, 0)
    return bool(high - low <= ALIKE_SPREAD_DB and abs(middle) <= ALIKE_DIFFERENCE_DB)


def _find_copy(original: _Part, other: _Part, segments: Mask) -> Copy | None:
    """Returns the copy of a channel in another one, given the segments in which the original is active and louder."""
    correlation, delay = _correlate(original, other, segments)
    if correlation < MIN_CORRELATION:
        return None
    delayed = original.delayed(delay)
    loud = (delayed > original.loudest_dbfs - ACTIVE_RANGE_DB / 2) & (other.levels < delayed + _ABOUT_DB)
    return Copy(delay, min(0.0, float(np.median((other.levels - delayed)[loud])))) if loud.any() else None


def _correlate(first: _Part, second: _Part, segments: Mask) -> tuple[float, int]:
    """Returns the highest mean correlation of the segments of two channels, and the delay of the second in frames."""
    cross = (np.conj(first.spectra[segments]) * second.spectra[segments]).mean(axis=0)
    correlations = np.abs(np.fft.irfft(cross, _TRANSFORM))
    delays = np.arange(-_MAX_LEAD * _FRAME, _MAX_DELAY * _FRAME)
    # A delayed segment of the second channel has only a part of the segment of the first.
    found = correlations[delays] / (1 - np.abs(delays) / _SEGMENT)
    best = int(found.argmax())
    return float(found[best]), round(float(delays[best]) / _FRAME)


def _find_copied(original: _Part, other: _Part, copy: Copy) -> Mask:
    """Returns the frames of a channel in which it contains only the copy of another one."""
    mask = other.levels < original.delayed(copy.delay) + copy.threshold_db
    for short in (False, True):
        edges = [0, *(np.flatnonzero(np.diff(mask)) + 1).tolist(), mask.size]
        for start, end in pairwise(edges):
            if mask[start] == short and end - start < _MIN_RUN and start > 0 and end < mask.size:
                mask[start:end] = not short
    return mask


def _silence(samples: Samples, mask: Mask) -> Samples:
    """Returns a channel with the frames of a mask silenced, or the same array if there are none."""
    if not mask.any():
        return samples
    gain = np.repeat(1 - mask.astype(np.float32), 2 * _FRAME)
    gain = np.pad(gain, (0, samples.size - gain.size), mode="edge")
    return samples * _moving_average(gain, _FADE).astype(np.float32)


def _moving_average(values: NDArray[np.floating], size: int) -> NDArray[np.float64]:
    """Returns the mean of the values around each one; at the ends of the array, the first and the last are repeated."""
    if not values.size:
        return values.astype(np.float64)
    padded = np.pad(values.astype(np.float64), (size // 2, size - 1 - size // 2), mode="edge")
    sums = np.concatenate([[0.0], np.cumsum(padded)])
    return (sums[size:] - sums[:-size]) / size


def _decibels(energies: NDArray[np.float64]) -> NDArray[np.float64]:
    return 10 * np.log10(np.maximum(energies, 10 ** (SILENCE_DBFS / 10)))
