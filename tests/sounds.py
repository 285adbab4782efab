"""Synthesised sound for the tests."""

import io
import wave

import av
import numpy as np
from numpy.typing import NDArray

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


def wav(samples: NDArray[np.float32] | None = None, rate: int = RATE) -> bytes:
    """A 16-bit PCM WAV file: one second of a tone, or the samples given."""
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(1)
        writer.setsampwidth(2)
        writer.setframerate(rate)
        pcm = (np.clip(tone(rate=rate) if samples is None else samples, -1, 1) * 32767).astype("<i2")
        writer.writeframes(pcm.tobytes())
    return file.getvalue()


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
