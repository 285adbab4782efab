"""Decoding of audio files with FFmpeg to 16 kHz mono float32.

A truncated file is refused if the file itself shows that it is truncated: a WAV that is shorter than its header states,
an Ogg file that ends within a page, or a FLAC, MP4, WebM or AIFF with less audio than its header states. MP3, bare AAC
and AMR do not state their length, and neither does a live stream: they are decoded as far as they go.

The functions of this module decode in the calling process. A malicious file can crash it or exhaust its memory, so use
them for trusted files only. `shared.audio.sandbox` has the same functions for files that clients send.
"""

import io
import math
import struct
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, cast

import av
import av.error
import numpy as np
from av.audio.frame import AudioFrame
from av.container import InputContainer
from numpy.typing import NDArray

from shared.audio.downmix import Downmix
from shared.domain.warning import AnalysisWarning, WarningCode
from shared.errors import AudioEmpty, AudioNotFinite, AudioTooLong, AudioUndecodable

SAMPLE_RATE = 16_000

Samples = NDArray[np.float32]
"""16 kHz audio, nominally in [-1, 1]: mono of shape [samples], or of shape [samples, channels] where stated."""

Source = Path | IO[bytes]

FORMATS = ("wav", "w64", "flac", "mp3", "ogg", "mov", "matroska", "aac", "aiff", "au", "caf", "amr", "asf")
"""Allowed containers, by FFmpeg's names. Playlists are not allowed, because an upload could make FFmpeg read the files
that it lists."""

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
"""Allowed decoders, by FFmpeg's names. The installed FFmpeg need not have all of them.

None of them decodes images: FFmpeg probes every stream when it opens a file, and would decode an embedded image
completely. A PNG of 1 MB can hold 1 GB of pixels."""

_OPTIONS = {
    "format_whitelist": ",".join(FORMATS),
    "codec_whitelist": ",".join(CODECS),
    # FFmpeg only reads from the file object that it is given, and opens no files or connections itself.
    "protocol_whitelist": "",
}

ESTIMATING_FORMATS = {"mp3", "aac", "amr"}
"""Formats whose duration FFmpeg estimates from the bit rate, which is wrong for variable bit rates and silence."""
MIN_RATE = 4_000
"""Hz. Telephony has 8,000; resampling a small file at 1 Hz would give hours of audio."""
MAX_RATE = 384_000
"""Hz, the highest rate of recording equipment."""
MAX_SAMPLES_PER_SECOND = 192_000 * 8
"""Highest sample rate times channels. With the maximum duration, it limits the work that one file can cause."""

MAX_OGG_PAGE_BYTES = 27 + 255 + 255 * 255
_FLAC_BLOCK = 4096
UNKNOWN_WAV_BYTES = 0x7FFF_0000
"""A program that writes a WAV to a pipe does not know its size and puts this or more into the header."""


@dataclass(frozen=True)
class AudioInfo:
    """What a recording states without being decoded. `duration_s` is None if it states no length."""

    duration_s: float | None
    channels: int


@dataclass(frozen=True)
class DecodedAudio:
    """A decoded recording.

    Attributes:
        samples: 16 kHz mono, shape [samples].
        warnings: what was lost or changed in decoding.
    """

    samples: Samples
    warnings: tuple[AnalysisWarning, ...] = ()


@dataclass(frozen=True)
class AudioPart:
    """A part of a long recording, which begins where the part before ended.

    Attributes:
        channels: 16 kHz samples of each channel, shape [samples].
        warnings: what was lost or changed in decoding, up to the end of the part; the last part has all warnings.
    """

    channels: list[Samples]
    warnings: tuple[AnalysisWarning, ...] = ()


def probe(source: Source, max_duration_s: float | None = None) -> AudioInfo:
    """Returns a recording's duration and channels, without decoding it.

    The duration is that of the header. If the header states none, it is the sum of the packets' durations.

    Raises:
        AudioEmpty: the recording has no bytes.
        AudioUndecodable: the file is not a recording, or has no audio stream.
        AudioTooLong: the packets are longer than `max_duration_s` seconds. A duration from the header is returned, even
            if it is longer.
    """
    with _open(source) as container:
        channels = container.streams.audio[0].codec_context.channels
        if container.format.name in ESTIMATING_FORMATS:
            return AudioInfo(_packets_s(container, max_duration_s), channels)
        return AudioInfo(container.duration / av.time_base if container.duration else None, channels)


def decode(source: Source, max_duration_s: float | None = None) -> DecodedAudio:
    """Returns a recording as 16 kHz mono float32: the mean of its channels, or where they cancel the loudest of them.

    Decoding stops at `max_duration_s` seconds, which also limits the memory that it takes.

    Raises:
        AudioEmpty: the recording has no bytes or no samples, or up to 3 ms of them, too few to resample.
        AudioUndecodable: the file is not a recording, is truncated, or is so damaged that hardly anything is left.
        AudioNotFinite: a sample is NaN or infinite.
        AudioTooLong: the recording is longer than `max_duration_s`.
    """
    return join_parts(decode_parts(source, 1, math.inf, max_duration_s))


