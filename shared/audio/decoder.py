"""Decoding of audio files with FFmpeg to 16 kHz mono float32.

A truncated file is refused if the file itself shows that it is truncated: if it is shorter than its header states, or
an Ogg file ends within a page. MP3, bare AAC and AMR do not state their length, and neither does a live stream: they
are decoded as far as they go. A damaged file is decoded without its damaged parts.

The functions of this module decode in the calling process. A malicious file can crash it or exhaust its memory, so use
them for trusted files only. `shared.audio.sandbox` has the same functions for files that clients send.
"""

import io
import math
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import IO, Any, cast

import av
import numpy as np
from av.audio.stream import AudioStream
from av.container import InputContainer

from shared.audio.blocks import equal_blocks
from shared.audio.containers import FileLayout, read_layout
from shared.audio.downmix import Downmix
from shared.audio.tracks import (
    ESTIMATING_FORMATS,
    JITTER_S,
    MP4,
    SAMPLE_RATE,
    Places,
    Samples,
    Track,
    open_container,
    packets,
    usable_tracks,
)
from shared.domain.warning import AnalysisWarning, WarningCode
from shared.errors import AudioEmpty, AudioNotFinite, AudioTooLong, AudioUndecodable

__all__ = [
    "SAMPLE_RATE",
    "AudioInfo",
    "AudioPart",
    "DecodedAudio",
    "Samples",
    "Source",
    "decode",
    "decode_parts",
    "encode",
    "join_parts",
    "open_source",
    "probe",
]

Source = Path | IO[bytes]

_FLAC_BLOCK = 4096
_LEAST_DECODED = 0.1
"""A damaged recording is refused if less than this share of it can be decoded."""


@dataclass(frozen=True)
class AudioInfo:
    """What a recording states without being decoded.

    Attributes:
        duration_s: None if the recording does not state it.
        channels: the number of channels of all its audio tracks together.
    """

    duration_s: float | None
    channels: int


@dataclass(frozen=True)
class DecodedAudio:
    """A decoded recording.

    Attributes:
        samples: 16 kHz mono, shape [samples].
        start_s: the first time stamp of the recording, in seconds. It is 0 for most recordings.
        warnings: what was lost or changed in decoding.
    """

    samples: Samples
    start_s: float = 0.0
    warnings: tuple[AnalysisWarning, ...] = ()


@dataclass(frozen=True)
class AudioPart:
    """A part of a long recording, which begins where the part before ended.

    Attributes:
        channels: 16 kHz samples of each channel, shape [samples].
        start_s: the first time stamp of the recording, in seconds; the same for all parts.
        warnings: what was lost or changed in decoding, up to the end of the part; the last part has all warnings.
    """

    channels: list[Samples]
    start_s: float = 0.0
    warnings: tuple[AnalysisWarning, ...] = ()


