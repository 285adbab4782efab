"""SpecAugment on an encoder's features: spans of time are dropped, bands of features are masked (Park et al. 2019)."""

import numpy as np
import torch
from torch import Tensor


def drop_spans(tokens: Tensor, share: float, rng: np.random.Generator, count: int = 2) -> Tensor:
    """Returns the tokens without `count` random spans, each of at most `share` of the tokens."""
    kept = np.ones(len(tokens), dtype=bool)
    for _ in range(count):
        length = int(rng.random() * share * len(tokens))
        start = rng.integers(len(tokens) - length + 1)
        kept[start : start + length] = False
    return tokens[torch.as_tensor(kept)]


def mask_bands(
    features: Tensor, share: float, rng: np.random.Generator, count: int = 2, fill: float | Tensor = 0.0
) -> Tensor:
    """Returns the features with `count` random bands of adjacent features masked over the whole length.

    Args:
        features: shape [frames, ..., features], such as mel bands or an encoder's features.
        share: the widest band, as a share of all features.
        fill: the values in the masked bands, of any shape that broadcasts; 0 is the mean of standardized features.
    """
    size = features.shape[-1]
    kept = torch.ones(size, dtype=torch.bool)
    for _ in range(count):
        width = int(rng.random() * share * size)
        start = int(rng.integers(size - width + 1))
        kept[start : start + width] = False
    return torch.where(kept, features, fill)
