"""Augmentations of audio, and the masking of features."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shared.audio.decoder import SAMPLE_RATE, Samples
from tests.audio_clips import tone
from training.data.augmentations import (
    AUGMENTATIONS,
    OTHER_VOICES,
    noise,
    other_voice,
    random_generator,
    reverberation,
    speed,
    telephone,
)
from training.data.masking import mask_bands
from training.data.utterance import Split, Utterance

seeds = pytest.mark.parametrize("seed", range(4))


def noisy_tone(seconds: float = 0.5) -> Samples:
    """A tone in white noise, which has all frequencies."""
    rng = np.random.default_rng(7)
    hiss = rng.standard_normal(int(seconds * SAMPLE_RATE)).astype(np.float32)
    return (tone(seconds) + 0.1 * hiss).astype(np.float32)


def loudest(samples: Samples) -> float:
    """The strongest frequency, in hertz."""
    return float(np.fft.rfftfreq(samples.size, 1 / SAMPLE_RATE)[np.abs(np.fft.rfft(samples)).argmax()])


@seeds
@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_an_augmentation_gives_finite_samples_that_the_seed_decides(name: str, seed: int) -> None:
    first, second = (AUGMENTATIONS[name](noisy_tone(), np.random.default_rng(seed)) for _ in range(2))
    assert first.dtype == np.float32
    assert np.isfinite(first).all()
    np.testing.assert_array_equal(first, second)
    if name != "original":
        other = AUGMENTATIONS[name](noisy_tone(), np.random.default_rng(seed + 100))
        assert other.size != first.size or not np.array_equal(other, first)


@pytest.mark.parametrize("name", AUGMENTATIONS)
@pytest.mark.parametrize("size", [100, 8_001])
def test_augmented_silence_is_finite_and_keeps_its_length(name: str, size: int) -> None:
    quiet = AUGMENTATIONS[name](np.zeros(size, np.float32), np.random.default_rng(0))
    assert np.isfinite(quiet).all()
    if name not in ("speed", *OTHER_VOICES):
        assert quiet.size == size


@seeds
def test_speed_changes_length_and_pitch_by_the_same_8_to_15_percent(seed: int) -> None:
    samples = tone(2.0, 500)
    changed = speed(samples, np.random.default_rng(seed))
    factor = samples.size / changed.size
    assert 0.079 < abs(factor - 1) < 0.151
    assert loudest(changed) == pytest.approx(500 * factor, rel=0.01)


@seeds
def test_other_voice_changes_pitch_and_loudness(seed: int) -> None:
    samples = tone(2.0, 500)
    changed = other_voice(samples, np.random.default_rng(seed))
    factor = samples.size / changed.size
    assert 2**-0.36 < factor < 2**0.36
    assert loudest(changed) == pytest.approx(500 * factor, rel=0.02)
    assert 0.19 < np.abs(changed).max() < 0.91


def test_other_voice_is_the_same_for_all_utterances_of_a_speaker_and_differs_between_speakers() -> None:
    utterances = [
        Utterance(id_, "ravdess", "en", Split.train, None, None, speaker, "calm")
        for id_, speaker in (("1", "a"), ("2", "a"), ("3", "b"))
    ]
    first, second = OTHER_VOICES[:2]
    same, repeated, different = (random_generator(first, one).random() for one in utterances)
    assert same == repeated
    assert len({same, different, random_generator(second, utterances[0]).random()}) == 3
    assert random_generator("noise", utterances[0]).random() != random_generator("noise", utterances[1]).random()


@seeds
def test_noise_is_8_to_25_decibels_below_the_speech(seed: int) -> None:
    samples = noisy_tone()
    added = noise(samples, np.random.default_rng(seed)) - samples
    ratio = 10 * np.log10(np.mean(samples**2) / np.mean(added**2))
    assert 7.9 < ratio < 25.1


@seeds
def test_telephone_passes_300_to_3400_hertz_and_nothing_else(seed: int) -> None:
    samples = noisy_tone()
    hertz = np.fft.rfftfreq(samples.size, 1 / SAMPLE_RATE)
    inside = (hertz >= 300) & (hertz <= 3400)
    before = np.abs(np.fft.rfft(samples))
    after = np.abs(np.fft.rfft(telephone(samples, np.random.default_rng(seed))))
    assert after[~inside].max() < 1e-4 * before[~inside].max()
    gains = after[inside] / before[inside]
    assert gains.std() < 1e-2
    assert 0.5 <= gains.mean() <= 1.5


@seeds
def test_reverberation_decays_by_60_decibels_in_250_to_700_ms(seed: int) -> None:
    click = np.zeros(SAMPLE_RATE, np.float32)
    click[0] = 1.0
    wet = reverberation(click, np.random.default_rng(seed))
    energy = np.cumsum(wet[:0:-1].astype(np.float64) ** 2)[::-1]  # Schroeder's backward integral, without the click
    decay = 10 * np.log10(energy[energy > 0] / energy[0])
    # The slope between -5 and -35 dB, as ISO 3382 measures it.
    times = np.flatnonzero((decay < -5) & (decay > -35)) / SAMPLE_RATE
    slope = np.polyfit(times, decay[(decay < -5) & (decay > -35)], 1)[0]
    assert 0.22 < -60 / slope < 0.77
    assert 0.05 < energy[0] / wet[0] ** 2 < 1.2  # echoes 0 to 10 dB below the direct sound


@seeds
def test_reverberation_changes_neither_length_nor_loudness(seed: int) -> None:
    samples = noisy_tone()
    wet = reverberation(samples, np.random.default_rng(seed))
    assert wet.size == samples.size
    assert np.std(wet) == pytest.approx(np.std(samples), rel=0.01)


@given(share=st.floats(0, 1), count=st.integers(0, 3), seed=st.integers(0, 100), size=st.integers(1, 40))
def test_masked_bands_are_the_same_in_all_frames_and_leave_the_rest(
    share: float, count: int, seed: int, size: int
) -> None:
    features = torch.rand(5, 2, size) + 1
    masked = mask_bands(features, share, np.random.default_rng(seed), count)
    hidden = masked == 0
    assert masked.shape == features.shape
    assert hidden.equal(hidden[:1, :1].expand_as(hidden))
    torch.testing.assert_close(masked[~hidden], features[~hidden])
    assert hidden[0, 0].sum() <= count * share * size


def test_masked_bands_have_the_fill_values() -> None:
    features, mean = torch.zeros(50, 80), torch.arange(80.0) + 1
    masked = mask_bands(features, 0.5, np.random.default_rng(1), fill=mean)
    hidden = masked[0] != 0
    assert 0 < hidden.sum() < 80
    torch.testing.assert_close(masked[:, hidden], mean[hidden].expand(50, -1))
