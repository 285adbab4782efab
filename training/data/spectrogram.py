"""The log-mel spectrogram of a recording, as a square image."""

from functools import cache

import torch
from torch import Tensor
from torch.nn import functional
from transformers.audio_utils import mel_filter_bank

from shared.audio.decoder import SAMPLE_RATE, Samples

WINDOW = 1024
"""Samples in a frame: 64 ms."""

HOP = 256
"""Samples between the starts of two frames: 16 ms."""

BANDS = 128
RANGE_DB = 80.0
"""The dynamic range; everything that is softer is raised to its lower end."""

SILENT_DB = 0.01
"""The smallest standard deviation to divide by; below it there are only rounding errors."""


def log_mel_image(samples: Samples, size: int) -> Tensor:
    """Returns the mel spectrogram of the whole recording in decibels, resized to a square and standardized.

    Returns:
        Shape [1, size, size]: frequency bands from low to high, and time.
    """
    padded = functional.pad(torch.as_tensor(samples), (0, max(0, WINDOW - samples.size)))
    spectrum = torch.stft(padded, WINDOW, HOP, window=torch.hann_window(WINDOW), return_complex=True)
    mels = _filters() @ spectrum.abs().square()
    decibels = (10 * torch.log10(mels / mels.max().clamp(min=1e-30))).clamp(min=-RANGE_DB)
    squeezed = functional.interpolate(decibels[None, None], (size, size), mode="bilinear", antialias=True)[0]
    return (squeezed - squeezed.mean()) / squeezed.std().clamp(min=SILENT_DB)


@cache
def _filters() -> Tensor:
    """Returns the filters, of shape [BANDS, frequencies], on Slaney's mel scale, as librosa has them."""
    count = WINDOW // 2 + 1
    filters = mel_filter_bank(count, BANDS, 0.0, SAMPLE_RATE / 2, SAMPLE_RATE, norm="slaney", mel_scale="slaney")
    return torch.as_tensor(filters.T).float()
