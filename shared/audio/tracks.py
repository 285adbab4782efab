"""Decodes the audio tracks of a file with FFmpeg to 16 kHz, and places their frames by their time stamps."""

from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import NamedTuple

import av
import av.error
import numpy as np
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.packet import Packet
from numpy.typing import NDArray

from shared.audio.containers import FileLayout, FileSpan, describe_refused
from shared.errors import AudioUndecodable

SAMPLE_RATE = 16_000

Samples = NDArray[np.float32]
"""16 kHz audio, nominally in [-1, 1]: mono of shape [samples], or of shape [samples, channels] where stated."""

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
MP4 = "mov,mp4,m4a,3gp,3g2,mj2"
MIN_RATE = 4_000
"""Hz. Telephony has 8,000; resampling a small file at 1 Hz would give hours of audio."""
MAX_RATE = 384_000
"""Hz, the highest rate of recording equipment."""
MAX_SAMPLES_PER_SECOND = 192_000 * 8
"""Highest sample rate times channels. With the maximum duration, it limits the work that one file can cause."""

MAX_TRACKS = 32
JITTER_S = 0.1
"""A time stamp that is off by less is taken for rounding, as by FFmpeg's resampler (its option `min_hard_comp`)."""
MAX_GAP_S = 3600.0
"""A jump of the time stamps by more is no pause: they are wrong, or another clock began to count."""
MAX_START_S = 24 * 3600.0
"""A first time stamp beyond this is no place within a recording, but the time of day."""
_SILENCE_BLOCK = 10 * SAMPLE_RATE


@contextmanager
def open_container(span: FileSpan, layout: FileLayout) -> Generator[InputContainer]:
    """Context manager that opens a recording for demuxing and decoding.

    Raises:
        AudioUndecodable: the file is not a recording of an allowed kind.
    """
    try:
        # Always a file object, because FFmpeg would take a path with a colon for a URL.
        container = av.open(span.again(), mode="r", metadata_errors="ignore", options=_OPTIONS | layout.options)
    except MemoryError:
        raise
    except (av.error.FFmpegError, ValueError, OSError) as error:
        refused = describe_refused(layout)
        kind = f"{refused}, which is not supported" if refused else "not a recording of a supported kind"
        raise AudioUndecodable(f"the file is {kind}: send WAV, FLAC, MP3, Ogg, M4A or WebM") from error
    with container:
        yield container


def usable_tracks(container: InputContainer) -> list[AudioStream]:
    """Returns the audio tracks that can be decoded, of which there is at least one.

    Raises:
        AudioUndecodable: there is none, or there are more tracks or samples per second than are allowed.
    """
    tracks = container.streams.audio
    refusals = [_refusal(track) for track in tracks]
    usable = [track for track, refusal in zip(tracks, refusals, strict=True) if refusal is None]
    if not usable:
        raise AudioUndecodable(next(filter(None, refusals), "the file has no audio track"))
    if len(usable) > MAX_TRACKS:
        raise AudioUndecodable(f"the file has {len(usable)} audio tracks; {MAX_TRACKS} are allowed")
    _check_work([(track.codec_context.channels, track.codec_context.sample_rate) for track in usable])
    return usable


def packets(container: InputContainer, track: AudioStream) -> "Iterator[Packet[AudioStream]]":
    """Yields the packets of a track. After damaged data it goes on, as long as more packets follow."""
    progress = True
    while progress:
        progress = False
        try:
            for packet in container.demux(track):
                progress = True
                yield packet
            return
        except MemoryError:
            raise
        except (av.error.FFmpegError, ValueError, OSError):
            continue


def stated_duration_s(container: InputContainer, track: AudioStream) -> float:
    """Returns the time at which a track ends by its header, in seconds, or 0 if the header does not tell."""
    if container.format.name in ESTIMATING_FORMATS:
        return 0.0
    if track.duration and track.time_base:
        # Only MP4 counts from the start of the track.
        start = track.start_time or 0 if container.format.name == MP4 else 0
        return float((start + track.duration) * track.time_base)
    # A video may be longer than its audio.
    is_audio = len(container.streams) == len(container.streams.audio)
    return container.duration / av.time_base if is_audio and container.duration else 0.0


