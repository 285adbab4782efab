"""Augmentations of audio: each returns the samples as they might have been recorded in other circumstances."""

# SciPy has no types.
# pyright: reportMissingTypeStubs=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from collections.abc import Callable
from fractions import Fraction
from zlib import crc32

import numpy as np
from scipy.signal import fftconvolve, resample_poly

from shared.audio.decoder import SAMPLE_RATE, Samples
from training.data.utterance import Utterance

Augmentation = Callable[[Samples, np.random.Generator], Samples]


def original(samples: Samples, rng: np.random.Generator) -> Samples:
    """Returns the samples unchanged."""
    return samples


def speed(samples: Samples, rng: np.random.Generator) -> Samples:
    """Plays the samples 8 to 15 % faster or slower, which changes the pitch by the same factor."""
    factor = 1 + float(rng.choice([-1, 1])) * rng.uniform(0.08, 0.15)
    positions = np.arange(0, samples.size - 1, factor)
    return np.interp(positions, np.arange(samples.size), samples).astype(np.float32)


def noise(samples: Samples, rng: np.random.Generator) -> Samples:
    """Adds white to pink noise, 8 to 25 dB below the speech."""
    spectrum = np.fft.rfft(rng.standard_normal(samples.size))
    spectrum /= np.maximum(np.arange(spectrum.size), 1) ** (rng.uniform(0, 1) / 2)
    hiss = np.fft.irfft(spectrum, samples.size)
    ratio = 10 ** (-rng.uniform(8, 25) / 20)
    return (samples + hiss * ratio * _level(samples) / max(_level(hiss), 1e-9)).astype(np.float32)


def telephone(samples: Samples, rng: np.random.Generator) -> Samples:
    """Keeps 300 to 3400 Hz, the band of a telephone, at another loudness."""
    spectrum = np.fft.rfft(samples)
    hertz = np.fft.rfftfreq(samples.size, 1 / SAMPLE_RATE)
    spectrum[(hertz < 300) | (hertz > 3400)] = 0
    return (np.fft.irfft(spectrum, samples.size) * rng.uniform(0.5, 1.5)).astype(np.float32)


def reverberation(samples: Samples, rng: np.random.Generator) -> Samples:
    """Adds the echoes of a room, 0 to 10 dB below the speech, which decay by 60 dB in 0.25 to 0.7 s.

    The impulse response is white noise under an exponential decay (Polack 1988, "La transmission de l'énergie sonore
    dans les salles"); the times are those of the REVERB challenge's rooms (Kinoshita et al. 2016). Length and loudness
    do not change.
    """
    seconds = rng.uniform(0.25, 0.7)
    times = np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    echoes = rng.standard_normal(times.size) * 10 ** (-3 * times / seconds)
    echoes *= 10 ** (-rng.uniform(0, 10) / 20) / np.linalg.norm(echoes)
    wet = samples + fftconvolve(samples, echoes)[: samples.size]
    return (wet * _level(samples) / max(_level(wet), 1e-9)).astype(np.float32)


def other_voice(samples: Samples, rng: np.random.Generator) -> Samples:
    """Makes another speaker: pitch, formants and pace change by up to 27 %, and so do frequency response and loudness.

    It is drawn once for a speaker, and so makes a second speaker with the same emotions and a baseline of its own.
    """
    factor = Fraction(2 ** rng.uniform(-0.35, 0.35)).limit_denominator(40)
    resampled = _equalized(resample_poly(samples, factor.numerator, factor.denominator), rng)
    return (resampled * rng.uniform(0.2, 0.9) / max(float(np.abs(resampled).max()), 1e-6)).astype(np.float32)


OTHER_VOICES = tuple(f"other_voice_{number}" for number in range(1, 5))
"""Augmentations that are drawn once for a speaker, and not for every utterance."""

AUGMENTATIONS: dict[str, Augmentation] = {
    "original": original,
    "speed": speed,
    "noise": noise,
    "telephone": telephone,
    "reverberation": reverberation,
    **dict.fromkeys(OTHER_VOICES, other_voice),
}


def random_generator(name: str, utterance: Utterance) -> np.random.Generator:
    """Returns the generator that an augmentation of an utterance is drawn by.

    It is the same every time. The augmentations in `OTHER_VOICES` have one generator for all utterances of a speaker.
    """
    key = f"{utterance.corpus} {utterance.group}" if name in OTHER_VOICES else utterance.id
    return np.random.default_rng(crc32(f"{name} {key}".encode()))


def _equalized(samples: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Returns the samples with a smooth random frequency response of at most 12 dB up or down."""
    edges = np.log2([60, 150, 400, 1000, 2500, 5000, SAMPLE_RATE / 2])
    decibels = np.cumsum(rng.normal(0, 3, edges.size))
    decibels = np.clip(decibels - decibels.mean(), -12, 12)
    hertz = np.maximum(np.fft.rfftfreq(samples.size, 1 / SAMPLE_RATE), 30)
    gain = 10 ** (np.interp(np.log2(hertz), edges, decibels) / 20)
    return np.fft.irfft(np.fft.rfft(samples) * gain, samples.size)


def _level(samples: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(samples, dtype=np.float64))))
