"""Files as recorders, browsers and networks really leave them: with gaps, damage, wrong lengths and several tracks."""

import io
import re
import struct
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.audio import decoder
from shared.audio.decoder import SAMPLE_RATE, AudioPart, DecodedAudio, decode_parts, probe
from shared.domain.warning import WarningCode
from shared.errors import AudioError, AudioTooLong, AudioUndecodable
from tests.audio_clips import damaged, encoded, muxed, riff, tone

TIMED = {"webm": ("webm", "libopus"), "ogg": ("ogg", "libopus"), "m4a": ("ipod", "aac"), "mkv": ("matroska", "flac")}


def decode(data: bytes, max_duration_s: float | None = None) -> DecodedAudio:
    return decoder.decode(io.BytesIO(data), max_duration_s)


def parts_of(data: bytes, channels: int) -> list[AudioPart]:
    return list(decode_parts(io.BytesIO(data), channels, 1))


def sound(seconds: float = 4, hertz: float = 220) -> np.ndarray:
    return tone(seconds, hertz, rate=48_000)


def is_loud(samples: np.ndarray, start_s: float, end_s: float) -> bool:
    part = samples[round(start_s * SAMPLE_RATE) : round(end_s * SAMPLE_RATE)]
    return bool(np.sqrt(np.mean(part**2)) > 0.3)


@pytest.mark.parametrize("kind", TIMED)
def test_a_gap_between_time_stamps_is_silence(kind: str) -> None:
    data = muxed(*TIMED[kind], sound(), delay=lambda seconds: 5 if seconds > 2 else 0)
    audio = decode(data)
    assert audio.samples.size / SAMPLE_RATE == pytest.approx(9, abs=0.1)
    assert is_loud(audio.samples, 0.1, 1.9)
    assert np.abs(audio.samples[round(2.2 * SAMPLE_RATE) : round(6.8 * SAMPLE_RATE)]).max() == 0
    assert is_loud(audio.samples, 7.2, 8.9)
    (warning,) = audio.warnings
    assert warning.code is WarningCode.audio_gaps
    assert re.fullmatch(
        r"5\.\d s of the recording are missing and count as silence, the first at 2\.\d s", warning.message
    )


@pytest.mark.parametrize("kind", TIMED)
def test_a_recording_that_starts_late_has_its_start(kind: str) -> None:
    data = muxed(*TIMED[kind], sound(), delay=lambda seconds: 7)
    assert probe(io.BytesIO(data)).duration_s == pytest.approx(4, abs=0.03)
    audio = decode(data)
    assert audio.samples.size / SAMPLE_RATE == pytest.approx(4, abs=0.1)
    assert audio.start_s == pytest.approx(7, abs=0.03)
    assert audio.warnings == ()


@pytest.mark.parametrize("kind", TIMED)
def test_time_stamps_that_are_rounded_or_drift_leave_no_gaps(kind: str) -> None:
    audio = decode(muxed(*TIMED[kind], sound(), delay=lambda seconds: 0.02 * seconds + 0.04))
    assert audio.samples.size / SAMPLE_RATE == pytest.approx(4, abs=0.1)
    assert (audio.start_s, audio.warnings) == (0, ())


def test_a_gap_counts_towards_the_longest_duration() -> None:
    data = muxed("webm", "libopus", sound(), delay=lambda seconds: 3000 if seconds > 2 else 0)
    with pytest.raises(AudioTooLong):
        decode(data, max_duration_s=300)


def test_time_stamps_that_cannot_be_true_are_ignored() -> None:
    jump = muxed("webm", "libopus", sound(), delay=lambda seconds: 5000 if seconds > 2 else 0)
    time_of_day = muxed("matroska", "pcm_s16le", sound(), delay=lambda seconds: 1_700_000_000)
    for audio in (decode(jump), decode(time_of_day)):
        assert audio.samples.size / SAMPLE_RATE == pytest.approx(4, abs=0.1)
        assert audio.start_s == 0


def test_one_wrong_time_stamp_moves_nothing() -> None:
    data = bytearray(muxed("matroska", "libopus", sound(), cluster_time_limit="10000"))
    # A block of Matroska is its length, the number of its track and its time within the cluster, in ms.
    place = next(found.start() for found in re.finditer(rb"\x81([\x07])", bytes(data)) if found.start() > 2000)
    data[place + 1] += 8  # two seconds later
    audio = decode(bytes(data))
    assert audio.samples.size / SAMPLE_RATE == pytest.approx(4, abs=0.1)


def test_recordings_that_were_joined_are_read_to_the_end() -> None:
    for name in ("mp3", "flac", "webm", "opus"):
        data = encoded(name, sound(4), 48_000) + encoded(name, sound(3, 440), 48_000)
        audio = decode(data)
        assert audio.samples.size / SAMPLE_RATE == pytest.approx(7, abs=0.1), name
        assert is_loud(audio.samples, 4.2, 6.8), name


