"""Calibration on validation data: the temperatures, and the confidence below which Tenor abstains."""

# SciPy has no types.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false

from collections.abc import Mapping
from math import ceil, log2
from typing import Any, Literal
from warnings import warn

import numpy as np
from numpy.typing import NDArray
from scipy import special
from scipy.optimize import minimize_scalar
from scipy.stats import beta

from shared.domain.bundle import Calibration, OperatingPoint

ACCEPTED_RISK = 1 / 3
"""The default share of answers that may be wrong: at least two of three are right.

On the corpora of `compact`, the answers of the lowest confidence are then right in about half of the cases, which is
still useful among seven categories; an answer that is wrong more often than right is not.
"""
STEPS = 100
"""Thresholds are multiples of 1 / STEPS."""

Modalities = Literal["both", "text", "audio"]
"""The modalities that a prediction was made of."""


def calibrate(
    predictions: Mapping[Modalities, tuple[NDArray[np.integer], NDArray[np.floating]]],
    accepted_risk: float = ACCEPTED_RISK,
    level: float = 0.95,
) -> Calibration:
    """Returns the temperatures and the abstention threshold for predictions of validation data.

    Args:
        predictions: the true labels, of shape [count], and the logits, of shape [count, categories], by the modalities
            that the predictions were made of; the temperature of modalities that are missing is 1.
        accepted_risk: see `abstention_threshold`, which is given the answers of all modalities together.
        level: see `abstention_threshold`.

    Raises:
        ValueError: there are no predictions.
    """
    if not predictions:
        raise ValueError("there are no predictions to calibrate on: at least one corpus must have a validation split")
    temperatures: dict[Modalities, float] = {
        kind: best_temperature(labels, logits) for kind, (labels, logits) in predictions.items()
    }
    shares = [softmax(logits, temperatures[kind]) for kind, (_, logits) in predictions.items()]
    confidence = np.concatenate([share.max(axis=1) for share in shares])
    labels = np.concatenate([labels for labels, _ in predictions.values()])
    right = np.concatenate([share.argmax(axis=1) for share in shares]) == labels
    threshold = abstention_threshold(confidence, right, accepted_risk, level)
    if threshold == 1:
        warn(
            f"no threshold keeps the risk at {accepted_risk:.2f} on {len(right)} answers: Tenor always abstains",
            stacklevel=2,
        )
    return Calibration(
        temperature=round(temperatures.get("both", 1.0), 3),
        text_temperature=round(temperatures.get("text", 1.0), 3),
        audio_temperature=round(temperatures.get("audio", 1.0), 3),
        abstain_below=threshold,
        accepted_risk=round(accepted_risk, 4),
        risk_level=level,
        coverage=round(float((confidence >= threshold).mean()), 4),
        selective_accuracy=selective_accuracy(confidence, right),
    )


def softmax(logits: NDArray[np.floating], temperature: float = 1.0) -> NDArray[np.floating]:
    """Returns probabilities, of shape [count, categories]."""
    return special.softmax(logits / temperature, axis=1)


def best_temperature(labels: NDArray[np.integer], logits: NDArray[np.floating]) -> float:
    """Returns the temperature that minimizes the negative log-likelihood (Guo et al. 2017)."""

    def loss(temperature: float) -> float:
        return -float(special.log_softmax(logits / temperature, axis=1)[np.arange(len(labels)), labels].mean())

    found: Any = minimize_scalar(loss, bounds=(0.2, 10.0), method="bounded")
    return float(found.x)


def abstention_threshold(
    confidence: NDArray[np.floating],
    right: NDArray[np.bool_],
    accepted_risk: float = ACCEPTED_RISK,
    level: float = 0.95,
) -> float:
    """Returns the lowest confidence threshold, in steps of 0.01, that keeps the accepted risk; 1 if none does.

    The risk is the share of wrong answers among new answers of at least that confidence. The guarantee holds with
    probability `level`: selection with guaranteed risk (Geifman and El-Yaniv 2017, algorithm 1). Every step of the
    bisection is another test, so each test uses a stricter bound.

    Args:
        confidence: the confidence of each answer, of shape [count].
        right: whether each answer is right, of shape [count].
        accepted_risk: the largest share of wrong answers, above 0 and at most 1.
        level: the probability of the guarantee.

    Raises:
        ValueError: the accepted risk is not a share.
    """
    if not 0 < accepted_risk <= 1:
        raise ValueError(f"accepted_risk is {accepted_risk}, but must be above 0 and at most 1")
    tests = ceil(log2(STEPS + 1))
    low, high = 0, STEPS
    while low < high:
        middle = (low + high) // 2
        answered = right[confidence >= middle / STEPS]
        if risk_bound(answered, 1 - (1 - level) / tests) <= accepted_risk:
            high = middle
        else:
            low = middle + 1
    return low / STEPS


def risk_bound(right: NDArray[np.bool_], level: float = 0.95) -> float:
    """Returns an upper bound of the share of wrong answers, valid with probability `level`; 1 if there are no answers.

    The bound is that of Clopper and Pearson 1934.
    """
    wrong = int((~right).sum())
    if wrong == len(right):
        return 1.0
    return float(beta.ppf(level, wrong + 1, len(right) - wrong))


def selective_accuracy(confidence: NDArray[np.floating], right: NDArray[np.bool_]) -> tuple[OperatingPoint, ...]:
    """Returns the coverage and accuracy at each tenth of confidence, as far as anything is answered there."""
    tenths = [(tenth / 10, confidence >= tenth / 10) for tenth in range(10)]
    return tuple(
        OperatingPoint(
            threshold=threshold,
            coverage=round(float(answered.mean()), 4),
            accuracy=round(float(right[answered].mean()), 4),
        )
        for threshold, answered in tenths
        if answered.any()
    )
