"""The field's figures for classification."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score

from shared.domain.emotion import EKMAN7


class Metrics(BaseModel):
    """Over the categories that occur among the true labels.

    `uar` is unweighted average recall; `ece` the expected calibration error over 15 bins (Guo et al. 2017); the
    confusion matrix has a row for each true category of the label space and a column for each predicted one.
    """

    count: int
    accuracy: float
    weighted_f1: float
    macro_f1: float
    uar: float
    ece: float
    recall: dict[str, float]
    confusion: list[list[int]]


def metrics(labels: Sequence[int], probabilities: NDArray[np.floating]) -> Metrics:
    """The metrics of `probabilities`, of shape [count, categories], against the true `labels`."""
    true = np.asarray(labels)
    predicted = probabilities.argmax(axis=1)
    present = np.unique(true)
    matrix = confusion_matrix(true, predicted, labels=range(len(EKMAN7.categories)))
    recalls = matrix.diagonal()[present] / matrix.sum(axis=1)[present]
    return Metrics(
        count=len(true),
        accuracy=float(accuracy_score(true, predicted)),
        weighted_f1=float(f1_score(true, predicted, average="weighted")),
        macro_f1=float(f1_score(true, predicted, labels=present, average="macro")),
        uar=float(recalls.mean()),
        ece=expected_calibration_error(true, probabilities),
        recall={EKMAN7.categories[i]: float(recall) for i, recall in zip(present, recalls, strict=True)},
        confusion=matrix.tolist(),
    )


def expected_calibration_error(true: NDArray[np.integer], probabilities: NDArray[np.floating], bins: int = 15) -> float:
    """How far confidence is from accuracy, on average over equal bins of confidence (Guo et al. 2017)."""
    confidence = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == true
    bin_of = np.minimum((confidence * bins).astype(int), bins - 1)
    gaps = [
        (bin_of == b).mean() * abs(right[bin_of == b].mean() - confidence[bin_of == b].mean())
        for b in range(bins)
        if (bin_of == b).any()
    ]
    return float(sum(gaps))
