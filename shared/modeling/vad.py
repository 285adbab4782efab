"""Voice activity detection: where in a recording somebody speaks.

The detector is Silero VAD, in the version that faster-whisper ships.
"""

# The annotations of faster-whisper are incomplete.
# pyright: reportMissingTypeStubs=false, reportUnknownVariableType=false

import os

import numpy as np
from faster_whisper.vad import VadOptions, get_speech_timestamps

from shared.audio.decoder import SAMPLE_RATE, Samples
from shared.audio.levels import amplify_quiet

# The detector imports ONNX Runtime on first use, which sends usage statistics to Microsoft unless this is set.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

TimeSpan = tuple[float, float]
"""Start and end, in seconds."""

MIN_PAUSE_S = 0.2
"""A shorter silence does not end a span of speech."""
MIN_SPEECH_S = 0.1


def detect_speech(samples: Samples) -> list[TimeSpan]:
    """Returns the spans in which somebody speaks, in order, without padding, at least 0.2 s apart.

    Args:
        samples: 16 kHz mono audio, shape [samples].
    """
    if samples.size < MIN_SPEECH_S * SAMPLE_RATE:
        return []
    options = VadOptions(
        min_speech_duration_ms=int(MIN_SPEECH_S * 1000),
        min_silence_duration_ms=int(MIN_PAUSE_S * 1000),
        speech_pad_ms=0,
    )
    found = get_speech_timestamps(amplify_quiet(remove_dc_offset(samples)), options)
    return [(span["start"] / SAMPLE_RATE, span["end"] / SAMPLE_RATE) for span in found]


def remove_dc_offset(samples: Samples) -> Samples:
    """Returns the samples with mean 0: a constant offset would mask the quiet bands of a spectrogram."""
    return samples - samples.mean(dtype=np.float64).astype(np.float32) if samples.size else samples


def duration_s(span: TimeSpan) -> float:
    """Returns the length of a span, in seconds."""
    return span[1] - span[0]
