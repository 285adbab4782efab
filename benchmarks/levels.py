"""`tenor bench levels`: how far the analysis of quiet clips is that of the clips as they are."""

# jiwer and transformers are not fully typed.
# pyright: reportUnknownMemberType=false

from collections.abc import Generator, Iterable
from pathlib import Path

import jiwer
import numpy as np
from transformers.models.whisper.english_normalizer import BasicTextNormalizer

from benchmarks.figures import Figure
from shared.audio.decoder import Samples, decode
from shared.modeling.model_selection import load_pipeline
from shared.modeling.pipeline import Analysis
from shared.settings import Settings


def compare_levels(settings: Settings, files: Iterable[Path], peak_dbfs: float) -> Generator[Figure]:
    """Yield in how many clips a lower level changes the transcript and the emotion.

    The quiet clips have 16 bits. The words of the clip as it is are the reference of the word error rate.
    """
    pipeline, normalize = load_pipeline(settings), BasicTextNormalizer()
    words: list[tuple[str, str]] = []
    emotions: list[tuple[str | None, str | None]] = []
    for file in files:
        samples = decode(file).samples
        pair = [pipeline.analyze(samples=level, text=None) for level in (samples, attenuate(samples, peak_dbfs))]
        words.append((normalize(_text(pair[0])), normalize(_text(pair[1]))))
        emotions.append((pair[0].prediction.emotion, pair[1].prediction.emotion))
    spoken = [pair for pair in words if pair[0]]
    if spoken:
        yield Figure.of(
            "word error rate", "%", [100 * jiwer.wer([one for one, _ in spoken], [two for _, two in spoken])]
        )
    yield Figure.of("same words", "%", [_share_of_equal(words)])
    yield Figure.of("same emotion", "%", [_share_of_equal(emotions)])


def attenuate(samples: Samples, peak_dbfs: float) -> Samples:
    """Returns the audio at a peak level, rounded to 16 bits."""
    gain = 10 ** (peak_dbfs / 20) / max(float(np.abs(samples).max()), 1e-9)
    return (np.round(samples * gain * 32768) / 32768).astype(np.float32)


def _share_of_equal(pairs: list[tuple[str, str]] | list[tuple[str | None, str | None]]) -> float:
    return 100 * sum(one == two for one, two in pairs) / len(pairs)


def _text(analysis: Analysis) -> str:
    return "" if analysis.transcript is None else analysis.transcript.text
