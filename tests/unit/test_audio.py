"""Sound in: every format that counts, and everything that can be wrong with one."""

import io
import re
import tracemalloc
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.audio import decoder
from shared.audio.decoder import SAMPLE_RATE, decode_parts, encode, probe
from shared.domain.warning import WarningCode
from shared.errors import AudioEmpty, AudioNotFinite, AudioTooLong, AudioUndecodable
from tests.audio_clips import FORMATS, damaged, decode, encoded, riff, write

LOSSLESS = ("wav", "float wav", "flac")
RATES = (8_000, 16_000, 22_050, 44_100, 48_000)


def tone(seconds: float, rate: int = SAMPLE_RATE, level: float = 0.5) -> np.ndarray:
    """Shape [samples]."""
    return level * np.sin(2 * np.pi * 440 * np.arange(round(seconds * rate)) / rate)


def rms(sound: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(sound, dtype=np.float64))))


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("name", FORMATS)
def test_every_format_and_rate_comes_out_as_16_khz_mono(name: str, rate: int) -> None:
    if name in ("opus", "webm"):
        rate = min((8_000, 16_000, 48_000), key=lambda known: abs(known - rate))
    samples = decode(io.BytesIO(encoded(name, tone(2, rate), rate)))
    assert samples.dtype == np.float32
    assert samples.shape == (pytest.approx(2 * SAMPLE_RATE, abs=0.2 * SAMPLE_RATE),)
    middle = samples[SAMPLE_RATE // 2 : SAMPLE_RATE * 3 // 2]
    assert rms(middle) == pytest.approx(rms(tone(2)), rel=0.1)
    assert int(np.abs(np.fft.rfft(middle)).argmax()) == pytest.approx(440, abs=1)


@pytest.mark.parametrize("name", FORMATS)
def test_two_equal_channels_are_as_loud_as_one(name: str) -> None:
    sound = tone(2, 48_000)
    samples = decode(io.BytesIO(encoded(name, np.stack([sound, sound]), 48_000)))
    assert rms(samples[8_000:24_000]) == pytest.approx(rms(sound), rel=0.1)


@pytest.mark.parametrize("name", FORMATS)
def test_channels_are_averaged(name: str) -> None:
    left = tone(2, 48_000)
    samples = decode(io.BytesIO(encoded(name, np.stack([left, np.zeros_like(left)]), 48_000)))
    assert rms(samples[8_000:24_000]) == pytest.approx(rms(left) / 2, rel=0.1)


@given(
    seconds=st.floats(0.01, 3),
    rate=st.sampled_from(RATES),
    level=st.floats(0.01, 1),
    name=st.sampled_from(LOSSLESS),
    seed=st.integers(0, 99),
)
@settings(deadline=None, max_examples=60)
def test_decoding_keeps_duration_and_loudness(seconds: float, rate: int, level: float, name: str, seed: int) -> None:
    count = max(1, round(seconds * rate))
    # Low enough in pitch to pass the lowest rate, and not so near its edge that a filter would take some.
    times = np.arange(count) / rate
    sound = level * np.sin(2 * np.pi * np.random.default_rng(seed).uniform(100, 1000) * times)
    samples = decode(io.BytesIO(encoded(name, sound, rate)))
    assert abs(samples.size - count * SAMPLE_RATE / rate) <= 2
    if seconds > 0.5:
        assert rms(samples) == pytest.approx(rms(sound), rel=0.02)


def test_a_path_and_a_file_object_give_the_same_samples(tmp_path: Path) -> None:
    data = encoded("wav", tone(1))
    (tmp_path / "tone.wav").write_bytes(data)
    np.testing.assert_array_equal(decode(tmp_path / "tone.wav"), decode(io.BytesIO(data)))


def test_a_file_object_is_read_from_its_beginning() -> None:
    file = io.BytesIO(encoded("wav", tone(1)))
    file.seek(100)
    assert decode(file).size == SAMPLE_RATE


def test_eight_bit_and_one_sample() -> None:
    assert rms(decode(io.BytesIO(riff(bytes([128] * 800), bits=8)))) == 0
    assert decode(io.BytesIO(riff(b"\x00\x40"))).tolist() == [0.5]


@pytest.mark.parametrize("channels", [3, 8, 16, 64])
def test_any_number_of_channels_is_averaged(channels: int) -> None:
    sound = np.zeros((SAMPLE_RATE, channels), "<i2")
    sound[:, -1] = 16384
    decoded = decode(io.BytesIO(riff(sound.tobytes(), channels=channels)))
    assert decoded.size == SAMPLE_RATE
    assert decoded.mean() == pytest.approx(0.5 / channels, rel=1e-3)


def test_probing_reads_duration_and_channels_from_the_header() -> None:
    info = probe(io.BytesIO(encoded("flac", np.stack([tone(2), tone(2)]))))
    assert info.channels == 2
    assert info.duration_s == pytest.approx(2)


@pytest.mark.parametrize("data", [b"", riff(b"")], ids=["zero bytes", "no samples"])
def test_empty_audio_is_refused(data: bytes) -> None:
    with pytest.raises(AudioEmpty):
        decode(io.BytesIO(data))


def test_a_file_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    with pytest.raises(AudioUndecodable, match="cannot be opened: Is a directory"):
        decode(tmp_path)


def test_an_empty_file_is_empty(tmp_path: Path) -> None:
    (tmp_path / "empty.wav").touch()
    with pytest.raises(AudioEmpty, match="zero bytes"):
        decode(tmp_path / "empty.wav")


def picture() -> bytes:
    out = io.BytesIO()
    with av.open(out, "w", format="image2pipe") as file:
        stream = file.add_stream("png", rate=1)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = 16, 16, "rgb24"
        file.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((16, 16, 3), np.uint8), format="rgb24")))
        file.mux(stream.encode(None))
    return out.getvalue()


