"""Other ways the same utterance might have been recorded."""

from collections.abc import Callable
from fractions import Fraction
from zlib import crc32

import numpy as np
import torch
from scipy.signal import fftconvolve, resample_poly
from torch import Tensor

from shared.audio import SAMPLE_RATE, Samples
from training.data.utterance import Utterance

Augmentation = Callable[[Samples, np.random.Generator], Samples]


def original(samples: Samples, rng: np.random.Generator) -> Samples:
    return samples


def speed(samples: Samples, rng: np.random.Generator) -> Samples:
    """Played 8 to 15 % faster or slower, pitch and all."""
    factor = 1 + rng.choice([-1, 1]) * rng.uniform(0.08, 0.15)
    positions = np.arange(0, samples.size - 1, factor)
    return np.interp(positions, np.arange(samples.size), samples).astype(np.float32)


def noise(samples: Samples, rng: np.random.Generator) -> Samples:
    """White to pink noise, 8 to 25 dB below the speech."""
    spectrum = np.fft.rfft(rng.standard_normal(samples.size))
    spectrum /= np.maximum(np.arange(spectrum.size), 1) ** (rng.uniform(0, 1) / 2)
    hiss = np.fft.irfft(spectrum, samples.size)
    ratio = 10 ** (-rng.uniform(8, 25) / 20)
    return (samples + hiss * ratio * _level(samples) / max(_level(hiss), 1e-9)).astype(np.float32)


def telephone(samples: Samples, rng: np.random.Generator) -> Samples:
    """300 to 3400 Hz, as over a telephone, at another loudness."""
    spectrum = np.fft.rfft(samples)
    hertz = np.fft.rfftfreq(samples.size, 1 / SAMPLE_RATE)
    spectrum[(hertz < 300) | (hertz > 3400)] = 0
    return (np.fft.irfft(spectrum, samples.size) * rng.uniform(0.5, 1.5)).astype(np.float32)


def reverberation(samples: Samples, rng: np.random.Generator) -> Samples:
    """As in a room whose sound dies away by 60 dB in 0.25 to 0.7 s, the echoes 0 to 10 dB below the voice itself.

    The impulse response is white noise under an exponential decay (Polack 1988, "La transmission de l'énergie sonore
    dans les salles"); the times are those of the REVERB challenge's rooms (Kinoshita et al. 2016). Length and loudness
    stay as they are.
    """
    seconds = rng.uniform(0.25, 0.7)
    times = np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    echoes = rng.standard_normal(times.size) * 10 ** (-3 * times / seconds)
    echoes *= 10 ** (-rng.uniform(0, 10) / 20) / np.linalg.norm(echoes)
    wet = samples + fftconvolve(samples, echoes)[: samples.size]
    return (wet * _level(samples) / max(_level(wet), 1e-9)).astype(np.float32)


def other_voice(samples: Samples, rng: np.random.Generator) -> Samples:
    """As somebody else might sound, in another room: pitch, formants and pace up to 27 % higher or lower, all pitches
    louder or softer than they were, at another loudness.

    Drawn once for a speaker, it makes another speaker of the same emotions, whose baseline is another too.
    """
    factor = Fraction(2 ** rng.uniform(-0.35, 0.35)).limit_denominator(40)
    heard = _equalized(resample_poly(samples, factor.numerator, factor.denominator), rng)
    return (heard * rng.uniform(0.2, 0.9) / max(float(np.abs(heard).max()), 1e-6)).astype(np.float32)


OTHER_VOICES = tuple(f"other_voice_{number}" for number in range(1, 5))
"""Each drawn once for a speaker, and not for every utterance."""

AUGMENTATIONS: dict[str, Augmentation] = {
    "original": original,
    "speed": speed,
    "noise": noise,
    "telephone": telephone,
    "reverberation": reverberation,
    **dict.fromkeys(OTHER_VOICES, other_voice),
}


def draws(name: str, utterance: Utterance) -> np.random.Generator:
    """What an augmentation is drawn by: the same for an utterance every time, or for all of its speaker's."""
    whose = f"{utterance.corpus} {utterance.group}" if name in OTHER_VOICES else utterance.id
    return np.random.default_rng(crc32(f"{name} {whose}".encode()))


def with_bands_masked(
    features: Tensor, share: float, rng: np.random.Generator, count: int = 2, fill: float | Tensor = 0.0
) -> Tensor:
    """Hide `count` bands of neighbouring features over the whole length, as SpecAugment does (Park et al. 2019).

    Args:
        features: shape [frames, ..., features], such as mel bands or an encoder's features.
        share: the widest band, as a share of all features.
        fill: what stands there instead, 0 being the mean of standardized features; of any shape that broadcasts.
    """
    size = features.shape[-1]
    kept = torch.ones(size, dtype=torch.bool)
    for _ in range(count):
        width = int(rng.random() * share * size)
        start = int(rng.integers(size - width + 1))
        kept[start : start + width] = False
    return torch.where(kept, features, fill)


def _equalized(samples: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """With a smooth frequency response drawn at random, at most 12 dB up or down."""
    edges = np.log2([60, 150, 400, 1000, 2500, 5000, SAMPLE_RATE / 2])
    decibels = np.cumsum(rng.normal(0, 3, edges.size))
    decibels = np.clip(decibels - decibels.mean(), -12, 12)
    hertz = np.maximum(np.fft.rfftfreq(samples.size, 1 / SAMPLE_RATE), 30)
    gain = 10 ** (np.interp(np.log2(hertz), edges, decibels) / 20)
    return np.fft.irfft(np.fft.rfft(samples) * gain, samples.size)


def _level(samples: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(samples, dtype=np.float64))))
