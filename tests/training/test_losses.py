"""The losses agree with their definitions, and ignore unknown values."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from shared.modeling.fusion import FusionOutput
from training.losses import Loss, LossConfig, valence_loss

UNKNOWN = float("nan")
CATEGORIES = 4
HARD = torch.eye(CATEGORIES)[[0, 1, 1, 3, 1, 0]]


def logits(count: int = 6, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, CATEGORIES, generator=torch.Generator().manual_seed(seed)) * 2


def loss(config: LossConfig, given: torch.Tensor, target: torch.Tensor, seen: torch.Tensor | None = None) -> float:
    """Of the categories alone."""
    unknown = torch.full((len(target),), UNKNOWN)
    return Loss(config, seen)(FusionOutput(given, torch.zeros(len(target))), target, unknown).item()


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weights", [None, (1.0, 0.5, 2.0, 3.0)])
def test_the_loss_of_one_label_is_pytorchs_cross_entropy(weights: tuple[float, ...] | None, smoothing: float) -> None:
    expected = functional.cross_entropy(
        logits(),
        HARD.argmax(dim=1),
        weight=None if weights is None else torch.tensor(weights),
        label_smoothing=smoothing,
    )
    config = LossConfig(class_weights=weights, label_smoothing=smoothing)
    assert loss(config, logits(), HARD) == pytest.approx(expected.item(), rel=1e-5)


def test_the_loss_of_soft_targets_is_pytorchs_cross_entropy() -> None:
    soft = torch.softmax(logits(seed=1), dim=1)
    expected = functional.cross_entropy(logits(), soft).item()
    assert loss(LossConfig(), logits(), soft) == pytest.approx(expected, rel=1e-5)


def test_balanced_weights_give_every_category_that_occurs_the_same_total() -> None:
    # All alike unsure: each utterance's loss is its weight's share.
    weights = Loss(LossConfig(class_weights="balanced"), HARD).weights
    assert weights is not None
    sums = (HARD * weights).sum(dim=0)
    torch.testing.assert_close(sums[[0, 1, 3]], torch.full((3,), 2.0))
    assert weights.isfinite().all()
    expected = loss(LossConfig(class_weights=(1.0, 2 / 3, 1.0, 2.0)), logits(), HARD)
    assert loss(LossConfig(class_weights="balanced"), logits(), HARD, HARD) == pytest.approx(expected, rel=1e-5)


def test_balanced_weights_need_the_training_data() -> None:
    with pytest.raises(ValueError, match=r"balanced.*targets"):
        Loss(LossConfig(class_weights="balanced"))


def test_the_focal_loss_weights_the_cross_entropy_by_the_squared_error_of_the_probability() -> None:
    log_probability = torch.log_softmax(logits(), dim=1)
    right = (log_probability * HARD).sum(dim=1)
    expected = (-((1 - right.exp()) ** 2) * right).mean().item()
    assert loss(LossConfig(focal_gamma=2.0), logits(), HARD) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_gradients_are_finite_at_extreme_logits(multi_label: bool, gamma: float) -> None:
    certain = (HARD * 200 - 100).requires_grad_()
    config = LossConfig(multi_label=multi_label, focal_gamma=gamma, label_smoothing=0.1)
    Loss(config)(FusionOutput(certain, torch.zeros(6)), HARD, torch.full((6,), UNKNOWN)).backward()
    assert certain.grad is not None
    assert certain.grad.isfinite().all()


def test_the_multi_label_loss_is_pytorchs_binary_cross_entropy() -> None:
    several = torch.tensor([[1.0, 0, 1, 0], [0, 0, 0, 0]])
    plain = functional.binary_cross_entropy_with_logits(logits(2), several).item()
    assert loss(LossConfig(multi_label=True), logits(2), several) == pytest.approx(plain, rel=1e-5)
    weights = (1.0, 5.0, 2.0, 1.0)
    weighted = functional.binary_cross_entropy_with_logits(logits(2), several, pos_weight=torch.tensor(weights)).item()
    config = LossConfig(multi_label=True, class_weights=weights)
    assert loss(config, logits(2), several) == pytest.approx(weighted, rel=1e-5)


def test_balanced_multi_label_weights_give_yes_and_no_the_same_total() -> None:
    seen = torch.tensor([[1.0, 0, 1, 0], [1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0]])
    weights = Loss(LossConfig(multi_label=True, class_weights="balanced"), seen).weights
    assert weights is not None
    torch.testing.assert_close(weights, torch.tensor([1 / 3, 3.0, 3.0, 1.0]))


def test_the_focal_multi_label_loss_of_correct_answers_is_small() -> None:
    several = torch.tensor([[1.0, 0, 1, 0]])
    sure = several * 8 - 4
    plain = loss(LossConfig(multi_label=True), sure, several)
    assert loss(LossConfig(multi_label=True, focal_gamma=2), sure, several) < plain * 1e-2


@pytest.mark.parametrize("kind", ["mse", "ccc"])
def test_unknown_valences_have_no_gradient(kind: str) -> None:
    predicted = torch.tensor([0.5, -0.2, 0.9, 0.1], requires_grad=True)
    valence = torch.tensor([0.1, UNKNOWN, 0.4, -0.7])
    found = valence_loss(predicted, valence, kind)  # pyright: ignore[reportArgumentType] - from a parameter
    found.backward()
    assert predicted.grad is not None
    assert predicted.grad[1] == 0
    assert (predicted.grad[[0, 2, 3]] != 0).all()


@pytest.mark.parametrize("kind", ["mse", "ccc"])
def test_the_valence_loss_is_0_if_no_valence_is_known(kind: str) -> None:
    predicted = torch.tensor([0.5, -0.2], requires_grad=True)
    found = valence_loss(predicted, torch.full((2,), UNKNOWN), kind)  # pyright: ignore[reportArgumentType] - from a parameter
    found.backward()
    assert found == 0
    assert predicted.grad is not None
    assert (predicted.grad == 0).all()


@given(
    st.lists(st.tuples(st.floats(-1, 1, width=32), st.floats(-1, 1, width=32)), min_size=2, max_size=30).filter(
        lambda pairs: np.std([pair[1] for pair in pairs]) > 0.01
    )
)
def test_the_concordance_loss_is_between_0_and_2_and_0_for_correct_values(pairs: list[tuple[float, float]]) -> None:
    predicted, valence = torch.tensor(pairs).T
    assert -1e-4 <= valence_loss(predicted, valence, "ccc") <= 2 + 1e-4
    assert valence_loss(valence, valence, "ccc") == pytest.approx(0, abs=1e-4)
    assert valence_loss(-valence, valence - valence.mean(), "ccc") >= 0.99


def test_the_valence_loss_is_added_with_its_weight() -> None:
    fused = FusionOutput(logits(), torch.full((6,), 0.5))
    emotion = loss(LossConfig(), logits(), HARD)
    both = Loss(LossConfig(valence_weight=2.0))(fused, HARD, torch.zeros(6)).item()
    assert both == pytest.approx(emotion + 2 * 0.25, rel=1e-5)