def test_a_tag_between_two_mp3_files_costs_at_most_a_frame() -> None:
    one, tag = encoded("mp3", sound(), 48_000), b"ID3\x03\0\0\0\0\x07\x76" + bytes(1014)
    assert decode(one + tag + one).samples.size / SAMPLE_RATE == pytest.approx(8, abs=0.15)


def test_a_chained_ogg_is_measured_whole_and_read_at_each_rate() -> None:
    links = [muxed("ogg", "flac", tone(seconds, rate=rate), rate=rate) for seconds, rate in ((4, 16_000), (3, 8_000))]
    data = links[0] + links[1] + links[0]
    assert probe(io.BytesIO(data)).duration_s == pytest.approx(11)
    assert decode(data).samples.size == 11 * SAMPLE_RATE


@cache
def whole(name: str) -> bytes:
    return encoded(name, sound(), 48_000)


@given(name=st.sampled_from(["mp3", "aac", "opus", "m4a", "webm", "flac"]), place=st.floats(0, 0.999), seed=st.binary())
@settings(deadline=None, max_examples=100)
def test_damaged_bytes_never_raise_anything_but_an_audio_error(name: str, place: float, seed: bytes) -> None:
    data = whole(name)
    at = int(place * len(data))
    noise = np.random.default_rng(list(seed)).bytes(40)
    harmed = data[:at] + noise[: len(data) - at] + data[at + 40 :]
    try:
        probe(io.BytesIO(harmed))
        audio = decode(harmed, max_duration_s=300)
    except (AudioError, AudioTooLong) as error:
        assert_plain(str(error))
    else:
        assert audio.samples.size > 0.3 * SAMPLE_RATE


@pytest.mark.parametrize(
    ("name", "lost_s"), [("opus", 0.05), ("m4a", 0.05), ("flac", 0.3), ("mp3", 0.4), ("aac", 0.7), ("webm", 3.3)]
)
def test_forty_damaged_bytes_within_a_recording_leave_the_rest(name: str, lost_s: float) -> None:
    for place in np.linspace(0.2, 0.7, 20):
        audio = decode(damaged(whole(name), float(place)))
        # A bare MP3 or AAC has no time stamps; the short WebM has one cluster, whose rest FFmpeg does not find again.
        assert audio.start_s + audio.samples.size / SAMPLE_RATE == pytest.approx(4, abs=lost_s)


def test_a_damaged_page_at_the_end_of_an_ogg_is_skipped() -> None:
    data = whole("opus")
    *_, before, _ = (found.start() for found in re.finditer(b"OggS", data))  # the last page is short
    audio = decode(damaged(data, (before + 400) / len(data)))
    assert audio.samples.size / SAMPLE_RATE == pytest.approx(3, abs=0.05)
    assert [warning.code for warning in audio.warnings] == [WarningCode.audio_skipped]


def test_a_recording_of_which_hardly_anything_is_left_is_refused() -> None:
    data = whole("m4a")
    start, end = data.index(b"mdat") + 2000, data.index(b"moov") - 8
    with pytest.raises(AudioUndecodable, match=r"is damaged: only 0\.\d of [34]\.\d s can be decoded"):
        decode(data[:start] + np.random.default_rng(0).bytes(end - start) + data[end:])


PCM = (32_000 * tone(2)).astype("<i2").tobytes()


def wav(riff_bytes: int | None, data_bytes: int | None, after: bytes = b"") -> bytes:
    """Two seconds whose header states these lengths of the file and of its data; None: the true ones."""
    header = bytearray(riff(PCM)[:44])
    struct.pack_into("<I", header, 4, 36 + len(PCM) + len(after) if riff_bytes is None else riff_bytes)
    struct.pack_into("<I", header, 40, len(PCM) if data_bytes is None else data_bytes)
    return bytes(header) + PCM + after


@pytest.mark.parametrize(
    ("riff_bytes", "data_bytes"),
    [
        *((None, wrong) for wrong in (0, 1000, 2 * len(PCM), 0xFFFF_FFFF)),
        *((wrong, None) for wrong in (0, 36, 1000, 2 * len(PCM), 0xFFFF_FFFF)),
        *((0, 0), (36, 0), (0xFFFF_FFFF, 0xFFFF_FFFF), (0xFFFF_FFFF, 0), (0, 0xFFFF_FFFF)),
    ],
)
def test_a_wav_is_read_to_its_end_if_one_of_its_lengths_is_wrong(
    riff_bytes: int | None, data_bytes: int | None
) -> None:
    data = wav(riff_bytes, data_bytes)
    assert decode(data).samples.size == 2 * SAMPLE_RATE
    assert probe(io.BytesIO(data)).duration_s == pytest.approx(2)


def test_what_follows_the_data_of_a_wav_is_not_decoded() -> None:
    assert decode(wav(None, None, b"LIST\x04\0\0\0INFO")).samples.size == 2 * SAMPLE_RATE


def test_a_wav_of_which_both_lengths_promise_more_is_cut_off() -> None:
    with pytest.raises(AudioUndecodable, match="cut off after"):
        decode(wav(2 * len(PCM), 2 * len(PCM)))


