"""What decoding an upload may cost, and what FFmpeg may open for it: nothing but sound."""

import base64
import io
import struct
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import cast

import av
import numpy as np
import pytest
from av.codec.codec import UnknownCodecError
from av.container import OutputContainer

from shared.audio.decoder import SAMPLE_RATE, probe
from shared.audio.tracks import CODECS, MAX_RATE
from shared.errors import AudioUndecodable
from tests.audio_clips import decode, encoded, flac_with_picture, large_png, picture_block, riff, tone

SIDE = 16_000
"""Pixels; such a picture takes a gigabyte when it is decoded."""
LIMIT_MB = 150


def mp3_with_picture(png: bytes) -> bytes:
    apic = b"\0image/png\0\3\0" + png
    frame = b"APIC" + len(apic).to_bytes(4, "big") + bytes(2) + apic
    size = bytes(len(frame) >> shift & 0x7F for shift in (21, 14, 7, 0))
    return b"ID3\3\0\0" + size + frame + encoded("mp3", tone(2))


def m4a_with_picture(png: bytes) -> bytes:
    def box(kind: bytes, *parts: bytes) -> bytes:
        return struct.pack(">I4s", 8 + sum(map(len, parts)), kind) + b"".join(parts)

    handler = box(b"hdlr", bytes(8), b"mdir", b"appl", bytes(9))
    cover = box(b"ilst", box(b"covr", box(b"data", struct.pack(">II", 14, 0), png)))
    metadata = box(b"udta", box(b"meta", bytes(4), handler, cover))
    audio = encoded("m4a", tone(2))
    place = audio.rindex(b"moov") - 4  # the last box of the file
    (size,) = struct.unpack_from(">I", audio, place)
    return audio[:place] + struct.pack(">I", size + len(metadata)) + audio[place + 4 :] + metadata


def ogg_with_picture(png: bytes) -> bytes:
    out = io.BytesIO()
    with av.open(out, "w", format="ogg") as file:
        file.metadata["METADATA_BLOCK_PICTURE"] = base64.b64encode(picture_block(png, SIDE)).decode()
        add_tone(file, "libopus")
    return out.getvalue()


def matroska_with_picture(png: bytes) -> bytes:
    out = io.BytesIO()
    with av.open(out, "w", format="matroska") as file:
        file.add_attachment("cover.png", "image/png", png)
        add_tone(file, "libopus")
    return out.getvalue()


def add_tone(file: OutputContainer, codec: str, rate: int = 48_000, layout: str = "mono") -> None:
    """Two seconds of a tone as a stream of a file that is being written."""
    strict = {"strict": "experimental"} if codec == "vorbis" else {}
    stream = cast("av.AudioStream", file.add_stream(codec, rate=rate, layout=layout, options=strict))
    if bit_rate := BIT_RATES.get(codec):
        stream.bit_rate = bit_rate
    stream.codec_context.open(strict=False)
    sound = np.tile(tone(2, rate=rate), (stream.channels, 1))
    frame = av.AudioFrame.from_ndarray(sound, format="fltp", layout=layout)
    frame.sample_rate, frame.pts = rate, 0
    resampler = av.AudioResampler(stream.format, layout, rate, frame_size=stream.frame_size)
    for piece in [*resampler.resample(frame), *resampler.resample(None)]:
        file.mux(stream.encode(piece))
    file.mux(stream.encode(None))


BIT_RATES = {"libopencore_amrnb": 12_200, "g726": 32_000, "wmav1": 128_000, "wmav2": 128_000}


@pytest.fixture(scope="module")
def png() -> bytes:
    return large_png(SIDE)


WITH_PICTURE = {
    "flac": lambda _: flac_with_picture(tone(2), SIDE),
    "mp3": mp3_with_picture,
    "m4a": m4a_with_picture,
    "ogg": ogg_with_picture,
    "mkv": matroska_with_picture,
}


