"""How a speaker usually sounds: pooled speech features of the earlier turns.

Emotion is a change against the speaker's own way of speaking, and that is known to whoever heard the turns before. Each
turn's voice is summed up once, by its encoder's mean and deviation over time; a baseline is derived from the summaries
of the earlier turns whenever it is needed and is never updated in place, so that repeats and reorderings change
nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from shared.modeling.tokens import Tokens

PRIOR_TURNS = 10.0
"""How many turns of a speaker weigh as much as all others' when it is told how widely the speaker's turns vary."""

Summary = NDArray[np.float16]
"""A turn's voice: mean and deviation of every feature over time, shape [2, layers, width]."""


@dataclass(frozen=True)
class SpeakerBaseline:
    """What the earlier turns of a batch's speakers have in common.

    Attributes:
        count: how many turns it rests on, shape [batch]; where it is 0, mean and variance are 0 and mean nothing.
        mean: of the turns' summaries, shape [batch, 2, layers, width].
        variance: of the turns' summaries, same shape; 0 where there is but one.
    """

    count: Tensor
    mean: Tensor
    variance: Tensor

    @classmethod
    def of(cls, earlier: Sequence[Sequence[Summary]], shape: tuple[int, ...], device: str = "cpu") -> "SpeakerBaseline":
        """Derived from each row's summaries, in any order.

        Args:
            earlier: for each row of a batch, the summaries of its speaker's earlier turns, which may be flat.
            shape: of a summary, [2, layers, width].
            device: where the tensors shall lie.
        """
        rows = [
            np.stack([turn.reshape(shape) for turn in turns]).astype(np.float64) if turns else np.zeros((1, *shape))
            for turns in earlier
        ]

        def tensor(values: list[NDArray[np.float64]]) -> Tensor:
            return torch.tensor(np.stack(values), dtype=torch.float32, device=device)

        return cls(
            torch.tensor([float(len(turns)) for turns in earlier], device=device),
            tensor([row.mean(axis=0) for row in rows]),
            tensor([row.var(axis=0) for row in rows]),
        )

    @classmethod
    def none(cls, summaries: Tensor) -> "SpeakerBaseline":
        """Of speakers of whom nothing was heard before, a row for each of the summaries."""
        nothing = torch.zeros_like(summaries)
        return cls(nothing.new_zeros(len(summaries)), nothing, nothing)


def summaries(voice: Tokens) -> Tensor:
    """Mean and deviation over each row's tokens, shape [batch, 2, layers, width]; rows without tokens are 0."""
    count = voice.mask.sum(dim=1).clamp(min=1)[:, None, None]
    real = voice.mask[..., None, None]
    mean = (voice.features * real).sum(dim=1) / count
    square = ((voice.features - mean[:, None]) ** 2 * real).sum(dim=1) / count
    return torch.stack([mean, square.sqrt()], dim=1)


class SpeakerPrior(nn.Module):
    """How speakers differ, feature by feature: it says how far a baseline of a few turns is to be believed.

    A turn's summary is taken as the sum of a mean, what is the speaker's own, and what changes from turn to turn. From
    the variances of the latter two follows the best linear prediction of the next summary (Henderson 1975): the mean
    of the earlier ones, drawn towards everybody's mean the more, the fewer they are. Without earlier turns it is
    everybody's mean.

    That holds of turns in all sorts of moods. Turns that are much alike may be in one mood, which is then not the
    speaker's way: they are believed as far as turns that vary so little are probably not.

    Buffers, the first three of a summary's shape:
        mean: over all speakers.
        between: variance of what is the speaker's own.
        within: variance of what changes from turn to turn.
        variety: of the logistic regression that tells turns in several moods from those in one: the weights of
            what `spread` gives, and the bias. Until it is fitted, every baseline is believed.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.mean: Tensor
        self.between: Tensor
        self.within: Tensor
        self.register_buffer("mean", torch.zeros(shape))
        self.register_buffer("between", torch.ones(shape))
        self.register_buffer("within", torch.ones(shape))
        self.variety: Tensor
        self.register_buffer("variety", torch.tensor([0.0, 0.0, 20.0]))

    def fit(self, speakers: Sequence[Tensor]) -> None:
        """Measure the summaries of some speakers, each of shape [turns, *shape].

        Where no two speakers have two turns, nothing tells their ways apart, and a baseline is never believed.
        """
        everything = torch.cat(list(speakers)).float()
        self.mean.copy_(everything.mean(dim=0))
        self.within.copy_(everything.var(dim=0, correction=0).clamp(min=1e-6))
        self.between.zero_()
        heard = [turns.float() for turns in speakers if len(turns) > 1]
        if len(heard) > 1:
            means = torch.stack([turns.mean(dim=0) for turns in heard])
            variances = torch.stack([turns.var(dim=0) for turns in heard])
            # The spread of the speakers' means, less what of it comes from the turns they happened to be measured on.
            counts = torch.tensor([len(turns) for turns in heard]).view(-1, *[1] * self.mean.dim())
            self.mean.copy_(means.mean(dim=0))
            self.within.copy_(variances.mean(dim=0).clamp(min=1e-6))
            self.between.copy_((means.var(dim=0) - (variances / counts).mean(dim=0)).clamp(min=0))

    def expected(self, baseline: SpeakerBaseline) -> tuple[Tensor, Tensor]:
        """Mean and deviation of each row's next summary, both of shape [batch, *shape]."""
        count = baseline.count[:, None, None, None]
        trust = self._varied(baseline) * count * self.between / (count * self.between + self.within)
        mean = self.mean + trust * (baseline.mean - self.mean)
        within = (PRIOR_TURNS * self.within + count * baseline.variance) / (PRIOR_TURNS + count)
        return mean, (within + self.between * (1 - trust)).sqrt()

    def spread(self, baseline: SpeakerBaseline) -> Tensor:
        """How widely each baseline's turns vary: the logarithm of their variance over `within`, and 1 / their count.

        Shape [batch, 2]; of a single turn it means nothing.
        """
        count = baseline.count
        unbiased = baseline.variance * (count / (count - 1).clamp(min=1))[:, None, None, None]
        ratio = (unbiased / self.within).flatten(1).mean(dim=1).clamp(min=1e-2)
        return torch.stack([ratio.log(), 1 / count.clamp(min=1)], dim=1)

    def _varied(self, baseline: SpeakerBaseline) -> Tensor:
        """How probably each baseline's turns are in several moods, 1 for a single turn; shape [batch, 1, 1, 1]."""
        probability = torch.sigmoid(self.spread(baseline) @ self.variety[:2] + self.variety[2])
        return torch.where(baseline.count > 1, probability, torch.ones_like(probability))[:, None, None, None]
