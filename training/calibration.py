"""From validation data: how sure to be, and from which confidence on to answer."""

from collections.abc import Mapping
from math import ceil, log2
from typing import Any
from warnings import warn

import numpy as np
from numpy.typing import NDArray
from scipy import special
from scipy.optimize import minimize_scalar
from scipy.stats import binomtest

from shared.domain.bundle import Calibration, OperatingPoint

ACCEPTED_RISK = 1 / 3
"""By default at least two of three answers are right.

The least sure of them are then right about every second time on the corpora of `compact`, which among seven categories
is still worth knowing; an answer that is more often wrong than right is not.
"""
STEPS = 100
"""Thresholds are whole hundredths."""


def calibrate(
    readings: Mapping[str, tuple[NDArray[np.integer], NDArray[np.floating]]],
    accepted_risk: float = ACCEPTED_RISK,
    level: float = 0.95,
) -> Calibration:
    """The temperatures and the threshold of abstention for readings of validation data.

    Args:
        readings: the true labels, of shape [count], and the logits, of shape [count, categories], of what was read from
            `both` modalities, from the `text` and from the `voice`; where a kind is missing its temperature is 1.
        accepted_risk: see `abstention_threshold`, which sees the answers of all kinds together.
        level: likewise.

    Raises:
        ValueError: there are no readings.
    """
    if not readings:
        raise ValueError("there is nothing to calibrate on: some corpus must have a validation split")
    temperatures = {kind: best_temperature(labels, logits) for kind, (labels, logits) in readings.items()}
    shares = [softmax(logits, temperatures[kind]) for kind, (_, logits) in readings.items()]
    confidence = np.concatenate([share.max(axis=1) for share in shares])
    labels = np.concatenate([labels for labels, _ in readings.values()])
    right = np.concatenate([share.argmax(axis=1) for share in shares]) == labels
    threshold = abstention_threshold(confidence, right, accepted_risk, level)
    if threshold == 1:
        warn(f"no threshold keeps the risk at {accepted_risk:.2f} on {len(right)} answers: all abstain", stacklevel=2)
    return Calibration(
        temperature=round(temperatures.get("both", 1.0), 3),
        text_temperature=round(temperatures.get("text", 1.0), 3),
        audio_temperature=round(temperatures.get("voice", 1.0), 3),
        abstain_below=threshold,
        accepted_risk=round(accepted_risk, 4),
        risk_level=level,
        coverage=round(float((confidence >= threshold).mean()), 4),
        selective_accuracy=selective_accuracy(confidence, right),
    )


def softmax(logits: NDArray[np.floating], temperature: float = 1.0) -> NDArray[np.floating]:
    """Probabilities, shape [count, categories]."""
    return special.softmax(logits / temperature, axis=1)


def best_temperature(labels: NDArray[np.integer], logits: NDArray[np.floating]) -> float:
    """Minimises the negative log-likelihood (Guo et al. 2017)."""

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
    """The lowest confidence, in steps of 0.01, from which upward the risk is no more than accepted; 1 if there is none.

    The risk is the share of wrong ones among new answers like these of at least that confidence, and the promise holds
    with probability `level`: selection with guaranteed risk (Geifman and El-Yaniv 2017, algorithm 1). Each of the steps
    of the bisection is one more chance to be lucky, hence the bound is that much stricter.

    Raises:
        ValueError: the accepted risk is not a share.
    """
    if not 0 < accepted_risk <= 1:
        raise ValueError(f"an accepted risk of {accepted_risk} is not above 0 and at most 1")
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
    """What the share of wrong answers is at most, with probability `level` (Clopper and Pearson 1934); 1 if none is."""
    if not len(right):
        return 1.0
    wrong = int((~right).sum())
    return float(binomtest(wrong, len(right), alternative="less").proportion_ci(level, method="exact").high)


def selective_accuracy(confidence: NDArray[np.floating], right: NDArray[np.bool_]) -> tuple[OperatingPoint, ...]:
    """What is answered, and how much of that is right, at every tenth of confidence at which something is answered."""
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
