"""Sound in: any container and codec that FFmpeg reads, out as 16 kHz mono float32.

A recording that is cut off is refused rather than half heard, wherever the file shows it: a WAV shorter than its header
promises, an Ogg file that ends within a page, a FLAC, MP4, WebM or AIFF with less sound than its header counts. MP3,
bare AAC and AMR do not state their length, and a live stream does not know it: these are taken for as long as they are.

The functions of this module decode in the calling process. A hostile file can crash it or exhaust its memory, so use
them for trusted files only. `shared.audio.sandbox` has the same functions for files that somebody sent.
"""

import io
import math
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import IO, cast

import av
import av.error
import numpy as np
from av.container import InputContainer
from numpy.typing import NDArray

from shared.errors import AudioEmpty, AudioNotFinite, AudioTooLong, AudioUndecodable

SAMPLE_RATE = 16_000

Samples = NDArray[np.float32]
"""Shape [samples], 16 kHz mono, nominally in [-1, 1]; shape [samples, channels] where that is said."""

Source = Path | IO[bytes]

FORMATS = ("wav", "w64", "flac", "mp3", "ogg", "mov", "matroska", "aac", "aiff", "au", "caf", "amr", "asf")
"""FFmpeg's names of the containers that are opened. Playlists are not among them: they name other files, which a
stranger's upload must not make us read."""

CODECS = (
    # uncompressed
    *("pcm_u8", "pcm_s8", "pcm_s16le", "pcm_s16be", "pcm_s24le", "pcm_s24be", "pcm_s32le", "pcm_s32be", "pcm_s64le"),
    *("pcm_f32le", "pcm_f32be", "pcm_f64le", "pcm_f64be"),
    # telephony and dictation
    *("pcm_alaw", "pcm_mulaw", "adpcm_ms", "adpcm_ima_wav", "adpcm_ima_qt", "adpcm_yamaha", "g722", "g726", "g726le"),
    *("gsm", "gsm_ms", "speex", "amrnb", "amrwb", "libopencore_amrnb", "libopencore_amrwb"),
    # lossless
    *("flac", "alac", "wmalossless"),
    # lossy
    *("mp1", "mp1float", "mp2", "mp2float", "mp3", "mp3float", "aac", "vorbis", "opus", "libopus", "ac3", "eac3"),
    *("wmav1", "wmav2", "wmapro", "wmavoice"),
)
"""FFmpeg's names of the decoders that may run; one that the installed FFmpeg lacks is never asked for.

None of them decodes pictures: FFmpeg, which looks for every stream's properties when it opens a file, would decode an
embedded picture whole (1 MB of PNG may hold 1 GB of pixels)."""

_OPTIONS = {
    "format_whitelist": ",".join(FORMATS),
    "codec_whitelist": ",".join(CODECS),
    # FFmpeg reads the bytes that it is given. It opens no file and no connection by itself.
    "protocol_whitelist": "",
}

ESTIMATING_FORMATS = {"mp3", "aac", "amr"}
"""FFmpeg guesses these formats' duration from the bit rate, which silence and variable rates mislead."""
MIN_RATE = 4_000
"""Hz, below any telephone's: a small file at 1 Hz would become hours of sound."""
MAX_RATE = 384_000
"""Hz, the highest of recording equipment."""
MAX_SAMPLES_PER_SECOND = 192_000 * 8
"""Sample rate times channels. With the longest duration allowed, this bounds the work that one file can cost."""

MAX_OGG_PAGE_BYTES = 27 + 255 + 255 * 255
_FLAC_BLOCK = 4096
UNKNOWN_WAV_BYTES = 0x7FFF_0000
"""Writers to a pipe put this or more into the header, or nothing."""


@dataclass(frozen=True)
class AudioInfo:
    """What a recording says of itself without being decoded; `duration_s` is None where it says nothing."""

    duration_s: float | None
    channels: int


def probe(source: Source, max_duration_s: float | None = None) -> AudioInfo:
    """Read the header, or where that knows no length, the packets' lengths, up to `max_duration_s` seconds.

    Raises:
        AudioEmpty: no bytes.
        AudioUndecodable: not a recording, or one without an audio stream.
        AudioTooLong: the packets are longer than `max_duration_s`. A length in the header is returned, whatever it is.
    """
    with _open(source) as container:
        channels = container.streams.audio[0].codec_context.channels
        if container.format.name in ESTIMATING_FORMATS:
            return AudioInfo(_packets_s(container, max_duration_s), channels)
        return AudioInfo(container.duration / av.time_base if container.duration else None, channels)


