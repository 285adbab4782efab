"""Levels of audio, amplification of quiet audio, and the downmix of channels."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.audio.decoder import SAMPLE_RATE, Samples, decode, decode_parts
from shared.audio.downmix import Downmix
from shared.audio.levels import (
    AMPLIFIED_DBFS,
    AUDIBLE_DBFS,
    QUIET_DBFS,
    SILENCE_DBFS,
    amplify_quiet,
    level_dbfs,
)
from shared.domain.warning import WarningCode
from tests.audio_clips import encoded, silence, spoken, tone

SPEECH = spoken("english")


def at_level(samples: Samples, dbfs: float) -> Samples:
    return (samples * 10 ** ((dbfs - level_dbfs(samples)) / 20)).astype(np.float32)


def test_the_level_of_a_sine_is_its_rms() -> None:
    assert level_dbfs(tone()) == pytest.approx(20 * np.log10(0.5 / np.sqrt(2)), abs=0.1)


def test_the_level_of_silence_and_of_no_audio_is_finite() -> None:
    assert level_dbfs(silence(1)) == level_dbfs(silence(0)) == level_dbfs(silence(0.001)) == SILENCE_DBFS


@given(gain_db=st.floats(-60, 10))
def test_a_gain_raises_the_level_by_as_much(gain_db: float) -> None:
    louder = (SPEECH * 10 ** (gain_db / 20)).astype(np.float32)
    assert level_dbfs(louder) == pytest.approx(level_dbfs(SPEECH) + gain_db, abs=0.01)


def test_pauses_clicks_and_offsets_hardly_change_the_level() -> None:
    paused = np.concatenate([silence(20), SPEECH, silence(20)])
    clicked = paused.copy()
    clicked[SAMPLE_RATE] = 1
    for samples in (paused, clicked, paused + np.float32(0.3)):
        assert level_dbfs(samples) == pytest.approx(level_dbfs(SPEECH), abs=1)


@given(dbfs=st.floats(AUDIBLE_DBFS + 0.1, QUIET_DBFS - 0.1))
def test_quiet_speech_is_amplified_to_the_same_samples_whatever_its_level(dbfs: float) -> None:
    quiet = at_level(SPEECH, dbfs)
    amplified = amplify_quiet(quiet)
    assert level_dbfs(amplified) == pytest.approx(AMPLIFIED_DBFS, abs=0.1)
    np.testing.assert_allclose(amplified, amplify_quiet(at_level(SPEECH, -60)), atol=1e-4)
    assert amplify_quiet(amplified) is amplified


@pytest.mark.parametrize("dbfs", [QUIET_DBFS + 0.1, -20, AUDIBLE_DBFS - 1, -100])
def test_other_speech_and_silence_stay_as_they_are(dbfs: float) -> None:
    samples = at_level(SPEECH, dbfs)
    assert amplify_quiet(samples) is samples


def test_a_loud_click_and_an_offset_do_not_stop_quiet_speech_from_being_amplified() -> None:
    quiet = at_level(SPEECH, -65)
    clicked = quiet + np.float32(0.2)
    clicked[100] = 0.9
    amplified = amplify_quiet(clicked)
    assert level_dbfs(amplified[200:]) == pytest.approx(AMPLIFIED_DBFS, abs=1)
    assert np.abs(amplified).max() <= 1


def mixed(channels: Samples, sizes: list[int] | None = None) -> Samples:
    frames = np.split(channels.T, np.cumsum(sizes)) if sizes else [channels.T]
    return np.concatenate(list(Downmix().mix(frame for frame in frames if len(frame))))[:, 0]


@pytest.mark.parametrize("gain", [1, -0.5, 0.0, 0.1])
def test_channels_that_do_not_cancel_are_mixed_to_their_mean(gain: float) -> None:
    stereo = np.stack([SPEECH, (gain * SPEECH).astype(np.float32)])
    np.testing.assert_array_equal(mixed(stereo), stereo.mean(axis=0))


@given(channels=st.integers(1, 32), seed=st.integers(0, 1000))
def test_channels_with_nothing_in_common_are_mixed_to_their_mean(channels: int, seed: int) -> None:
    noise = np.random.default_rng(seed).normal(size=(channels, 9_000)).astype(np.float32)
    np.testing.assert_allclose(mixed(noise), noise.mean(axis=0), atol=1e-6)


@pytest.mark.parametrize("swapped", [False, True])
def test_the_louder_of_channels_in_opposite_phase_is_used(swapped: bool) -> None:
    stereo = np.stack([SPEECH, -0.8 * SPEECH])
    mono = mixed(stereo[::-1] if swapped else stereo)
    np.testing.assert_array_equal(mono[SAMPLE_RATE:], SPEECH[SAMPLE_RATE:])


@given(sizes=st.lists(st.integers(1, 20_000), max_size=8))
def test_the_mix_does_not_depend_on_the_frames(sizes: list[int]) -> None:
    stereo = np.stack([SPEECH, np.concatenate([SPEECH[:20_000], -SPEECH[20_000:]])])
    np.testing.assert_array_equal(mixed(stereo, sizes), mixed(stereo))


def test_a_change_of_phase_makes_no_click() -> None:
    steady = tone(1, 300)
    signs = np.where(np.arange(steady.size) < 8_000, 1, -1).astype(np.float32)
    mono = mixed(np.stack([steady, signs * steady]))
    assert np.abs(np.diff(mono)).max() < 1.5 * np.abs(np.diff(steady)).max()


@pytest.mark.parametrize("name", ["wav", "mp3", "m4a"])
def test_a_stereo_file_in_opposite_phase_is_heard_and_warned_of(name: str) -> None:
    file = io.BytesIO(encoded(name, np.stack([SPEECH, -SPEECH])))
    audio = decode(file)
    assert level_dbfs(audio.samples) == pytest.approx(level_dbfs(SPEECH), abs=1)
    (warning,) = audio.warnings
    assert warning.code is WarningCode.opposite_phase
    assert " s of the recording" in warning.message
    parts = list(decode_parts(file, 1, 1))
    np.testing.assert_array_equal(np.concatenate([part.channels[0] for part in parts]), audio.samples)
    assert parts[-1].warnings == audio.warnings


def test_an_ordinary_stereo_file_has_no_warning() -> None:
    assert decode(io.BytesIO(encoded("wav", np.stack([SPEECH, SPEECH])))).warnings == ()
