"""The speaker's baseline: how a speaker usually sounds, from the audio summaries of their earlier turns.

Emotion shows as a change from a speaker's own way of speaking. Each turn's audio is summarized once: the mean and the
standard deviation over time of its encoder features. A baseline is derived from the summaries of the earlier turns each
time it is needed and is never updated in place, so that retries and reordering change nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from shared.modeling.tokens import Tokens

PRIOR_TURNS = 10.0
"""The weight of all speakers' within-speaker variance against one speaker's own, counted in turns of that speaker."""

AudioSummary = NDArray[np.float16]
"""Mean and standard deviation over time of every audio feature of one turn, shape [2, layers, width]."""


@dataclass(frozen=True)
class SpeakerBaseline:
    """Statistics of the earlier turns of the speakers in a batch.

    Attributes:
        count: number of earlier turns, shape [batch]. Where it is 0, mean and variance are 0 and have no meaning.
        mean: mean of the turns' audio summaries, shape [batch, 2, layers, width].
        variance: variance of the turns' audio summaries, same shape; 0 where there is only one turn.
    """

    count: Tensor
    mean: Tensor
    variance: Tensor

    @classmethod
    def from_summaries(
        cls, earlier: Sequence[Sequence[AudioSummary]], shape: tuple[int, ...], device: str = "cpu"
    ) -> "SpeakerBaseline":
        """Returns the baselines of a batch.

        Args:
            earlier: for each row, the summaries of its speaker's earlier turns, in any order. They may be flattened.
            shape: shape of one summary, [2, layers, width].
            device: where the tensors are created.
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
    def empty(cls, summaries: Tensor) -> "SpeakerBaseline":
        """Returns baselines without any turn, one for each of the summaries, of shape [batch, 2, layers, width]."""
        zeros = torch.zeros_like(summaries)
        return cls(zeros.new_zeros(len(summaries)), zeros, zeros)


def summarize_audio(audio: Tokens) -> Tensor:
    """Returns the mean and standard deviation over each row's tokens, or 0 for a row without tokens.

    Args:
        audio: features of shape [batch, tokens, layers, width].

    Returns:
        Shape [batch, 2, layers, width].
    """
    count = audio.mask.sum(dim=1).clamp(min=1)[:, None, None]
    real = audio.mask[..., None, None]
    mean = (audio.features * real).sum(dim=1) / count
    variance = ((audio.features - mean[:, None]) ** 2 * real).sum(dim=1) / count
    return torch.stack([mean, variance.sqrt()], dim=1)


class SpeakerPrior(nn.Module):
    """How speakers differ, feature by feature. It decides how far to rely on a baseline of a few turns.

    A turn's summary is modelled as a sum: the mean over all speakers, a deviation that belongs to the speaker, and one
    that changes from turn to turn. The variances of the latter two give the best linear prediction of the next summary
    (Henderson 1975): the mean of the earlier ones, shrunk towards the mean over all speakers; the fewer turns, the
    stronger. Without earlier turns it is the mean over all speakers.

    This assumes that the earlier turns express several emotions. If they are very similar, they may all express the
    same emotion, and their mean then describes that emotion and not the speaker. The reliability of a baseline is the
    probability that its turns express several emotions, by a logistic regression on `reliability_features`.

    Buffers, the first three of the shape of a summary:
        mean: over all speakers.
        between: variance between speakers.
        within: variance from turn to turn within one speaker.
        reliability: the two weights and the bias of the logistic regression. Until it is fitted, the bias is so large
            that every baseline is relied on.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.mean: Tensor
        self.between: Tensor
        self.within: Tensor
        self.register_buffer("mean", torch.zeros(shape))
        self.register_buffer("between", torch.ones(shape))
        self.register_buffer("within", torch.ones(shape))
        self.reliability: Tensor
        self.register_buffer("reliability", torch.tensor([0.0, 0.0, 20.0]))

    def fit(self, speakers: Sequence[Tensor]) -> None:
        """Estimate mean, `between` and `within` from training data.

        Unless two speakers have at least two turns each, the two variances cannot be told apart. `between` is then 0,
        so that no baseline is relied on.

        Args:
            speakers: for each speaker, the summaries of their turns, shape [turns, *shape].
        """
        everything = torch.cat(list(speakers)).float()
        self.mean.copy_(everything.mean(dim=0))
        self.within.copy_(everything.var(dim=0, correction=0).clamp(min=1e-6))
        self.between.zero_()
        several = [turns.float() for turns in speakers if len(turns) > 1]
        if len(several) > 1:
            means = torch.stack([turns.mean(dim=0) for turns in several])
            variances = torch.stack([turns.var(dim=0) for turns in several])
            # A speaker's mean over a few turns varies by chance too: that share is subtracted from `between`.
            counts = torch.tensor([len(turns) for turns in several]).view(-1, *[1] * self.mean.dim())
            self.mean.copy_(means.mean(dim=0))
            self.within.copy_(variances.mean(dim=0).clamp(min=1e-6))
            self.between.copy_((means.var(dim=0) - (variances / counts).mean(dim=0)).clamp(min=0))

    def expected(self, baseline: SpeakerBaseline) -> tuple[Tensor, Tensor]:
        """Returns the mean and standard deviation of each speaker's next summary, both of shape [batch, *shape]."""
        count = baseline.count[:, None, None, None]
        trust = self._reliability_of(baseline) * count * self.between / (count * self.between + self.within)
        mean = self.mean + trust * (baseline.mean - self.mean)
        within = (PRIOR_TURNS * self.within + count * baseline.variance) / (PRIOR_TURNS + count)
        return mean, (within + self.between * (1 - trust)).sqrt()

    def reliability_features(self, baseline: SpeakerBaseline) -> Tensor:
        """Returns log(variance of a baseline's turns / `within`), averaged over features first, and 1 / their count.

        Shape [batch, 2]. For a baseline of a single turn the values have no meaning.
        """
        count = baseline.count
        unbiased = baseline.variance * (count / (count - 1).clamp(min=1))[:, None, None, None]
        ratio = (unbiased / self.within).flatten(1).mean(dim=1).clamp(min=1e-2)
        return torch.stack([ratio.log(), 1 / count.clamp(min=1)], dim=1)

    def _reliability_of(self, baseline: SpeakerBaseline) -> Tensor:
        """Returns the probability that each baseline's turns express several emotions; 1 for a single turn.

        Shape [batch, 1, 1, 1].
        """
        probability = torch.sigmoid(self.reliability_features(baseline) @ self.reliability[:2] + self.reliability[2])
        return torch.where(baseline.count > 1, probability, torch.ones_like(probability))[:, None, None, None]
