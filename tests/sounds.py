"""Synthesised sound for the tests."""

import io
import wave

import numpy as np
from numpy.typing import NDArray

RATE = 16_000


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