def adts(seconds: float) -> bytes:
    """A bare AAC stream that begins with a near silence, which misleads whoever reckons by its first bit rate."""
    out = io.BytesIO()
    write(out, "aac", np.concatenate([np.zeros(5 * SAMPLE_RATE), tone(seconds - 5)]), SAMPLE_RATE)
    return out.getvalue()


AMR = b"#!AMR\n" + (b"\x3c" + bytes(31)) * 500
"""Ten seconds of silence at 12.2 kbit/s."""


@pytest.mark.parametrize(
    ("data", "seconds"), [(adts(30), 30), (AMR, 10), (encoded("mp3", tone(20)), 20)], ids=["aac", "amr", "mp3"]
)
def test_probing_counts_the_duration_that_the_header_lacks(data: bytes, seconds: float) -> None:
    assert probe(io.BytesIO(data)).duration_s == pytest.approx(seconds, abs=0.2)
    assert decode(io.BytesIO(data)).size == pytest.approx(seconds * SAMPLE_RATE, rel=0.01)


NOT_SOUND = {
    "text": b"These are words, not sound. " * 50,
    "one byte": b"\x00",
    "zeros": bytes(10_000),
    "random": np.random.default_rng(0).bytes(50_000),
    "picture": picture(),
    "bare header": riff(b"", promised=0)[:20],
    "unknown codec": riff(bytes(10_000), kind=0x1234),
    "no bits": riff(bytes(10_000), bits=0),
    "a sample a second": riff(bytes(10_000), rate=1),
}


@pytest.mark.parametrize("data", NOT_SOUND.values(), ids=NOT_SOUND.keys())
def test_a_file_that_is_not_audio_is_refused(data: bytes) -> None:
    with pytest.raises(AudioUndecodable):
        decode(io.BytesIO(data))
    with pytest.raises(AudioUndecodable):
        probe(io.BytesIO(data))


@pytest.mark.parametrize("share", [0.3, 0.5, 0.9])
@pytest.mark.parametrize("name", [name for name in FORMATS if name not in ("mp3", "aac")])
def test_a_cut_off_recording_is_refused(name: str, share: float) -> None:
    data = encoded(name, tone(4, 48_000), 48_000)
    with pytest.raises(AudioUndecodable):
        decode(io.BytesIO(data[: int(share * len(data))]))