def probe(source: Source, max_duration_s: float | None = None) -> AudioInfo:
    """Returns a recording's duration and channels, without decoding it.

    The duration is that of the header. If the header states none, or a wrong one, it is the sum of the packets'
    durations.

    Raises:
        AudioEmpty: the recording has no bytes.
        AudioUndecodable: the file is not a recording, is truncated, or has no audio track.
        AudioTooLong: the packets are longer than `max_duration_s` seconds. A duration from the header is returned, even
            if it is longer.
    """
    with open_source(source) as file:
        layout = read_layout(file)
        durations_s: list[float | None] = []
        channels = 0
        for link in layout.links:
            with open_container(link, layout) as container:
                tracks = usable_tracks(container)
                channels = channels or sum(track.codec_context.channels for track in tracks)
                durations_s.append(_duration_s(container, tracks[0], layout, max_duration_s))
        known_s = [duration_s for duration_s in durations_s if duration_s is not None]
        return AudioInfo(sum(known_s) if known_s else None, channels)


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

    The channels of several audio tracks are those of the first track, then those of the second, and so on. Where the
    time stamps leave a gap, for example because packets were lost, the samples are zero.

    Args:
        source: the recording.
        channels: the number of channels that it has, or 1 for the mix of its channels that `decode` returns.
        part_s: least length of a part, in seconds. The last part may be shorter.
        max_duration_s: longest recording that is decoded, in seconds.

    Raises:
        AudioEmpty, AudioNotFinite, AudioTooLong: as `decode` does, but perhaps after some parts.
        AudioUndecodable: as `decode` does, or the number of channels differs from `channels`.
    """
    with open_source(source) as file, _open_tracks(layout := read_layout(file)) as tracks:
        count = sum(track.channels for track in tracks)
        if channels not in (1, count):
            raise AudioUndecodable(f"the recording has {count} channels where it should have {channels}")
        downmix = Downmix() if channels == 1 else None
        frames = _frames(tracks, layout.is_whole, max_duration_s)
        pending: list[Samples] = []
        size = 0
        for frame in downmix.mix(frames) if downmix else frames:
            if size >= part_s * SAMPLE_RATE:
                yield _part(pending, tracks, downmix)
                pending, size = [], 0
            pending.append(frame)
            size += len(frame)
        yield _part(pending, tracks, downmix)


def join_parts(parts: Iterable[AudioPart]) -> DecodedAudio:
    """Returns the first channel of all parts of a recording, of which there is at least one."""
    known = list(parts)
    return DecodedAudio(np.concatenate([part.channels[0] for part in known]), known[-1].start_s, known[-1].warnings)


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


def _duration_s(
    container: InputContainer, track: AudioStream, layout: FileLayout, max_duration_s: float | None
) -> float | None:
    if layout.states_duration and container.format.name not in ESTIMATING_FORMATS and container.duration:
        return (container.duration - _late_start(container)) / av.time_base
    if not track.time_base:
        return None
    longest = math.inf if max_duration_s is None else max_duration_s / track.time_base
    ticks = 0
    for packet in packets(container, track):
        ticks += packet.duration or 0
        if max_duration_s is not None and ticks > longest:
            raise _too_long(max_duration_s)
    return float(ticks * track.time_base) or None


def _late_start(container: InputContainer) -> int:
    """Returns by how much the end that a header states exceeds the duration, in FFmpeg's unit of time."""
    start = container.start_time or 0
    return start if container.format.name != MP4 and start > JITTER_S * av.time_base else 0


@contextmanager
def _open_tracks(layout: FileLayout) -> Generator[list[Track]]:
    """Context manager that gives the tracks of a recording. The first gets the open container: opening takes time."""
    with open_container(layout.links[0], layout) as container:
        first, *others = usable_tracks(container)
        tracks = [Track(layout, first.index, first.codec_context.channels, container)]
        yield tracks + [Track(layout, track.index, track.codec_context.channels) for track in others]


def _frames(tracks: Sequence[Track], is_whole: bool, max_duration_s: float | None) -> Iterator[Samples]:
    """Yields the recording at 16 kHz in frames of shape [samples, channels]: at least one, and none of them empty."""
    size = 0
    for frame in tracks[0].blocks() if len(tracks) == 1 else _side_by_side(tracks):
        if not np.isfinite(frame).all():
            bad = size + int(np.flatnonzero(~np.isfinite(frame).all(axis=1))[0])
            raise AudioNotFinite(f"the sample at {bad / SAMPLE_RATE:.3f} s is not a finite number")
        size += len(frame)
        if max_duration_s is not None and size > max_duration_s * SAMPLE_RATE:
            raise _too_long(max_duration_s)
        yield frame
    _check_end(tracks, is_whole)
    if size == 0:
        raise AudioEmpty("the recording holds no samples")


def _side_by_side(tracks: Sequence[Track]) -> Iterator[Samples]:
    """Yields the channels of all tracks in blocks of a second, each track from its first time stamp on."""
    blocks = [track.blocks() for track in tracks]
    first = [next(of_track, None) for of_track in blocks]
    start_s = _start_s(tracks)
    aligned: list[Iterator[Samples]] = []
    for track, block, rest in zip(tracks, first, blocks, strict=True):
        late = round(((track.start_s or 0.0) - start_s) * SAMPLE_RATE) if block is not None else 0
        late_start = np.zeros((late, track.channels), np.float32)
        aligned.append(equal_blocks(_chain(late_start, block, rest), SAMPLE_RATE))
    for group in zip_longest(*aligned):
        size = max(len(block) for block in group if block is not None)
        yield np.concatenate(
            [_padded(block, size, track.channels) for block, track in zip(group, tracks, strict=True)], axis=1
        )


