"""Synthetic speech of espeak-ng, with the times of its words: clips whose words are known and which need no download.

The package `espeakng-loader` contains the library and its voices. The library has one state for the whole process, so
that only one thread may use it at a time.
"""

# espeakng-loader has no annotations.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownArgumentType=false

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import espeakng_loader
import numpy as np

from shared.audio.decoder import SAMPLE_RATE, Samples

_SYNCHRONOUS = 2
"""The output mode in which espeak-ng hands the samples to a callback, before `espeak_Synth` returns."""
_UTF8 = 1
_WORD_EVENT = 1
_RATE = 1


class _Event(ctypes.Structure):
    """`espeak_EVENT` of espeak-ng's speak_lib.h."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", ctypes.c_char * 8),
    )


_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))


@dataclass(frozen=True, eq=False)
class SyntheticSpeech:
    """A spoken text.

    Attributes:
        samples: 16 kHz mono, shape [samples].
        word_starts: where each word starts, in seconds.
    """

    samples: Samples
    word_starts: Sequence[float]


def synthesize(text: str, voice: str = "en-us", words_per_minute: int = 150) -> SyntheticSpeech:
    """Returns the text as one of espeak-ng's voices speaks it.

    Args:
        text: the words that the voice says.
        voice: a language, such as `de`, and a variant, such as `de+f3`.
        words_per_minute: how fast.

    Raises:
        ValueError: there is no such voice.
    """
    library, rate = _library()
    parts: list[bytes] = []
    starts: list[float] = []

    def receive(samples: Any, count: int, events: Any) -> int:  # noqa: ANN401
        place = 0
        while events[place].type:
            if events[place].type == _WORD_EVENT:
                starts.append(events[place].audio_position / 1000)
            place += 1
        if samples and count:
            parts.append(ctypes.string_at(samples, 2 * count))
        return 0

    callback = _Callback(receive)
    library.espeak_SetSynthCallback(callback)
    if library.espeak_SetVoiceByName(voice.encode()):
        raise ValueError(f"espeak-ng has no voice {voice!r}")
    library.espeak_SetParameter(_RATE, words_per_minute, 0)
    encoded = text.encode()
    library.espeak_Synth(encoded, len(encoded) + 1, 0, 1, 0, _UTF8, None, None)
    spoken = np.frombuffer(b"".join(parts), "<i2").astype(np.float32) / np.float32(32768)
    return SyntheticSpeech(_resampled(spoken, rate), starts)


@cache
def _library() -> tuple[ctypes.CDLL, int]:
    library = ctypes.CDLL(espeakng_loader.get_library_path())
    rate = library.espeak_Initialize(_SYNCHRONOUS, 0, espeakng_loader.get_data_path().encode(), 0)
    return library, rate


def _resampled(samples: Samples, rate: int) -> Samples:
    count = round(samples.size * SAMPLE_RATE / rate)
    spectrum = np.fft.rfft(samples)[: count // 2 + 1]
    return (np.fft.irfft(spectrum, count) * (count / samples.size)).astype(np.float32)
