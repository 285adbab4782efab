"""The training loss: of categories (one, soft or several at once) and of valence."""

from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional

from shared.modeling.fusion import FusionOutput


class LossConfig(BaseModel):
    """The loss of a batch; the default is the cross-entropy plus half of the squared error of the valence."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    multi_label: bool = False
    """Predict each category independently, for utterances with several categories, instead of exactly one."""
    class_weights: Literal["balanced"] | tuple[float, ...] | None = None
    """A weight for each category; `balanced` gives all categories that occur the same total weight. With
    `multi_label`, the weight of the positive answers."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Share of the target that is spread evenly over the categories, or with `multi_label` over yes and no."""
    focal_gamma: float = Field(default=0.0, ge=0)
    """How strongly the focal loss (Lin et al. 2017, who use 2) reduces the weight of correct predictions; 0 is the
    cross-entropy."""
    valence: Literal["mse", "ccc"] = "mse"
    """The loss of the valence: squared error, or 1 minus the concordance correlation, which needs large batches."""
    valence_weight: float = Field(default=0.5, ge=0)
    """The weight of the valence's loss."""


class Loss(nn.Module):
    """The loss of a batch.

    Args:
        config: which loss.
        targets: the targets of the training data, of shape [utterances, categories]; needed for `balanced`.

    Raises:
        ValueError: class weights are `balanced`, and there are no targets.
    """

    def __init__(self, config: LossConfig, targets: Tensor | None = None) -> None:
        super().__init__()
        self.config = config
        self.weights: Tensor | None
        self.register_buffer("weights", _weights(config, targets), persistent=False)

    def forward(self, fused: FusionOutput, target: Tensor, valence: Tensor) -> Tensor:
        """Returns the loss of the categories plus the weighted loss of the valence, a scalar.

        Args:
            fused: the model's outputs.
            target: shape [batch, categories], in [0, 1]; rows sum to 1 unless several labels are allowed.
            valence: shape [batch]; NaN where it is unknown.
        """
        config = self.config
        categories = _multi_label if config.multi_label else _single_label
        weights = torch.ones_like(target[0]) if self.weights is None else self.weights
        emotion = categories(fused.logits, target, weights, config.label_smoothing, config.focal_gamma)
        return emotion + config.valence_weight * valence_loss(fused.valence, valence, config.valence)


def valence_loss(predicted: Tensor, valence: Tensor, kind: Literal["mse", "ccc"]) -> Tensor:
    """Returns the loss over the utterances whose valence is not NaN, or 0 if there are none.

    Args:
        predicted: shape [batch].
        valence: shape [batch].
        kind: squared error, or 1 minus the concordance correlation.
    """
    known = ~valence.isnan()
    if not known.any():
        return predicted.sum() * 0.0
    loss = functional.mse_loss if kind == "mse" else _discordance
    return loss(predicted[known], valence[known])


def _single_label(logits: Tensor, target: Tensor, weights: Tensor, smoothing: float, gamma: float) -> Tensor:
    """Returns the cross-entropy, averaged over the weights of the targets as PyTorch does."""
    log_probability = torch.log_softmax(logits, dim=-1)
    smooth = (1 - smoothing) * target + smoothing / target.shape[-1]
    losses = -smooth * log_probability * _focus(log_probability, gamma)
    return (losses * weights).sum() / (target * weights).sum()


def _multi_label(logits: Tensor, target: Tensor, weights: Tensor, smoothing: float, gamma: float) -> Tensor:
    """Returns the binary cross-entropy, averaged over utterances and categories."""
    smooth = (1 - smoothing) * target + smoothing / 2
    yes, no = functional.logsigmoid(logits), functional.logsigmoid(-logits)
    losses = -(weights * smooth * yes * _focus(yes, gamma) + (1 - smooth) * no * _focus(no, gamma))
    return losses.mean()


def _focus(log_probability: Tensor, gamma: float) -> Tensor:
    """Returns (1 - p) ^ gamma, clamped so that its gradient is finite at p = 1."""
    return (-torch.expm1(log_probability)).clamp(min=1e-7) ** gamma


def _discordance(predicted: Tensor, actual: Tensor) -> Tensor:
    """Returns 1 minus the concordance correlation coefficient (Lin 1989), in [0, 2]."""
    shift = predicted.mean() - actual.mean()
    covariance = ((predicted - predicted.mean()) * (actual - actual.mean())).mean()
    spread = predicted.var(correction=0) + actual.var(correction=0) + shift**2
    return 1 - 2 * covariance / spread.clamp(min=1e-8)


def _weights(config: LossConfig, targets: Tensor | None) -> Tensor | None:
    if config.class_weights is None:
        return None
    if config.class_weights != "balanced":
        return torch.tensor(config.class_weights)
    if targets is None:
        raise ValueError("class_weights is 'balanced', which needs the targets of the training data")
    counts, size = targets.sum(dim=0), len(targets)
    weights = (size - counts) / counts if config.multi_label else size / (counts.count_nonzero() * counts)
    return torch.where(counts > 0, weights, torch.ones_like(counts))
