"""Augmentations keep what is said and change how it sounds."""

import numpy as np
import pytest

from shared.audio import SAMPLE_RATE, Samples
from tests.sounds import tone
from training.data.augment import AUGMENTATIONS, noise, speed, telephone

seeds = pytest.mark.parametrize("seed", range(4))


def sound(seconds: float = 0.5) -> Samples:
    """A tone in white noise, which has all frequencies."""
    rng = np.random.default_rng(7)
    hiss = rng.standard_normal(int(seconds * SAMPLE_RATE)).astype(np.float32)
    return (tone(seconds) + 0.1 * hiss).astype(np.float32)


def loudest(samples: Samples) -> float:
    """The strongest frequency, in hertz."""
    return float(np.fft.rfftfreq(samples.size, 1 / SAMPLE_RATE)[np.abs(np.fft.rfft(samples)).argmax()])


@seeds
@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_each_gives_finite_samples_that_the_seed_decides(name: str, seed: int) -> None:
    first, second = (AUGMENTATIONS[name](sound(), np.random.default_rng(seed)) for _ in range(2))
    assert first.dtype == np.float32
    assert np.isfinite(first).all()
    np.testing.assert_array_equal(first, second)
    if name != "original":
        other = AUGMENTATIONS[name](sound(), np.random.default_rng(seed + 100))
        assert other.size != first.size or not np.array_equal(other, first)


@pytest.mark.parametrize("name", AUGMENTATIONS)
@pytest.mark.parametrize("size", [100, 8_001])
def test_silence_stays_finite_and_as_long(name: str, size: int) -> None:
    quiet = AUGMENTATIONS[name](np.zeros(size, np.float32), np.random.default_rng(0))
    assert np.isfinite(quiet).all()
    if name != "speed":
        assert quiet.size == size


@seeds
def test_speed_changes_length_and_pitch_by_the_same_8_to_15_percent(seed: int) -> None:
    samples = tone(2.0, 500)
    changed = speed(samples, np.random.default_rng(seed))
    factor = samples.size / changed.size
    assert 0.079 < abs(factor - 1) < 0.151
    assert loudest(changed) == pytest.approx(500 * factor, rel=0.01)


@seeds
def test_noise_is_8_to_25_decibels_below_the_speech(seed: int) -> None:
    samples = sound()
    added = noise(samples, np.random.default_rng(seed)) - samples
    ratio = 10 * np.log10(np.mean(samples**2) / np.mean(added**2))
    assert 7.9 < ratio < 25.1


@seeds
def test_a_telephone_lets_300_to_3400_hertz_through_and_nothing_else(seed: int) -> None:
    samples = sound()
    hertz = np.fft.rfftfreq(samples.size, 1 / SAMPLE_RATE)
    inside = (hertz >= 300) & (hertz <= 3400)
    before = np.abs(np.fft.rfft(samples))
    after = np.abs(np.fft.rfft(telephone(samples, np.random.default_rng(seed))))
    assert after[~inside].max() < 1e-4 * before[~inside].max()
    gains = after[inside] / before[inside]
    assert gains.std() < 1e-2
    assert 0.5 <= gains.mean() <= 1.5