def test_an_m4a_with_its_index_in_front_is_refused_when_cut_off(tmp_path: Path) -> None:
    write(str(tmp_path / "tone.m4a"), "m4a", tone(4, 48_000), 48_000, movflags="faststart")
    data = (tmp_path / "tone.m4a").read_bytes()
    assert decode(io.BytesIO(data)).size == pytest.approx(4 * SAMPLE_RATE, rel=0.02)
    with pytest.raises(AudioUndecodable):
        decode(io.BytesIO(data[: len(data) // 2]))


@pytest.mark.parametrize("promised", [0, 0x7FFF_FFFF, 0xFFFF_FFFF])
def test_a_live_stream_without_a_length_is_decoded(promised: int) -> None:
    sound = (32_000 * tone(1)).astype("<i2").tobytes()
    assert decode(io.BytesIO(riff(sound, promised))).size == SAMPLE_RATE


@pytest.mark.parametrize("name", ["mp3", "aac"])
def test_a_truncated_file_without_a_stated_length_is_decoded_up_to_its_end(name: str) -> None:
    data = encoded(name, tone(4))
    assert decode(io.BytesIO(data[: len(data) // 2])).size == pytest.approx(2 * SAMPLE_RATE, rel=0.1)


@pytest.mark.parametrize("name", ["aac", "m4a"])
def test_damaged_bytes_cost_their_frames_and_give_a_warning(name: str) -> None:
    audio = decoder.decode(io.BytesIO(damaged(encoded(name, tone(4)))))
    assert audio.samples.size == pytest.approx(4 * SAMPLE_RATE, abs=0.2 * SAMPLE_RATE)
    (warning,) = audio.warnings
    assert warning.code is WarningCode.audio_skipped
    assert re.fullmatch(
        r"0\.[12] s of the recording are damaged and were skipped, the first at 1\.\d s", warning.message
    )
    assert decoder.decode(io.BytesIO(encoded(name, tone(4)))).warnings == ()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_samples_that_are_not_numbers_are_refused(bad: float) -> None:
    sound = tone(1).astype("<f4")
    sound[8_000] = bad
    with pytest.raises(AudioNotFinite, match=r"at 0\.500 s"):
        decode(io.BytesIO(riff(sound.tobytes(), bits=32, kind=3)))


def test_audio_longer_than_the_limit_is_refused_and_audio_of_the_limit_is_not() -> None:
    file = io.BytesIO(encoded("wav", tone(3)))
    assert decode(file, max_duration_s=3).size == 3 * SAMPLE_RATE
    with pytest.raises(AudioTooLong, match=r"longer than the 2\.9 s"):
        decode(file, max_duration_s=2.9)


def test_audio_that_is_too_long_is_refused_early_and_in_little_memory() -> None:
    data = encoded("flac", np.zeros(600 * SAMPLE_RATE, np.float32))
    tracemalloc.start()
    try:
        with pytest.raises(AudioTooLong):
            decode(io.BytesIO(data), max_duration_s=10)
        assert tracemalloc.get_traced_memory()[1] < 5 * 2**20
    finally:
        tracemalloc.stop()


def test_a_playlist_cannot_make_the_decoder_read_another_file(tmp_path: Path) -> None:
    (tmp_path / "another.wav").write_bytes(encoded("wav", tone(1)))
    playlist = tmp_path / "upload"
    playlist.write_text("ffconcat version 1.0\nfile another.wav\n")
    with pytest.raises(AudioUndecodable):
        decode(playlist)


@settings(max_examples=20, deadline=None)
@given(st.floats(0.2, 5), st.sampled_from((8_000, 44_100)), st.sampled_from(("flac", "opus")))
def test_the_parts_of_a_recording_join_to_the_whole_with_separate_channels(part_s: float, rate: int, name: str) -> None:
    rate = 48_000 if name == "opus" else rate
    left = tone(3, rate)
    data = io.BytesIO(encoded(name, np.stack([left, 0.2 * left]), rate))
    parts = list(decode_parts(data, 2, part_s))
    lengths = [{channel.size for channel in part.channels} for part in parts]
    assert all(len(of_part) == 1 and max(of_part) >= part_s * SAMPLE_RATE for of_part in lengths[:-1])
    first, second = (np.concatenate(of_channel) for of_channel in zip(*(part.channels for part in parts), strict=True))
    assert np.allclose((first + second) / 2, decode(data), atol=1e-6)
    assert rms(second) == pytest.approx(0.2 * rms(first), rel=0.05)


def test_parts_of_a_recording_with_one_speaker_are_averaged_over_channels() -> None:
    data = io.BytesIO(encoded("wav", np.stack([tone(2), 0 * tone(2)])))
    (whole,) = zip(*(part.channels for part in decode_parts(data, 1, 0.5)), strict=True)
    assert np.array_equal(np.concatenate(whole), decode(data))


def test_decoding_in_parts_needs_a_speaker_for_each_channel() -> None:
    with pytest.raises(AudioUndecodable, match="has 1 channels where it should have 2"):
        list(decode_parts(io.BytesIO(encoded("wav", tone(1))), 2, 1))


def test_a_recording_in_parts_is_refused_as_a_whole_one_is() -> None:
    data = encoded("flac", tone(4))
    with pytest.raises(AudioUndecodable):
        list(decode_parts(io.BytesIO(data[: len(data) // 2]), 1, 1))
    with pytest.raises(AudioTooLong):
        list(decode_parts(io.BytesIO(data), 1, 1, max_duration_s=3))


@given(st.integers(1, 20_000), st.floats(0.01, 2))
def test_decoding_inverts_encoding(size: int, level: float) -> None:
    sound = (level * np.sin(np.arange(size) / 20)).astype(np.float32)
    again = decode(io.BytesIO(encode(sound)))
    assert again.shape == sound.shape
    assert np.abs(again - np.clip(sound, -1, 1)).max() <= 1 / 32768