def decode_parts(
    source: Source, channels: int, part_s: float, max_duration_s: float | None = None
) -> Iterator[AudioPart]:
    """Decodes a long recording in parts, so that it is never in memory as a whole.

    Args:
        source: the recording.
        channels: the number of channels that it has, or 1 for the mix of its channels that `decode` returns.
        part_s: least length of a part, in seconds. The last part may be shorter.
        max_duration_s: longest recording that is decoded, in seconds.

    Raises:
        AudioEmpty, AudioNotFinite, AudioTooLong: as `decode` does, but perhaps after some parts.
        AudioUndecodable: as `decode` does, or the number of channels differs from `channels`.
    """
    losses, downmix = _Losses(), Downmix()
    frames = _frames(source, max_duration_s, losses)
    pending: list[Samples] = []
    count = 0
    for frame in downmix.mix(frames) if channels == 1 else frames:
        if count >= part_s * SAMPLE_RATE:
            yield AudioPart(_split_channels(pending), (*losses.warnings(), *_phase_warnings(downmix)))
            pending, count = [], 0
        if frame.shape[1] != channels:
            raise AudioUndecodable(f"the recording has {frame.shape[1]} channels where it should have {channels}")
        pending.append(frame)
        count += len(frame)
    yield AudioPart(_split_channels(pending), (*losses.warnings(), *_phase_warnings(downmix)))


def join_parts(parts: Iterable[AudioPart]) -> DecodedAudio:
    """Returns the first channel of all parts of a recording, of which there is at least one."""
    known = list(parts)
    return DecodedAudio(np.concatenate([part.channels[0] for part in known]), known[-1].warnings)


def encode(samples: Samples) -> bytes:
    """Returns 16 kHz mono audio, shape [samples], as a FLAC file with 16 bits per sample."""
    file = io.BytesIO()
    # PyAV does not annotate what streams encode.
    with closing(cast("Any", av.open(file, "w", format="flac"))) as container:
        stream = container.add_stream("flac", rate=SAMPLE_RATE)
        stream.layout, stream.format = "mono", "s16"
        whole = np.clip(np.round(samples * 32768), -32768, 32767).astype(np.int16)[None]
        for start in range(0, whole.shape[1], _FLAC_BLOCK):
            frame = av.AudioFrame.from_ndarray(whole[:, start : start + _FLAC_BLOCK], format="s16", layout="mono")
            frame.sample_rate, frame.pts = SAMPLE_RATE, start
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return file.getvalue()


@dataclass
class _Losses:
    """Counts the seconds of a recording that cannot be decoded."""

    spans: list[tuple[float, float]] = field(default_factory=list[tuple[float, float]])

    @property
    def total_s(self) -> float:
        return sum(duration_s for _, duration_s in self.spans)

    def warnings(self) -> tuple[AnalysisWarning, ...]:
        if not self.spans:
            return ()
        total_s, first_s = max(0.1, self.total_s), self.spans[0][0]
        message = f"{total_s:.1f} s of the recording are damaged and were skipped, the first at {first_s:.1f} s"
        return (AnalysisWarning(WarningCode.audio_skipped, message),)


def _phase_warnings(downmix: Downmix) -> tuple[AnalysisWarning, ...]:
    if not downmix.cancelled:
        return ()
    seconds = max(0.1, downmix.cancelled / SAMPLE_RATE)
    message = f"the channels cancel each other in {seconds:.1f} s of the recording, where only the loudest was used"
    return (AnalysisWarning(WarningCode.opposite_phase, message),)


def _frames(source: Source, max_duration_s: float | None, losses: _Losses) -> Iterator[Samples]:
    """Yields the recording at 16 kHz in frames of shape [samples, channels]: at least one, and none of them empty."""
    count = 0
    with _open(source) as container:
        stated_s = _stated_duration_s(container)
        for frame in _resampled(container, losses):
            if not np.isfinite(frame).all():
                bad = count + int(np.flatnonzero(~np.isfinite(frame).all(axis=1))[0])
                raise AudioNotFinite(f"the sample at {bad / SAMPLE_RATE:.3f} s is not a finite number")
            count += len(frame)
            if max_duration_s is not None and count > max_duration_s * SAMPLE_RATE:
                raise AudioTooLong(f"the recording is longer than the {max_duration_s:g} s allowed")
            yield frame
    if count < SAMPLE_RATE * losses.total_s / 9:
        raise AudioUndecodable("hardly any of the recording can be decoded")
    if count + SAMPLE_RATE * losses.total_s < SAMPLE_RATE * (0.99 * stated_s - 0.1):
        raise AudioUndecodable(
            f"the recording is cut off: it has {count / SAMPLE_RATE:.1f} of the {stated_s:.1f} s that its header states"
        )
    if count == 0:
        raise AudioEmpty("the recording holds no samples")