@pytest.mark.parametrize("counted", [0, 1])
def test_a_gsm_file_with_an_odd_number_of_blocks_is_whole(counted: int) -> None:
    # The data are padded with a byte, which some programs count (Microsoft's GSM 6.10: 65 bytes for 320 samples).
    blocks = bytes([0xD2, *bytes(64)]) * 51
    form = struct.pack("<HHIIHHHH", 0x31, 1, 8000, 1625, 65, 0, 2, 320)
    size = struct.pack("<I", len(blocks) + counted)
    chunks = b"fmt " + struct.pack("<I", len(form)) + form + b"data" + size + blocks + b"\0"
    audio = decode(b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WAVE" + chunks)
    assert (audio.samples.size, audio.warnings) == (51 * 640, ())


@pytest.mark.parametrize(("container", "codec"), [("w64", "pcm_s16le"), ("caf", "pcm_s16le"), ("caf", "alac")])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_truncated_wave64_or_caf_is_refused(container: str, codec: str, share: float) -> None:
    data = muxed(container, codec, sound())
    assert decode(data).samples.size / SAMPLE_RATE == pytest.approx(4, abs=0.02)
    for read in (decoder.decode, probe):
        with pytest.raises(AudioUndecodable, match="cut off after"):
            read(io.BytesIO(data[: int(share * len(data))]))


def test_a_caf_with_lengths_below_zero_is_refused() -> None:
    data = muxed("caf", "pcm_s16le", sound())
    place = data.index(b"data")
    negative = data[: place + 4] + struct.pack(">q", -50) + data[place + 12 :]
    backwards = data[:place] + b"free" + struct.pack(">q", -400) + data[place:]
    for harmed in (negative, backwards):
        with pytest.raises(AudioUndecodable, match="negative length"):
            decode(harmed)
    streamed = data[: place + 4] + struct.pack(">q", -1) + data[place + 12 :]
    assert decode(streamed).samples.size == 4 * SAMPLE_RATE


def test_each_track_is_a_channel() -> None:
    data = muxed("matroska", "libopus", sound(4), sound(3, 440), delays=(1, 3))
    assert probe(io.BytesIO(data)).channels == 2
    parts = parts_of(data, 2)
    first, second = (np.concatenate([part.channels[number] for part in parts]) for number in range(2))
    assert first.size == second.size == 5 * SAMPLE_RATE
    assert parts[0].start_s == pytest.approx(1, abs=0.01)
    assert [is_loud(first, 0.1, 3.9), is_loud(first, 4.1, 4.9)] == [True, False]
    assert [is_loud(second, 0.1, 1.9), is_loud(second, 2.1, 4.9)] == [False, True]
    assert parts[-1].warnings == ()


def test_a_silent_first_track_does_not_hide_the_second() -> None:
    data = muxed("mp4", "aac", 0 * sound(), np.stack([sound(), sound()]))
    assert probe(io.BytesIO(data)).channels == 3
    audio = decode(data)
    assert np.abs(audio.samples).max() > 0.2
    assert [warning.code for warning in audio.warnings] == [WarningCode.tracks_mixed]


def test_the_number_of_channels_is_that_of_all_tracks() -> None:
    with pytest.raises(AudioUndecodable, match="has 2 channels where it should have 3"):
        parts_of(muxed("mp4", "aac", sound(), sound()), 3)


REFUSED = {
    "an AVI video": b"RIFF\x64\0\0\0AVI LIST" + bytes(100),
    "an MPEG transport stream": (b"\x47" + bytes(187)) * 5,
    "a Flash video": b"FLV\x01\x05" + bytes(100),
    "a Monkey's Audio file": b"MAC " + bytes(100),
    "a playlist": b"\xef\xbb\xbf#EXTM3U\nhttp://localhost/a.mp3",
    "a picture": b"\x89PNG\r\n\x1a\n" + bytes(99),
    "a ZIP archive": b"PK\x03\x04" + bytes(99),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_format_that_is_not_supported_is_named(name: str) -> None:
    for read in (decoder.decode, probe):
        with pytest.raises(AudioUndecodable, match=f"the file is {name}, which is not supported"):
            read(io.BytesIO(REFUSED[name]))


def test_an_m4a_without_its_index_says_so() -> None:
    for share in (0.01, 0.5, 0.9):
        with pytest.raises(AudioUndecodable, match=r"the index of the recording .moov. is missing"):
            decode(whole("m4a")[: int(share * len(whole("m4a")))])


def assert_plain(message: str) -> None:
    """Whether a message has nothing of an exception of FFmpeg, and no path."""
    assert not re.search(r"Errno|None|FFmpeg|Invalid|/|returned|Error", message), message


@pytest.mark.parametrize("read", [decoder.decode, probe])
def test_messages_hold_no_paths_and_nothing_of_ffmpeg(read: Callable[[Path], object], tmp_path: Path) -> None:
    for data in (*REFUSED.values(), b"text " * 99, bytes(999), whole("m4a")[:5000], whole("opus")[:99]):
        path = tmp_path / "12:30.wav"
        path.write_bytes(data)
        with pytest.raises(AudioUndecodable) as refused:
            read(path)
        assert_plain(str(refused.value))