def decode(source: Source, max_duration_s: float | None = None) -> Samples:
    """The whole recording as 16 kHz mono float32, its channels averaged.

    Memory stays bounded by `max_duration_s`: decoding stops as soon as it is passed.

    Raises:
        AudioEmpty: no bytes, or no samples (or so few, up to 3 ms, that no resampling is possible).
        AudioUndecodable: not a recording, damaged or cut off.
        AudioNotFinite: NaN or infinite samples.
        AudioTooLong: longer than `max_duration_s`.
    """
    return np.concatenate([frame.mean(axis=1) for frame in _frames(source, max_duration_s)])


def decode_parts(
    source: Source, channels: int, part_s: float, max_duration_s: float | None = None
) -> Iterator[list[Samples]]:
    """A long recording in parts of `part_s` seconds, the last of which may be shorter: each channel by itself.

    Args:
        source: the recording.
        channels: as many as it has; 1: they are averaged.
        part_s: how much of it is in memory at once, and somewhat more.
        max_duration_s: the longest that is allowed.

    Raises:
        As `decode` does, but for what comes late perhaps after some parts.
        AudioUndecodable: also where it has another number of channels, or comes to have.
    """
    waiting: list[Samples] = []
    count = 0
    for frame in _frames(source, max_duration_s):
        waiting.append(frame.mean(axis=1, keepdims=True) if channels == 1 else frame)
        if waiting[-1].shape[1] != channels:
            raise AudioUndecodable(f"the recording has {frame.shape[1]} channels where it should have {channels}")
        count += len(frame)
        if count >= part_s * SAMPLE_RATE:
            yield _apart(waiting)
            waiting, count = [], 0
    if waiting:
        yield _apart(waiting)


def encode(samples: Samples) -> bytes:
    """Sound, shape [samples], as a FLAC file of 16 bits."""
    file = io.BytesIO()
    with av.open(file, "w", format="flac") as container:
        stream = cast("av.AudioStream", container.add_stream("flac", rate=SAMPLE_RATE))
        stream.layout, stream.format = "mono", "s16"
        whole = np.clip(np.round(samples * 32768), -32768, 32767).astype(np.int16)[None]
        for start in range(0, whole.shape[1], _FLAC_BLOCK):
            frame = av.AudioFrame.from_ndarray(whole[:, start : start + _FLAC_BLOCK], format="s16", layout="mono")
            frame.sample_rate, frame.pts = SAMPLE_RATE, start
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return file.getvalue()


def _frames(source: Source, max_duration_s: float | None) -> Iterator[Samples]:
    """The recording at 16 kHz, piece by piece, shape [samples, channels]; none of them is empty, and there is one."""
    count = 0
    with _open(source) as container:
        promised = _promised_seconds(container)
        for frame in _resampled(container):
            if not np.isfinite(frame).all():
                bad = count + int(np.flatnonzero(~np.isfinite(frame).all(axis=1))[0])
                raise AudioNotFinite(f"the sample at {bad / SAMPLE_RATE:.3f} s is not a finite number")
            count += len(frame)
            if max_duration_s is not None and count > max_duration_s * SAMPLE_RATE:
                raise AudioTooLong(f"the recording is longer than the {max_duration_s:g} s allowed")
            yield frame
    if count < SAMPLE_RATE * (0.99 * promised - 0.1):
        raise AudioUndecodable(
            f"the recording is cut off: {count / SAMPLE_RATE:.1f} of the {promised:.1f} s its header promises"
        )
    if count == 0:
        raise AudioEmpty("the recording holds no samples")


def _resampled(container: InputContainer) -> Iterator[Samples]:
    # FFmpeg's own mixing makes two equal channels 3 dB louder than one, so the channels are kept here.
    # Interleaved, since PyAV miscounts the planes of eight channels and more.
    resampler = av.AudioResampler(format="flt", rate=SAMPLE_RATE)
    try:
        for frame in chain(container.decode(audio=0), [None]):
            if frame is not None:
                _check_work(frame.sample_rate, frame.layout.nb_channels)
            for resampled in resampler.resample(frame):
                if resampled.samples:
                    interleaved = resampled.to_ndarray().astype(np.float32, copy=False)
                    yield interleaved.reshape(-1, resampled.layout.nb_channels)
    except (av.error.FFmpegError, ValueError) as error:
        raise AudioUndecodable(f"the recording is damaged: {_reason(error)}") from error


def _apart(frames: Sequence[Samples]) -> list[Samples]:
    """The channels of frames of shape [samples, channels]."""
    return list(np.ascontiguousarray(np.concatenate(frames).T))


def _packets_s(container: InputContainer, max_duration_s: float | None) -> float | None:
    stream = container.streams.audio[0]
    longest = math.inf if max_duration_s is None or not stream.time_base else max_duration_s / stream.time_base
    ticks = 0
    try:
        for packet in container.demux(stream):
            ticks += packet.duration or 0
            if ticks > longest:
                raise AudioTooLong(f"the recording is longer than the {max_duration_s:g} s allowed")
    except av.error.FFmpegError as error:
        raise AudioUndecodable(f"the recording is damaged: {_reason(error)}") from error
    return float(ticks * stream.time_base) if ticks and stream.time_base else None