def _decoded(container: InputContainer, losses: _Losses) -> Iterator[AudioFrame | None]:
    """Yields the frames of the first audio stream, then None. Packets that cannot be decoded are skipped."""
    stream = container.streams.audio[0]
    end_s = 0.0
    for packet in container.demux(stream):
        duration_s = float((packet.duration or 0) * packet.time_base)
        try:
            yield from packet.decode()
        except av.error.InvalidDataError:
            losses.spans.append((end_s, duration_s))
        end_s += duration_s
    yield None


def _resampled(container: InputContainer, losses: _Losses) -> Iterator[Samples]:
    # The channels are kept, because FFmpeg's own downmix makes two equal channels 3 dB louder than one. They are
    # interleaved, because PyAV miscounts the planes of eight and more channels.
    resampler = av.AudioResampler(format="flt", rate=SAMPLE_RATE)
    try:
        for frame in _decoded(container, losses):
            if frame is not None:
                _check_work(frame.sample_rate, frame.layout.nb_channels)
            for resampled in resampler.resample(frame):
                if resampled.samples:
                    interleaved = resampled.to_ndarray().astype(np.float32, copy=False)
                    yield interleaved.reshape(-1, resampled.layout.nb_channels)
    except (av.error.FFmpegError, ValueError) as error:
        raise AudioUndecodable(f"the recording is damaged: {_reason(error)}") from error


def _split_channels(frames: Sequence[Samples]) -> list[Samples]:
    """Returns each channel, shape [samples], of frames of shape [samples, channels]."""
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


def _stated_duration_s(container: InputContainer) -> float:
    """Returns the duration that the header states, in seconds, or 0 if it states none."""
    stream = container.streams.audio[0]
    if container.format.name in ESTIMATING_FORMATS:
        return 0.0
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    alone = len(container.streams) == 1  # a video may be longer than its audio
    return container.duration / av.time_base if alone and container.duration else 0.0


@contextmanager
def _open(source: Source) -> Generator[InputContainer]:
    """Open a recording for demuxing and decoding.

    Raises:
        AudioEmpty: no bytes.
        AudioUndecodable: the file is not a recording of an allowed kind, or is truncated.
    """
    with open_source(source) as file:
        _check_bytes(file)
        try:
            # Always a file object, because FFmpeg would take a path with a colon for a URL.
            container = av.open(file, mode="r", metadata_errors="ignore", options=_OPTIONS)
        except (av.error.FFmpegError, ValueError) as error:
            raise AudioUndecodable(f"this is not a recording that FFmpeg can read: {_reason(error)}") from error
        with container:
            _check_stream(container)
            yield container


def _check_stream(container: InputContainer) -> None:
    """Raises AudioUndecodable if there is no audio stream, or its codec is not allowed."""
    if not container.streams.audio:
        raise AudioUndecodable("the file has no audio stream")
    codec = container.streams.audio[0].codec_context
    # PyAV has no codec context for a codec that FFmpeg cannot decode.
    if codec is None:  # pyright: ignore[reportUnnecessaryComparison]
        raise AudioUndecodable("FFmpeg cannot decode this kind of audio")
    # The whitelist in FFmpeg's options applies to the decoders that FFmpeg opens, not to those that PyAV opens.
    if codec.codec.name not in CODECS:
        raise AudioUndecodable(f"the audio codec {codec.codec.name} is not supported")
    if codec.channels < 1:
        raise AudioUndecodable("FFmpeg cannot decode this kind of audio")
    _check_work(codec.sample_rate, codec.channels)


def _check_work(rate: int, channels: int) -> None:
    """Raises AudioUndecodable if the sample rate is out of range, or there are too many samples per second."""
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
    """Check for what FFmpeg does not detect: a file without bytes, and a truncated WAV or Ogg file.

    Raises:
        AudioEmpty: the file has no bytes.
        AudioUndecodable: the file is truncated.
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
    (stated_bytes,) = struct.unpack_from("<I", head, 4)
    return stated_bytes < UNKNOWN_WAV_BYTES and size < 0.99 * stated_bytes


def _is_cut_ogg(tail: bytes) -> bool:
    """Whether the last page is incomplete (RFC 3533, section 6)."""
    page = tail[tail.rfind(b"OggS") :]
    if len(page) < 27 or len(page) < 27 + page[26]:
        return True
    lacing = page[27 : 27 + page[26]]
    return len(page) < 27 + len(lacing) + sum(lacing)


@contextmanager
def open_source(source: Source) -> Generator[IO[bytes]]:
    """Context manager that opens a path, or rewinds a file object before and after the block.

    Raises:
        AudioUndecodable: the path cannot be opened.
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
