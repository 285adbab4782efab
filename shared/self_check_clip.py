"""`python -m shared.self_check_clip`: synthesizes the clip of the self-check.

It is half a second of "ah-ee": a sawtooth of falling pitch with some noise, filtered by three formants that glide from
one vowel to the other. As it is not a recording of a person, it can be shipped with the code.
"""

import numpy as np
from numpy.typing import NDArray

from shared.audio.decoder import SAMPLE_RATE, encode
from shared.self_check import CLIP

SECONDS = 0.5
VOWELS = (((730.0, 90.0), (1090.0, 110.0), (2440.0, 170.0)), ((270.0, 60.0), (2290.0, 200.0), (3010.0, 300.0)))
"""Frequency and bandwidth in Hz of each formant, for the first and for the last vowel."""


def make_clip() -> NDArray[np.float32]:
    """Returns the clip, 16 kHz mono, shape [samples]."""
    count = round(SECONDS * SAMPLE_RATE)
    progress = np.linspace(0, 1, count)
    phase = np.cumsum(140 - 40 * progress) / SAMPLE_RATE
    source = 2 * (phase % 1) - 1 + 0.05 * np.random.default_rng(0).standard_normal(count)
    samples = source
    for first, last in zip(*VOWELS, strict=True):
        samples = _resonate(samples, progress, first, last)
    samples *= np.sin(np.pi * progress) ** 0.5
    return (0.5 * samples / np.abs(samples).max()).astype(np.float32)


def _resonate(
    samples: NDArray[np.float64], progress: NDArray[np.float64], first: tuple[float, float], last: tuple[float, float]
) -> NDArray[np.float64]:
    """Filters with a two-pole resonator (Klatt 1980) whose frequency and bandwidth glide from `first` to `last`."""
    frequency, bandwidth = (begin + (end - begin) * progress for begin, end in zip(first, last, strict=True))
    radius = np.exp(-np.pi * bandwidth / SAMPLE_RATE)
    b = 2 * radius * np.cos(2 * np.pi * frequency / SAMPLE_RATE)
    c = -(radius**2)
    out = np.zeros(samples.size + 2)
    for place in range(samples.size):
        gain = 1 - b[place] - c[place]
        out[place + 2] = gain * samples[place] + b[place] * out[place + 1] + c[place] * out[place]
    return out[2:]


if __name__ == "__main__":
    CLIP.write_bytes(encode(make_clip()))