def _promised_seconds(container: InputContainer) -> float:
    """The length that the header states, 0 where it states none."""
    stream = container.streams.audio[0]
    if container.format.name in ESTIMATING_FORMATS:
        return 0.0
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    alone = len(container.streams) == 1  # a video's length need not be its sound's
    return container.duration / av.time_base if alone and container.duration else 0.0


@contextmanager
def _open(source: Source) -> Iterator[InputContainer]:
    """Open a recording for demuxing and decoding.

    Raises:
        AudioEmpty: no bytes.
        AudioUndecodable: not a recording that may be decoded, or cut off.
    """
    with open_source(source) as file:
        _check_bytes(file)
        try:
            # Always a file object: FFmpeg would take a path with a colon for a URL.
            container = av.open(file, mode="r", metadata_errors="ignore", options=_OPTIONS)
        except (av.error.FFmpegError, ValueError) as error:
            raise AudioUndecodable(f"this is not a recording that FFmpeg can read: {_reason(error)}") from error
        with container:
            _check_stream(container)
            yield container


def _check_stream(container: InputContainer) -> None:
    """Raises AudioUndecodable where there is no audio stream, or one that may not be decoded."""
    if not container.streams.audio:
        raise AudioUndecodable("the file has no audio stream")
    codec = container.streams.audio[0].codec_context
    # PyAV has no codec context for a codec that FFmpeg cannot decode.
    if codec is None:  # pyright: ignore[reportUnnecessaryComparison]
        raise AudioUndecodable("FFmpeg cannot decode this kind of sound")
    # The list that FFmpeg was given binds its own decoders, but not those that PyAV opens.
    if codec.codec.name not in CODECS:
        raise AudioUndecodable(f"the audio codec {codec.codec.name} is not supported")
    if codec.channels < 1:
        raise AudioUndecodable("FFmpeg cannot decode this kind of sound")
    _check_work(codec.sample_rate, codec.channels)


def _check_work(rate: int, channels: int) -> None:
    """Raises AudioUndecodable where a second of the recording would cost too much work, or make too much of a byte."""
    if not MIN_RATE <= rate <= MAX_RATE:
        raise AudioUndecodable(f"the sample rate is {rate} Hz; it must be {MIN_RATE} to {MAX_RATE}")
    if rate * channels > MAX_SAMPLES_PER_SECOND:
        raise AudioUndecodable(
            f"the recording has {rate * channels} samples per second ({channels} channels at {rate} Hz); "
            f"{MAX_SAMPLES_PER_SECOND} are allowed"
        )


def _reason(error: Exception) -> str:
    return (isinstance(error, OSError) and error.strerror) or str(error)


def _check_bytes(file: IO[bytes]) -> None:
    """Check for what FFmpeg would not notice: no bytes at all, or a WAV or Ogg file whose end is lost.

    Raises:
        AudioEmpty: no bytes.
        AudioUndecodable: cut off.
    """
    size = file.seek(0, 2)
    if size == 0:
        raise AudioEmpty("the recording has zero bytes")
    file.seek(0)
    head = file.read(12)
    file.seek(max(0, size - MAX_OGG_PAGE_BYTES))
    if _is_cut_wav(head, size) or (head.startswith(b"OggS") and _is_cut_ogg(file.read())):
        raise AudioUndecodable(f"the recording is cut off after {size} bytes")
    file.seek(0)


def _is_cut_wav(head: bytes, size: int) -> bool:
    if len(head) < 12 or head[:4] != b"RIFF" or head[8:] != b"WAVE":
        return False
    (promised,) = struct.unpack_from("<I", head, 4)
    return promised < UNKNOWN_WAV_BYTES and size < 0.99 * promised


def _is_cut_ogg(tail: bytes) -> bool:
    """Whether the last page (RFC 3533, section 6) lacks its end."""
    page = tail[tail.rfind(b"OggS") :]
    if len(page) < 27 or len(page) < 27 + page[26]:
        return True
    lacing = page[27 : 27 + page[26]]
    return len(page) < 27 + len(lacing) + sum(lacing)


@contextmanager
def open_source(source: Source) -> Iterator[IO[bytes]]:
    """The source's bytes from the beginning; a file object is at its beginning again afterwards.

    Raises:
        AudioUndecodable: there is a path that cannot be opened.
    """
    if isinstance(source, Path):
        try:
            file = source.open("rb")
        except OSError as error:
            raise AudioUndecodable(f"the file cannot be opened: {error.strerror}") from error
        with file:
            yield file
    else:
        source.seek(0)
        yield source
        source.seek(0)
