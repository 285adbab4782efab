"""The removal of crosstalk: what of one channel recurs in another one."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from shared.audio.crosstalk import CrosstalkFilter
from shared.audio.decoder import SAMPLE_RATE, Samples
from shared.domain.warning import WarningCode
from tests.audio_clips import silence, spoken

NAMES = ("english", "german", "angry", "spanish")


def call(overlap_s: float = 0.0) -> tuple[Samples, Samples]:
    """Two speakers who take turns, on a channel each with noise at -65 dBFS; `overlap_s` is how much they overlap."""
    channels = [[silence(1)], [silence(1)]]
    for number, name in enumerate(NAMES):
        turn = spoken(name)
        pause = silence(turn.size / SAMPLE_RATE)
        channels[number % 2] += [turn, silence(0.8)]
        channels[1 - number % 2] += [pause, silence(0.8)]
    first, second = (np.concatenate(channel) for channel in channels)
    return _noisy(first, 1), _noisy(np.roll(second, -round(overlap_s * SAMPLE_RATE)), 2)


def mono_call() -> Samples:
    first, second = call()
    return first + second


def _noisy(samples: Samples, seed: int) -> Samples:
    noise = np.random.default_rng(seed).normal(scale=10 ** (-65 / 20), size=samples.size)
    return (samples + noise).astype(np.float32)


def copied(samples: Samples, level_db: float, delay_s: float = 0.0) -> Samples:
    return (np.roll(samples, round(delay_s * SAMPLE_RATE)) * 10 ** (level_db / 20)).astype(np.float32)


def energy_db(samples: Samples) -> float:
    return float(10 * np.log10(np.square(samples, dtype=np.float64).sum() + 1e-12))


def energies(samples: Samples) -> NDArray[np.float32]:
    """The energies of frames of 50 ms."""
    return np.square(samples[: samples.size // 800 * 800]).reshape(-1, 800).mean(axis=1)


def loud(samples: Samples) -> NDArray[np.bool_]:
    """The frames in which somebody speaks."""
    return energies(samples) > 1e-3 * energies(samples).max()


def audible(samples: Samples) -> NDArray[np.bool_]:
    """The frames that contain more than noise at -65 dBFS."""
    return energies(samples) > 10 ** (-60 / 10)


def share_kept(result: Samples, original: Samples) -> float:
    """The share of the energy of a speaker's own turns that is left."""
    kept = np.repeat(loud(original), 800)
    return float(np.square(result[: kept.size][kept]).sum() / np.square(original[: kept.size][kept]).sum())


@pytest.mark.parametrize("overlap_s", [0.0, 1.5])
def test_separate_channels_are_returned_as_they_are(overlap_s: float) -> None:
    channels = call(overlap_s)
    crosstalk = CrosstalkFilter()
    result = crosstalk.filter(channels)
    assert result[0] is channels[0]
    assert result[1] is channels[1]
    assert crosstalk.warnings() == ()


@pytest.mark.parametrize("level_db", [-34, -20, -10, -4])
@pytest.mark.parametrize("delay_s", [0.0, 0.005, 0.12, 0.3])
def test_a_quieter_copy_is_removed_and_the_speakers_own_turns_stay(level_db: float, delay_s: float) -> None:
    first, second = call()
    crosstalk = CrosstalkFilter()
    result = crosstalk.filter([first, second + copied(first, level_db, delay_s)])
    assert result[0] is first
    copy = copied(first, level_db, delay_s)
    alone = np.repeat(loud(copy) & ~audible(second), 800)
    assert energy_db(result[1][: alone.size][alone]) < energy_db(copy[: alone.size][alone]) - 20
    assert share_kept(result[1], second) == pytest.approx(1, abs=0.1)
    (warning,) = crosstalk.warnings()
    assert warning.code is WarningCode.crosstalk_removed
    assert "of channel 2 repeat channel 1" in warning.message


@settings(max_examples=20)
@given(first_db=st.floats(-40, -4), second_db=st.floats(-40, -4), delay_s=st.floats(0, 0.02))
def test_swapping_the_channels_swaps_the_results(first_db: float, second_db: float, delay_s: float) -> None:
    first, second = call()
    channels = [first + copied(second, second_db, delay_s), second + copied(first, first_db, delay_s)]
    result = CrosstalkFilter().filter(channels)
    swapped = CrosstalkFilter().filter(channels[::-1])
    for one, other, own in zip(result, swapped[::-1], (first, second), strict=True):
        np.testing.assert_array_equal(one, other)
        assert share_kept(one, own) == pytest.approx(1, abs=0.2)


@settings(max_examples=20)
@given(gain_db=st.floats(-20, 6))
def test_the_same_is_removed_at_every_gain(gain_db: float) -> None:
    first, second = call()
    channels = [first, second + copied(first, -20)]
    gain = np.float32(10 ** (gain_db / 20))
    for one, other in zip(
        CrosstalkFilter().filter(channels),
        CrosstalkFilter().filter([gain * samples for samples in channels]),
        strict=True,
    ):
        np.testing.assert_allclose(gain * one, other, atol=1e-6)


def test_both_stay_who_speak_at_the_same_time() -> None:
    first, second = call(overlap_s=1.5)
    result = CrosstalkFilter().filter([first + copied(second, -15), second + copied(first, -15)])
    for one, own in zip(result, (first, second), strict=True):
        assert share_kept(one, own) == pytest.approx(1, abs=0.2)


@pytest.mark.parametrize("gain", [1, 0.8, -1, 1.3])
def test_of_two_channels_that_are_alike_the_first_is_kept(gain: float) -> None:
    mono = mono_call()
    crosstalk = CrosstalkFilter()
    second = _noisy((gain * mono).astype(np.float32), 3)
    result = crosstalk.filter([mono, second])
    assert result[0] is mono
    assert not result[1].any()
    (warning,) = crosstalk.warnings()
    assert warning.code is WarningCode.channels_alike
    assert warning.message.startswith("channels 1 and 2 hold the same")


def test_a_much_quieter_repetition_of_the_other_channel_is_removed_as_a_whole() -> None:
    mono = mono_call()
    quiet, result = CrosstalkFilter().filter([_noisy(copied(mono, -20), 3), mono])
    assert result is mono
    assert energy_db(quiet) < energy_db(copied(mono, -20)) - 20


def test_a_recording_in_parts_loses_the_same_as_in_one_piece() -> None:
    first, second = call()
    second += copied(first, -20, 0.2)
    whole = CrosstalkFilter()
    expected = whole.filter([first, second])[1]
    crosstalk = CrosstalkFilter()
    # The last part is too short to find the copy in it.
    cuts = [5 * SAMPLE_RATE, 10 * SAMPLE_RATE, first.size - SAMPLE_RATE // 2]
    parts = zip(np.split(first, cuts), np.split(second, cuts), strict=True)
    result = np.concatenate([crosstalk.filter(part)[1] for part in parts])
    assert np.square(result - expected).sum() < 0.05 * np.square(expected).sum()
    assert [warning.code for warning in crosstalk.warnings()] == [warning.code for warning in whole.warnings()]


@pytest.mark.parametrize("size", [0, 1, 100, 161, 8_000])
def test_short_and_silent_parts_are_returned_as_they_are(size: int) -> None:
    channels = [np.zeros(size, np.float32) for _ in range(3)]
    assert all(one is other for one, other in zip(CrosstalkFilter().filter(channels), channels, strict=True))
    assert CrosstalkFilter().filter(channels[:1])[0] is channels[0]
