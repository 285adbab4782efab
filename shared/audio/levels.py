"""Levels: how loud audio is, and amplification of audio that is too quiet for the models."""

import numpy as np

from shared.audio.decoder import SAMPLE_RATE, Samples

QUIET_DBFS = -55.0
"""Quieter audio is amplified: only one clip in a thousand of the acted corpus RAVDESS, which the models know, is."""
AMPLIFIED_DBFS = -30.0
"""The level of amplified audio, which is the mean of the clips of RAVDESS and TESS."""
AUDIBLE_DBFS = -80.0
"""Quieter audio is silence, and is not amplified. The noise of a 16-bit converter is at about -100 dBFS."""
SILENCE_DBFS = -120.0
"""The level of digital silence, in place of minus infinity."""

_WINDOW = SAMPLE_RATE // 20
_LOUD_WINDOWS = 5


def level_dbfs(samples: Samples) -> float:
    """Returns the RMS level that the loudest quarter of a second reaches, in dB relative to an amplitude of 1.

    The level is measured in windows of 50 ms, each without its mean. Pauses do not lower the level of speech, and a
    click does not raise it, nor does a constant offset.

    Args:
        samples: 16 kHz audio, shape [samples].
    """
    count = max(1, samples.size // _WINDOW)
    whole = samples[: count * _WINDOW].reshape(count, -1)
    if not whole.size:
        return SILENCE_DBFS
    loudest = np.sort(whole.std(axis=1, dtype=np.float64))[-_LOUD_WINDOWS:]
    return float(20 * np.log10(max(loudest[0], 10 ** (SILENCE_DBFS / 20))))


def amplify_quiet(samples: Samples) -> Samples:
    """Returns audio between `AUDIBLE_DBFS` and `QUIET_DBFS` at `AMPLIFIED_DBFS`, and other audio as it is.

    What is amplified loses its constant offset, and its clicks are clipped.

    Args:
        samples: 16 kHz audio, shape [samples].
    """
    level = level_dbfs(samples)
    if not AUDIBLE_DBFS <= level < QUIET_DBFS:
        return samples
    gain = np.float32(10 ** ((AMPLIFIED_DBFS - level) / 20))
    # An offset would be amplified too, and displace the speech beyond full scale.
    return np.clip(gain * (samples - samples.mean(dtype=np.float64).astype(np.float32)), -1, 1)
