"""Where somebody speaks, and where what is long is cut."""

import os
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.audio.decoder import SAMPLE_RATE, Samples
from shared.audio.levels import level_dbfs
from shared.modeling.segmentation import MAX_UTTERANCE_S, UtteranceSplitter, find_utterances, split_speech
from shared.modeling.vad import TimeSpan, detect_speech, duration_s
from tests.audio_clips import silence, spoken


@pytest.fixture(scope="module")
def conversation() -> Samples:
    """Four utterances with pauses between them, the last two without one."""
    sounds = [spoken("english"), silence(4), spoken("spanish"), silence(2), spoken("italian"), spoken("german")]
    return np.concatenate(sounds)


def test_speech_spans_are_found_at_the_right_times() -> None:
    spans = detect_speech(np.concatenate([silence(3), spoken("english"), silence(3)]))
    end = 3 + spoken("english").size / SAMPLE_RATE
    assert spans[0][0] == pytest.approx(3, abs=0.3)
    assert spans[-1][1] == pytest.approx(end, abs=0.6)


def test_a_long_recording_is_cut_at_its_pauses() -> None:
    sound = np.concatenate([spoken("english"), silence(4), spoken("spanish"), spoken("italian")])
    first, second = find_utterances(sound, max_s=10)
    assert first[1] == pytest.approx(spoken("english").size / SAMPLE_RATE, abs=0.6)
    assert second == pytest.approx((first[1] + 4, sound.size / SAMPLE_RATE), abs=0.8)


@st.composite
def speech_in_a_recording(draw: st.DrawFn) -> tuple[list[TimeSpan], float]:
    """Ordered spans of speech with pauses between them, and the recording's length."""
    steps = draw(st.lists(st.floats(0.03, 20), max_size=20))
    edges = np.cumsum(steps).tolist()
    duration = (edges[-1] if edges else 0.0) + draw(st.floats(0.01, 20))
    return list(zip(edges[::2], edges[1::2], strict=False)), duration


@given(speech_in_a_recording(), st.floats(0.5, 40), st.floats(0.1, 60))
def test_utterances_are_ordered_apart_short_enough_and_inside(
    recording: tuple[list[TimeSpan], float], max_s: float, max_pause_s: float
) -> None:
    speech, duration = recording
    samples = silence(duration)
    spans = split_speech(speech, samples, max_s, max_pause_s)
    assert all(0 <= start < end <= duration + 1 / SAMPLE_RATE for start, end in spans)
    assert all(before[1] <= after[0] + 1e-9 for before, after in pairwise(spans))
    assert all(end - start <= max_s + 1e-9 for start, end in spans)
    covered = [any(start <= t <= end for start, end in spans) for span in speech for t in span]
    assert all(covered)
    for before, after in pairwise(speech):
        if after[0] - before[1] >= max_pause_s:
            assert not any(start < before[1] and after[0] < end for start, end in spans)


@pytest.mark.parametrize("part_s", [4, 7.3, 60])
def test_a_recording_that_comes_in_parts_is_cut_as_one_that_is_there_at_once(
    conversation: Samples, part_s: float
) -> None:
    splitter, size = UtteranceSplitter(), int(part_s * SAMPLE_RATE)
    parts = [conversation[start : start + size] for start in range(0, conversation.size, size)]
    cuts = [cut for part in parts for cut in splitter.add(part)] + splitter.finish()
    whole = find_utterances(conversation)
    assert [start for start, _ in cuts] == pytest.approx([start for start, _ in whole], abs=0.3)
    ends = [start + sound.size / SAMPLE_RATE for start, sound in cuts]
    assert ends == pytest.approx([end for _, end in whole], abs=0.3)
    for start, sound in cuts:
        at = round(start * SAMPLE_RATE)
        assert np.array_equal(sound, conversation[at : at + sound.size])


def test_speech_without_pauses_is_cut_at_the_longest_turn_in_bounded_memory() -> None:
    endless = np.concatenate([spoken("english")] * 60)
    splitter, size = UtteranceSplitter(), 90 * SAMPLE_RATE
    cuts = []
    for start in range(0, endless.size, size):
        cuts += splitter.add(endless[start : start + size])
        assert splitter._pending.base is None
        assert splitter._pending.size <= (MAX_UTTERANCE_S + 2) * SAMPLE_RATE
    cuts += splitter.finish()
    assert max(sound.size for _, sound in cuts) <= MAX_UTTERANCE_S * SAMPLE_RATE
    assert sum(sound.size for _, sound in cuts) > 0.9 * endless.size


def test_a_monologue_is_cut_at_the_quietest_place_near_the_limit() -> None:
    noise = np.random.default_rng(0).standard_normal(60 * SAMPLE_RATE).astype(np.float32)
    for quiet in (19.0, 37.0, 52.0):
        noise[round((quiet - 0.1) * SAMPLE_RATE) : round((quiet + 0.1) * SAMPLE_RATE)] *= 0.05
    spans = split_speech([(0.0, 60.0)], noise, MAX_UTTERANCE_S)
    assert [start for start, _ in spans] == pytest.approx([0, 19, 37], abs=0.1)
    assert all(before[1] == after[0] for before, after in pairwise(spans))


def test_silence_gives_no_utterance() -> None:
    splitter = UtteranceSplitter()
    assert [*splitter.add(silence(60)), *splitter.finish()] == []
    assert find_utterances(silence(60)) == []


def sound_without_speech() -> dict[str, Samples]:
    """Six seconds each of what is heard where nobody speaks."""
    times, random = np.arange(6 * SAMPLE_RATE) / SAMPLE_RATE, np.random.default_rng(0)
    white = random.normal(size=times.size)
    spectrum = np.fft.rfft(white)
    room = np.fft.irfft(spectrum / np.sqrt(np.arange(spectrum.size) + 1), times.size)
    hum = sum(np.sin(2 * np.pi * 50 * k * times) / k for k in range(1, 12))
    ringing = (np.sin(2 * np.pi * 440 * times) + np.sin(2 * np.pi * 480 * times)) * (times % 3 < 1)
    notes = 220 * 2 ** (np.array([0, 4, 7, 12, 7, 4])[times.astype(int)] / 12)
    music = sum(np.sin(2 * np.pi * notes * k * times) / k for k in range(1, 6)) * np.exp(-2 * (times % 1))
    typing = white * np.exp(-150 * (times % 0.17))
    sounds = {"white": white, "room": room, "hum": hum, "ringing": ringing, "music": music, "typing": typing}
    return {name: np.asarray(sound, np.float32) for name, sound in sounds.items()}


@pytest.mark.parametrize("name", sound_without_speech())
@pytest.mark.parametrize("dbfs", [-60, -70, -79])
def test_quiet_noise_and_music_contain_no_speech_when_they_are_amplified(name: str, dbfs: float) -> None:
    sound = sound_without_speech()[name]
    assert detect_speech((sound * 10 ** ((dbfs - level_dbfs(sound)) / 20)).astype(np.float32)) == []


def test_speech_is_found_at_a_peak_of_minus_55_dbfs() -> None:
    clip = spoken("english")
    quiet = np.round(clip / np.abs(clip).max() * 10 ** (-55 / 20) * 32768) / 32768
    loud, found = (sum(map(duration_s, detect_speech(samples.astype(np.float32)))) for samples in (clip, quiet))
    assert found == pytest.approx(loud, rel=0.05)


def test_the_detector_sends_no_telemetry() -> None:
    assert os.environ["ORT_DISABLE_TELEMETRY"] == "1"
