"""Other ways the same utterance might have been recorded."""

from collections.abc import Callable

import numpy as np
import torch
from scipy.signal import fftconvolve
from torch import Tensor

from shared.audio import SAMPLE_RATE, Samples

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


AUGMENTATIONS: dict[str, Augmentation] = {
    "original": original,
    "speed": speed,
    "noise": noise,
    "telephone": telephone,
    "reverberation": reverberation,
}


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


def _level(samples: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(samples, dtype=np.float64))))
