"""Batches of feature sequences of different lengths, with the mask of what is real, and their standardization."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence


@dataclass(frozen=True)
class Tokens:
    """A batch of sequences.

    Attributes:
        features: float32, shape [batch, tokens, ...]; zero where the mask is False.
        mask: bool, shape [batch, tokens]; all False in a row that has nothing.
    """

    features: Tensor
    mask: Tensor

    @classmethod
    def padded(cls, sequences: Sequence[Tensor]) -> "Tokens":
        """From sequences of different lengths, each of shape [tokens, ...]."""
        lengths = torch.tensor([len(sequence) for sequence in sequences], device=sequences[0].device)
        features = pad_sequence(list(sequences), batch_first=True)
        return cls(features, length_mask(lengths, features.shape[1]))

    def unpadded(self) -> list[Tensor]:
        """Each sequence's own tokens: what `padded` was made from."""
        return [row[real] for row, real in zip(self.features, self.mask, strict=True)]


class Standardization(nn.Module):
    """Makes every feature's mean 0 and deviation 1 over the training data's tokens.

    A few features of a pretrained encoder are tens of times as large as the rest, which a layer norm would drown.
    """

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.mean: Tensor
        self.deviation: Tensor
        self.register_buffer("mean", torch.zeros(shape))
        self.register_buffer("deviation", torch.ones(shape))

    def fit(self, features: Tensor) -> None:
        """Measure features of shape [tokens, *shape]."""
        self.mean.copy_(features.mean(dim=0))
        self.deviation.copy_(features.std(dim=0).clamp(min=1e-3))

    def forward(self, features: Tensor) -> Tensor:
        return (features - self.mean) / self.deviation


def length_mask(lengths: Tensor, size: int) -> Tensor:
    """True for the first `lengths` of `size`, shape [batch, size]."""
    return torch.arange(size, device=lengths.device)[None] < lengths[:, None]