@dataclass
class Places:
    """How many seconds of a recording have something in common, and where the first of them are."""

    total_s: float = 0.0
    first_s: float | None = None

    def add(self, start_s: float, duration_s: float) -> None:
        self.total_s += duration_s
        self.first_s = start_s if self.first_s is None else self.first_s


class Track:
    """One audio track of a recording. It is decoded once, by `blocks`.

    Args:
        layout: how the recording lies in its file.
        index: the number of the track's stream.
        channels: the number of its channels.
        container: the first link, if it is open already and not read by another track.

    Attributes:
        channels: the number of its channels.
        start_s: its first time stamp, once the first block was read; 0 for most recordings.
        decoded_s: how many seconds were decoded.
        skipped: what could not be decoded.
        gaps: what the track leaves out, by its time stamps.
        reached_s: the time stamp at which it ended.
        stated_s: the time stamp at which it ends by the header; 0 if the header does not tell.
    """

    def __init__(self, layout: FileLayout, index: int, channels: int, container: InputContainer | None = None) -> None:
        self._layout = layout
        self._container = container
        self._index = index
        self.channels = channels
        self.start_s: float | None = None
        self.decoded_s = 0.0
        self.skipped = Places()
        self.gaps = Places()
        self.reached_s, self.stated_s = 0.0, 0.0
        self._end_s = 0.0
        self._shift_s: float | None = None
        self._resampler = _Resampler(channels)

    @property
    def is_short(self) -> bool:
        """Whether it ended before the time that the header states."""
        return self.reached_s < 0.99 * self.stated_s - 0.1

    def blocks(self) -> Iterator[Samples]:
        """Yields the track at 16 kHz in blocks of shape [samples, channels], with silence in its gaps.

        Raises:
            AudioUndecodable: the sample rate or the number of samples per second is not allowed.
        """
        for number, link in enumerate(self._layout.links):
            self._shift_s, self.reached_s = None, 0.0
            opened = self._container if number == 0 else None
            with nullcontext(opened) if opened else open_container(link, self._layout) as container:
                track = container.streams[self._index]
                if isinstance(track, AudioStream):
                    yield from self._link(container, track)
        yield from self._resampler.flush()

    def _link(self, container: InputContainer, track: AudioStream) -> Iterator[Samples]:
        for decoded, following in pairwise(chain(_decode(container, track), [_Decoded(None, 0.0)])):
            if decoded.frame is not None:
                yield from self._place(decoded.frame, following.frame, decoded.lost_s)
            elif decoded.lost_s:
                self.skipped.add(self._end_s, decoded.lost_s)
                self._end_s += decoded.lost_s
        self._reach()
        self.stated_s = stated_duration_s(container, track) if self._layout.states_duration else 0.0

    def _reach(self) -> None:
        self.reached_s = max(self.reached_s, self._end_s - (self._shift_s or 0.0))

    def _place(self, frame: AudioFrame, following: AudioFrame | None, lost_s: float) -> Iterator[Samples]:
        silence_s = self._silence_before(frame, following)
        if lost_s:
            self.skipped.add(self._end_s, max(lost_s, silence_s))
        elif silence_s:
            self.gaps.add(self._end_s, silence_s)
        if silence_s:
            yield from self._resampler.flush()
            yield from self._resampler.silence(silence_s)
        self._end_s += silence_s + _duration_s(frame)
        self.decoded_s += _duration_s(frame)
        yield from self._resampler.resample(frame)

    def _silence_before(self, frame: AudioFrame, following: AudioFrame | None) -> float:
        """Returns the seconds that are missing before a frame, by its time stamp."""
        time_s = frame.time
        if self.start_s is None:
            self.start_s = self._end_s = time_s if time_s and JITTER_S < time_s <= MAX_START_S else 0.0
        if time_s is None:
            return 0.0
        if self._shift_s is None:
            self._shift_s = self._end_s - time_s
        jump_s = time_s + self._shift_s - self._end_s
        if abs(jump_s) <= JITTER_S or _is_outlier(frame, following, jump_s):
            return 0.0
        if 0 < jump_s <= MAX_GAP_S:
            return jump_s
        self._reach()
        self._shift_s -= jump_s  # another clock counts from here on
        return 0.0


class _Decoded(NamedTuple):
    """A frame, and how many seconds before it could not be decoded. After the last frame comes None."""

    frame: AudioFrame | None
    lost_s: float