def _chain(late: Samples, first: Samples | None, rest: Iterator[Samples]) -> Iterator[Samples]:
    yield from (block for block in (late, first) if block is not None and len(block))
    yield from rest


def _padded(block: Samples | None, size: int, channels: int) -> Samples:
    block = np.zeros((0, channels), np.float32) if block is None else block
    return np.pad(block, ((0, size - len(block)), (0, 0)))


def _start_s(tracks: Sequence[Track]) -> float:
    return min((track.start_s for track in tracks if track.start_s is not None), default=0.0)


def _check_end(tracks: Sequence[Track], is_whole: bool) -> None:
    """Raises AudioUndecodable if the recording is truncated, or hardly any of it can be decoded.

    If the file is whole, what is missing at the end counts as damaged.
    """
    longest = max(tracks, key=lambda track: track.reached_s)
    if all(track.is_short for track in tracks):
        if not is_whole:
            has = f"it has {longest.reached_s:.1f} s of the {longest.stated_s:.1f} s in its header"
            raise AudioUndecodable(f"the recording is cut off: {has}")
        longest.skipped.add(longest.reached_s, longest.stated_s - longest.reached_s)
    decoded_s = sum(track.decoded_s for track in tracks)
    whole_s = decoded_s + sum(track.skipped.total_s for track in tracks)
    if decoded_s < _LEAST_DECODED * whole_s:
        raise AudioUndecodable(f"the recording is damaged: only {decoded_s:.1f} of {whole_s:.1f} s can be decoded")


def _part(frames: Sequence[Samples], tracks: Sequence[Track], downmix: Downmix | None) -> AudioPart:
    """Returns frames of shape [samples, channels] as a part of a recording."""
    channels = list(np.ascontiguousarray(np.concatenate(frames).T))
    mix_warnings = () if downmix is None else tuple(_mix_warnings(tracks, downmix))
    return AudioPart(channels, _start_s(tracks), (*_warnings(tracks), *mix_warnings))


def _mix_warnings(tracks: Sequence[Track], downmix: Downmix) -> Iterator[AnalysisWarning]:
    if len(tracks) > 1:
        yield AnalysisWarning(WarningCode.tracks_mixed, f"the file has {len(tracks)} audio tracks, which were mixed")
    if downmix.cancelled:
        seconds = max(0.1, downmix.cancelled / SAMPLE_RATE)
        message = f"the channels cancel each other in {seconds:.1f} s of the recording, where only the loudest was used"
        yield AnalysisWarning(WarningCode.opposite_phase, message)


def _warnings(tracks: Sequence[Track]) -> Iterator[AnalysisWarning]:
    for code, places, what in (
        (WarningCode.audio_skipped, [track.skipped for track in tracks], "are damaged and were skipped"),
        (WarningCode.audio_gaps, [track.gaps for track in tracks], "are missing and count as silence"),
    ):
        if message := _describe(places, what):
            yield AnalysisWarning(code, message)


def _describe(places: Sequence[Places], what: str) -> str | None:
    """Returns a sentence about places of a recording; None if there are none."""
    first_s = min((place.first_s for place in places if place.first_s is not None), default=None)
    if first_s is None:
        return None
    total_s = max(0.1, sum(place.total_s for place in places))
    return f"{total_s:.1f} s of the recording {what}, the first at {first_s:.1f} s"


def _too_long(max_duration_s: float) -> AudioTooLong:
    return AudioTooLong(f"the recording is longer than the {max_duration_s:g} s allowed")


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
            reason = error.strerror or type(error).__name__
            raise AudioUndecodable(f"the file cannot be opened: {reason}") from error
        with file:
            yield file
    else:
        source.seek(0)
        yield source
        source.seek(0)
