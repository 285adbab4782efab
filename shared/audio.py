"""Sound in: any container and codec that FFmpeg reads, out as 16 kHz mono float32."""

from dataclasses import dataclass
from pathlib import Path
from typing import IO

import av
import av.error
import numpy as np
from av.container import InputContainer
from numpy.typing import NDArray

from shared.errors import AudioEmpty, AudioNotFinite, AudioTooLong, AudioUndecodable

SAMPLE_RATE = 16_000

Samples = NDArray[np.float32]
"""Shape [samples], 16 kHz mono, nominally in [-1, 1]."""

Source = Path | IO[bytes]


@dataclass(frozen=True)
class AudioInfo:
    """What a recording's header says; `duration_s` is None where it says nothing."""

    duration_s: float | None
    channels: int


def probe(source: Source) -> AudioInfo:
    """Read the header only.

    Raises:
        AudioEmpty: no bytes.
        AudioUndecodable: not a recording, or one without an audio stream.
    """
    with _open(source) as container:
        stream = container.streams.audio[0]
        duration = container.duration / av.time_base if container.duration else None
        return AudioInfo(duration_s=duration, channels=stream.codec_context.channels)


def decode(source: Source, max_duration_s: float | None = None) -> Samples:
    """The whole recording as 16 kHz mono float32, its channels averaged.

    Memory stays bounded by `max_duration_s`: decoding stops as soon as it is passed.

    Raises:
        AudioEmpty: no bytes, or no samples.
        AudioUndecodable: not a recording, or damaged.
        AudioNotFinite: NaN or infinite samples.
        AudioTooLong: longer than `max_duration_s`.
    """
    chunks: list[Samples] = []
    count = 0
    with _open(source) as container:
        resampler = av.AudioResampler(format="fltp", layout="mono", rate=SAMPLE_RATE)
        try:
            for frame in container.decode(audio=0):
                for resampled in resampler.resample(frame):
                    chunks.append(resampled.to_ndarray()[0])
                    count += chunks[-1].size
                if max_duration_s is not None and count > max_duration_s * SAMPLE_RATE:
                    raise AudioTooLong(f"the recording is longer than the {max_duration_s:g} s allowed")
            chunks.extend(frame.to_ndarray()[0] for frame in resampler.resample(None))
        except (av.error.FFmpegError, ValueError) as error:
            raise AudioUndecodable(f"the recording is damaged: {error}") from error
    samples = np.concatenate(chunks) if chunks else np.empty(0, np.float32)
    return _checked(samples.astype(np.float32, copy=False))


def _checked(samples: Samples) -> Samples:
    if samples.size == 0:
        raise AudioEmpty("the recording holds no samples")
    if not np.isfinite(samples).all():
        bad = int(np.flatnonzero(~np.isfinite(samples))[0])
        raise AudioNotFinite(f"the sample at {bad / SAMPLE_RATE:.3f} s is not a finite number")
    return samples


def _open(source: Source) -> InputContainer:
    if _is_empty(source):
        raise AudioEmpty("the recording has zero bytes")
    try:
        container = av.open(str(source) if isinstance(source, Path) else source, mode="r", metadata_errors="ignore")
    except (av.error.FFmpegError, ValueError) as error:
        raise AudioUndecodable(f"this is not a recording that FFmpeg can read: {error}") from error
    if not container.streams.audio:
        container.close()
        raise AudioUndecodable("the file has no audio stream")
    return container


def _is_empty(source: Source) -> bool:
    if isinstance(source, Path):
        return source.stat().st_size == 0
    end = source.seek(0, 2)
    source.seek(0)
    return end == 0
