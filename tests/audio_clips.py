"""Synthesised sound for the tests."""

import io
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import av
import numpy as np
from av.container import OutputContainer
from numpy.typing import NDArray

from shared.audio import decoder
from shared.audio.decoder import Samples, Source

ASSETS = Path(__file__).parent / "assets"
RATE = 16_000
FORMATS = {
    "wav": ("wav", "pcm_s16le"),
    "float wav": ("wav", "pcm_f32le"),
    "flac": ("flac", "flac"),
    "mp3": ("mp3", "libmp3lame"),
    "opus": ("ogg", "libopus"),
    "m4a": ("ipod", "aac"),
    "webm": ("webm", "libopus"),
    "aac": ("adts", "aac"),
}


def tone(seconds: float = 1.0, hertz: float = 220.0, rate: int = RATE) -> NDArray[np.float32]:
    """A sine at half scale, shape [samples]."""
    times = np.arange(int(seconds * rate)) / rate
    return (0.5 * np.sin(2 * np.pi * hertz * times)).astype(np.float32)


def silence(seconds: float) -> Samples:
    return np.zeros(round(seconds * RATE), np.float32)


def spoken(name: str) -> Samples:
    """What espeak says in one of the files beside the tests."""
    return decode(ASSETS / f"{name}.ogg")


def decode(source: Source, max_duration_s: float | None = None) -> Samples:
    """The samples of a recording, without the warnings."""
    return decoder.decode(source, max_duration_s).samples


def wav(samples: NDArray[np.float32] | None = None, rate: int = RATE) -> bytes:
    """A 16-bit PCM WAV file: one second of a tone, or the samples given."""
    sound = tone(rate=rate) if samples is None else samples
    return riff((np.clip(sound, -1, 1) * 32767).astype("<i2").tobytes(), rate=rate)


def riff(
    data: bytes,
    promised: int | None = None,
    bits: int = 16,
    kind: int = 1,
    channels: int = 1,
    rate: int = RATE,
) -> bytes:
    """A WAV whose header promises that many bytes of sound (by default, those that are there)."""
    size = len(data) if promised is None else promised
    width = channels * bits // 8
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, kind, channels, rate, rate * width, width, bits)
    whole = min(36 + size, 0xFFFF_FFFF)
    return struct.pack("<4sI4s", b"RIFF", whole, b"WAVE") + form + struct.pack("<4sI", b"data", size) + data


def encoded(name: str, sound: NDArray[np.floating], rate: int = RATE) -> bytes:
    """`sound`, shape [samples] or [channels, samples], as a file of that format."""
    out = io.BytesIO()
    write(out, name, sound, rate)
    return out.getvalue()


def write(out: io.BytesIO | str, name: str, sound: NDArray[np.floating], rate: int, **options: str) -> None:
    channels = np.atleast_2d(sound).astype(np.float32)
    layout = "stereo" if len(channels) == 2 else "mono"
    container, codec = FORMATS[name]
    with av.open(out, "w", format=container, options=options) as file:
        stream = file.add_stream(codec, rate=rate)
        assert isinstance(stream, av.AudioStream)
        stream.layout = layout
        stream.codec_context.open()
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(channels), format="fltp", layout=layout)
        frame.sample_rate = rate
        resampler = av.AudioResampler(stream.format, layout, rate, frame_size=stream.frame_size)
        for piece in [*resampler.resample(frame), *resampler.resample(None)]:
            file.mux(stream.encode(piece))
        file.mux(stream.encode(None))


def no_delay(seconds: float) -> float:
    return 0.0


def muxed(
    container: str,
    codec: str,
    *sounds: NDArray[np.floating],
    rate: int = 48_000,
    delay: Callable[[float], float] = no_delay,
    delays: Sequence[float] = (),
    **options: str,
) -> bytes:
    """A file with a track for each sound, shape [samples] or [channels, samples].

    Args:
        delay: how many seconds later a packet is stamped, given the seconds at which it would be.
        delays: how many seconds later each track begins.
    """
    out = io.BytesIO()
    with av.open(out, "w", format=container, options=options) as file:
        late = [*delays, *[0.0] * len(sounds)]
        streams = [_add_stream(file, codec, rate, sound) for sound in sounds]
        packets = [
            _delayed(packet, late[number], delay)
            for number, sound in enumerate(sounds)
            for packet in _encode(streams[number], np.atleast_2d(sound).astype(np.float32))
        ]
        for packet in sorted(packets, key=lambda packet: float((packet.dts or 0) * packet.time_base)):
            file.mux(packet)
    return out.getvalue()


def _add_stream(file: OutputContainer, codec: str, rate: int, sound: NDArray[np.floating]) -> av.AudioStream:
    stream = file.add_stream(codec, rate=rate)
    assert isinstance(stream, av.AudioStream)
    stream.layout = "stereo" if sound.ndim == 2 else "mono"
    stream.codec_context.open()
    return stream


def _encode(stream: av.AudioStream, channels: NDArray[np.float32]) -> Iterator[av.Packet]:
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(channels), format="fltp", layout=stream.layout.name)
    frame.sample_rate, frame.pts = stream.rate, 0
    resampler = av.AudioResampler(stream.format, stream.layout.name, stream.rate, frame_size=stream.frame_size)
    for piece in [*resampler.resample(frame), *resampler.resample(None), None]:
        yield from stream.encode(piece)


def _delayed(packet: av.Packet, seconds: float, delay: Callable[[float], float]) -> av.Packet:
    assert packet.pts is not None
    packet.pts += round((seconds + delay(float(packet.pts * packet.time_base))) / packet.time_base)
    packet.dts = packet.pts
    return packet


def damaged(data: bytes, place: float = 0.45, size: int = 40) -> bytes:
    """The bytes of a file of which some, from a share of its length on, were overwritten with random ones."""
    start = int(place * len(data))
    return data[:start] + np.random.default_rng(0).bytes(size) + data[start + size :]


def large_png(side: int) -> bytes:
    """A black RGBA picture of `side` times `side` pixels, compressed a thousandfold."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    # Compressed zeros repeat themselves, so that a megabyte of them is compressed once.
    rows, block = side * (1 + 4 * side), 2**20
    compressor = zlib.compressobj(9)
    head = compressor.compress(b"") + compressor.flush(zlib.Z_FULL_FLUSH)
    repeated = compressor.compress(bytes(block)) + compressor.flush(zlib.Z_FULL_FLUSH)
    rest = zlib.compressobj(9, wbits=-15)
    tail = rest.compress(bytes(rows % block)) + rest.flush()
    pixels = head + rows // block * repeated + tail + struct.pack(">HH", rows % 65521, 1)
    header = struct.pack(">IIBBBBB", side, side, 8, 6, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def picture_block(png: bytes, side: int) -> bytes:
    """A front cover as FLAC's PICTURE block holds it (RFC 9639, section 8.8)."""
    kind = b"image/png"
    head = struct.pack(">II", 3, len(kind)) + kind + struct.pack(">IIIIII", 0, side, side, 32, 0, len(png))
    return head + png


def flac_with_picture(sound: NDArray[np.floating], side: int) -> bytes:
    """A FLAC file of `sound`, shape [samples], with a cover of `side` times `side` pixels."""
    flac, block = encoded("flac", sound), picture_block(large_png(side), side)
    stream_info = slice(4, 4 + 4 + 34)  # the first block, after the four letters "fLaC"
    metadata = bytes([6]) + len(block).to_bytes(3, "big") + block
    return flac[: stream_info.stop] + metadata + flac[stream_info.stop :]