@pytest.mark.parametrize("name", WITH_PICTURE)
def test_an_embedded_picture_is_not_decoded(name: str, png: bytes, tmp_path: Path) -> None:
    data = WITH_PICTURE[name](png)
    assert len(data) > 900_000
    with av.open(io.BytesIO(data), options={"codec_whitelist": "none"}) as file:
        assert file.streams.video, "the picture is there for FFmpeg to find"
    (tmp_path / "file").write_bytes(data)
    result = subprocess.run(
        [sys.executable, "-c", PEAK, str(tmp_path / "file")], capture_output=True, text=True, check=True
    )
    samples, peak_mb = map(float, result.stdout.split())
    assert samples == pytest.approx(2 * SAMPLE_RATE, abs=0.2 * SAMPLE_RATE)
    assert peak_mb < LIMIT_MB
    sound = decode(io.BytesIO(data))[SAMPLE_RATE // 2 : SAMPLE_RATE * 3 // 2]
    assert np.abs(sound).max() == pytest.approx(0.5, abs=0.05)


PEAK = """
import resource, sys
from pathlib import Path
from shared.audio.decoder import decode, probe
probe(Path(sys.argv[1]))
samples = decode(Path(sys.argv[1])).samples.size
try:  # of this process alone; the other figure may begin with its parent's
    status = Path("/proc/self/status").read_text()
    peak = int(status.split("VmHWM:")[1].split()[0]) / 2**10
except OSError:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
print(samples, peak)
"""


@pytest.mark.parametrize("audio", ["aac", "ac3", "mp2", "mp3", "alac"])
def test_the_audio_of_a_video_is_decoded(audio: str) -> None:
    container = "mp4" if audio != "alac" else "mov"
    out = io.BytesIO()
    with av.open(out, "w", format=container) as file:
        picture = cast("av.VideoStream", file.add_stream("mpeg4", rate=5, width=64, height=64, pix_fmt="yuv420p"))
        add_tone(file, "libmp3lame" if audio == "mp3" else audio, layout="stereo")
        for number in range(10):
            image = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")
            image.pts, image.time_base = number, Fraction(1, 5)
            file.mux(picture.encode(image))
        file.mux(picture.encode(None))
    assert probe(io.BytesIO(out.getvalue())).channels == 2
    assert decode(io.BytesIO(out.getvalue())).size == pytest.approx(2 * SAMPLE_RATE, abs=0.1 * SAMPLE_RATE)


CONTAINERS = {
    "wav": "pcm_u8 pcm_s16le pcm_s24le pcm_s32le pcm_f32le pcm_f64le pcm_alaw pcm_mulaw adpcm_ms adpcm_ima_wav "
    "adpcm_yamaha g726 mp2 libmp3lame",
    "w64": "pcm_s16le pcm_s24le pcm_f32le",
    "au": "pcm_s8 pcm_s16be pcm_s24be pcm_s32be pcm_f32be pcm_f64be pcm_alaw pcm_mulaw",
    "aiff": "pcm_s8 pcm_s16be pcm_s24be pcm_s32be pcm_f32be pcm_f64be pcm_alaw pcm_mulaw adpcm_ima_qt",
    "caf": "pcm_s16le pcm_s16be pcm_f32le pcm_mulaw alac adpcm_ima_qt",
    "mov": "pcm_s16le pcm_s24be alac aac",
    "ogg": "vorbis flac",
    "matroska": "vorbis flac aac pcm_s16le ac3",
    "asf": "wmav1 wmav2 libmp3lame",
    "amr": "libopencore_amrnb",
    "flac": "flac",
}


@pytest.mark.parametrize(
    ("container", "codec"), [(name, codec) for name, codecs in CONTAINERS.items() for codec in codecs.split()]
)
def test_recorders_and_telephones_codecs_are_decoded(container: str, codec: str) -> None:
    rate = 8_000 if codec in ("libopencore_amrnb", "g726") else 44_100 if codec.startswith("wma") else 48_000
    out = io.BytesIO()
    with av.open(out, "w", format=container) as file:
        add_tone(file, codec, rate, layout="stereo" if codec == "vorbis" else "mono")
    samples = decode(io.BytesIO(out.getvalue()))
    assert samples.size == pytest.approx(2 * SAMPLE_RATE, abs=0.1 * SAMPLE_RATE)
    assert np.sqrt(np.mean(samples[8_000:24_000] ** 2)) == pytest.approx(0.5 / np.sqrt(2), rel=0.3)


@pytest.mark.parametrize("codec", CODECS)
def test_only_audio_decoders_may_run(codec: str) -> None:
    try:
        assert av.Codec(codec, "r").type == "audio"
    except UnknownCodecError:
        assert codec in ("libopencore_amrnb", "libopencore_amrwb", "libopus"), "only these are built in at will"


def test_an_unsupported_codec_is_named() -> None:
    out = io.BytesIO()
    with av.open(out, "w", format="matroska") as file:
        add_tone(file, "tta")
    with pytest.raises(AudioUndecodable, match="the audio codec tta is not supported"):
        probe(io.BytesIO(out.getvalue()))


@pytest.mark.parametrize("name", ["2026-01-05T10:30:12.wav", "http:call.wav", "concat:a|b.wav", "50%.wav", "-.wav"])
def test_a_file_name_is_never_opened_as_an_url(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).write_bytes(encoded("wav", tone(1)))
    assert decode(Path(name)).size == SAMPLE_RATE
    assert probe(Path(name)).duration_s == 1


def test_a_sample_rate_beyond_any_recorder_s_is_refused() -> None:
    data = riff(bytes(100_000), rate=655_350)
    for read in (probe, decode):
        with pytest.raises(AudioUndecodable, match=r"sample rate is 655350 Hz; it must be 4000 to 384000"):
            read(io.BytesIO(data))
    assert decode(io.BytesIO(riff(bytes(2 * MAX_RATE), rate=MAX_RATE))).size == SAMPLE_RATE


def test_more_samples_per_second_than_eight_channels_at_192_khz_are_refused() -> None:
    data = riff(bytes(2 * 64 * 48_000), rate=48_000, channels=64)
    for read in (probe, decode):
        with pytest.raises(AudioUndecodable, match=r"3072000 samples per second .64 channels at 48000 Hz.; 1536000"):
            read(io.BytesIO(data))
    assert decode(io.BytesIO(riff(bytes(2 * 8 * 192_000), rate=192_000, channels=8))).size == SAMPLE_RATE
