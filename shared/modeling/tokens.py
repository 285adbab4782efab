"""Padded batches of feature sequences with their masks, and the standardization of features."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence


@dataclass(frozen=True)
class Tokens:
    """A padded batch of feature sequences.

    Attributes:
        features: float32, shape [batch, tokens, ...]; zero where the mask is False.
        mask: bool, shape [batch, tokens]; False for padding, so all False in the row of an empty sequence.
    """

    features: Tensor
    mask: Tensor

    @classmethod
    def padded(cls, sequences: Sequence[Tensor]) -> "Tokens":
        """Returns the batch of some sequences of different lengths, each of shape [tokens, ...]."""
        lengths = torch.tensor([len(sequence) for sequence in sequences], device=sequences[0].device)
        features = pad_sequence(list(sequences), batch_first=True)
        return cls(features, length_mask(lengths, features.shape[1]))

    def unpadded(self) -> list[Tensor]:
        """Returns each row without its padding: the sequences that `padded` was called with."""
        return [row[real] for row, real in zip(self.features, self.mask, strict=True)]


class Standardization(nn.Module):
    """Scales every feature to mean 0 and standard deviation 1 over the tokens of the training data.

    A few features of a pretrained encoder are tens of times larger than the others. With a layer norm alone, they would
    dominate.
    """

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.mean: Tensor
        self.deviation: Tensor
        self.register_buffer("mean", torch.zeros(shape))
        self.register_buffer("deviation", torch.ones(shape))

    def fit(self, features: Tensor) -> None:
        """Set mean and deviation to those of features of shape [tokens, *shape]."""
        self.mean.copy_(features.mean(dim=0))
        self.deviation.copy_(features.std(dim=0).clamp(min=1e-3))

    def forward(self, features: Tensor) -> Tensor:
        return (features - self.mean) / self.deviation


def length_mask(lengths: Tensor, size: int) -> Tensor:
    """Returns a mask of shape [batch, size] that is True at the first `lengths` positions of each row."""
    return torch.arange(size, device=lengths.device)[None] < lengths[:, None]