def _decode(container: InputContainer, track: AudioStream) -> Iterator[_Decoded]:
    lost_s = 0.0
    for packet in packets(container, track):
        try:
            frames = packet.decode()
        except MemoryError:
            raise
        except av.error.FFmpegError:
            if packet.size > 1:  # a single byte is padding
                lost_s += float((packet.duration or 0) * packet.time_base)
            continue
        for frame in frames:
            yield _Decoded(frame, lost_s)
            lost_s = 0.0
    yield _Decoded(None, lost_s)


def _is_outlier(frame: AudioFrame, following: AudioFrame | None, jump_s: float) -> bool:
    """Whether the next frame continues where this one would be without its jump."""
    time_s, next_s = frame.time, None if following is None else following.time
    if time_s is None or next_s is None:
        return False
    return abs(time_s - jump_s + _duration_s(frame) - next_s) <= JITTER_S


class _Resampler:
    """Resamples frames, whose rate and layout may change, to 16 kHz blocks of shape [samples, channels].

    The channels are kept, because FFmpeg's own downmix makes two equal channels 3 dB louder than one.
    """

    def __init__(self, channels: int) -> None:
        self._channels = channels
        self._resampler: av.AudioResampler | None = None
        self._input: tuple[object, ...] = ()

    def resample(self, frame: AudioFrame) -> Iterator[Samples]:
        of_frame = (frame.format.name, frame.layout.name, frame.sample_rate)
        if of_frame != self._input:
            _check_work([(frame.layout.nb_channels, frame.sample_rate)])
            yield from self.flush()
            self._input = of_frame
        if self._resampler is None:
            # Interleaved, because PyAV miscounts the planes of eight and more channels.
            self._resampler = av.AudioResampler(format="flt", rate=SAMPLE_RATE)
        frame.pts = None  # the frames are placed already
        yield from self._blocks(self._resampler.resample(frame))

    def flush(self) -> Iterator[Samples]:
        if self._resampler is not None:
            yield from self._blocks(self._resampler.resample(None))
        self._resampler = None

    def silence(self, seconds: float) -> Iterator[Samples]:
        size = round(seconds * SAMPLE_RATE)
        for start in range(0, size, _SILENCE_BLOCK):
            yield np.zeros((min(_SILENCE_BLOCK, size - start), self._channels), np.float32)

    def _blocks(self, frames: Iterable[AudioFrame]) -> Iterator[Samples]:
        for frame in frames:
            if frame.samples:
                samples = frame.to_ndarray().astype(np.float32, copy=False).reshape(-1, frame.layout.nb_channels)
                yield samples if samples.shape[1] == self._channels else _with_channels(samples, self._channels)


def _with_channels(samples: Samples, channels: int) -> Samples:
    """Returns the mean of the channels on each of `channels` channels."""
    return np.repeat(samples.mean(axis=1, keepdims=True), channels, axis=1)


def _duration_s(frame: AudioFrame) -> float:
    return frame.samples / frame.sample_rate


def _refusal(track: AudioStream) -> str | None:
    """Returns why a track cannot be decoded; None if it can."""
    codec = track.codec_context
    # PyAV has no codec context for a codec that FFmpeg cannot decode.
    if codec is None:  # pyright: ignore[reportUnnecessaryComparison]
        return "the audio codec of the file is not supported"
    # The whitelist in FFmpeg's options applies to the decoders that FFmpeg opens, not to those that PyAV opens.
    if codec.codec.name not in CODECS:
        return f"the audio codec {codec.codec.name} is not supported"
    return "the audio track has no channels" if codec.channels < 1 else None


def _check_work(tracks: Sequence[tuple[int, int]]) -> None:
    """Raises AudioUndecodable if decoding would take too much work.

    Args:
        tracks: the number of channels and the sample rate of each track.
    """
    for _, rate in tracks:
        if not MIN_RATE <= rate <= MAX_RATE:
            raise AudioUndecodable(f"the sample rate is {rate} Hz; it must be {MIN_RATE} to {MAX_RATE}")
    work = sum(channels * rate for channels, rate in tracks)
    if work > MAX_SAMPLES_PER_SECOND:
        channels, rate = sum(channels for channels, _ in tracks), max(rate for _, rate in tracks)
        raise AudioUndecodable(
            f"the recording has {work} samples per second ({channels} channels at {rate} Hz); "
            f"{MAX_SAMPLES_PER_SECOND} are allowed"
        )
