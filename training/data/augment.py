"""Other ways the same utterance might have been recorded."""

from collections.abc import Callable

import numpy as np

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


AUGMENTATIONS: dict[str, Augmentation] = {
    "original": original,
    "speed": speed,
    "noise": noise,
    "telephone": telephone,
}


def _level(samples: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(samples, dtype=np.float64))))
