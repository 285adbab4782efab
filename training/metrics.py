"""Metrics: classification scores, calibration, concordance, risk and coverage, and bootstrap intervals."""

# scikit-learn has no types.
# pyright: reportMissingTypeStubs=false, reportUnknownVariableType=false

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import BaseModel
from sklearn.metrics import confusion_matrix, f1_score, label_ranking_average_precision_score, log_loss

from shared.domain.emotion import EKMAN7

Interval = tuple[float, float]


class ClassMetrics(BaseModel):
    """The scores of one category; `support` counts the utterances that have it."""

    precision: float
    recall: float
    f1: float
    support: int


class Scores(BaseModel):
    """Scores of predicted categories, over the categories that occur among the true labels.

    `uar` is unweighted average recall and `macro_f1` the unweighted mean of the categories' F1. The confusion matrix
    has a row for each true category and a column for each predicted one, in the order of the label space.
    """

    count: int
    accuracy: float
    weighted_f1: float
    macro_f1: float
    uar: float
    classes: dict[str, ClassMetrics]
    confusion: list[list[int]]


class Metrics(Scores):
    """The scores, and the quality of the probabilities.

    `ece` is the expected calibration error over 15 bins (Guo et al. 2017); `nll` the mean negative log-likelihood in
    nats; `brier` the squared error of the probabilities, from 0 to 2 (Brier 1950); `aurc` the area under the
    risk-coverage curve (Geifman and El-Yaniv 2017).
    """

    ece: float
    nll: float
    brier: float
    aurc: float


class MultiLabelMetrics(BaseModel):
    """Metrics for utterances with several categories; `ranking_precision` is label-ranking average precision."""

    count: int
    micro_f1: float
    macro_f1: float
    ranking_precision: float


class Reliability(BaseModel):
    """The reliability curve: the mean confidence, the accuracy and the count of every bin that is not empty."""

    confidence: list[float]
    accuracy: list[float]
    count: list[int]


class RiskCoverage(BaseModel):
    """The risk-coverage curve: the share that is answered, and its share of wrong answers, by confidence threshold.

    There is one point for each confidence that occurs, the highest first.
    """

    threshold: list[float]
    coverage: list[float]
    risk: list[float]


def scores(labels: ArrayLike, predicted: ArrayLike, categories: Sequence[str] = EKMAN7.categories) -> Scores:
    """Returns the scores of predicted labels against true labels, both indexes of categories of shape [count]."""
    matrix = confusion_matrix(labels, predicted, labels=range(len(categories)))
    return Scores(
        count=int(matrix.sum()),
        **{name: float(value) for name, value in _from_confusion(matrix).items()},
        classes=_classes(matrix, categories),
        confusion=matrix.tolist(),
    )


def metrics(
    labels: ArrayLike, probabilities: NDArray[np.floating], categories: Sequence[str] = EKMAN7.categories
) -> Metrics:
    """Returns the metrics of probabilities against true labels.

    Args:
        labels: the true labels, of shape [count].
        probabilities: shape [count, categories].
        categories: the names of the categories.

    Raises:
        ValueError: there are no labels, or the shapes or labels do not fit the categories.
    """
    true, predicted = np.asarray(labels), probabilities.argmax(axis=1)
    _check(true, probabilities, categories)
    risk = risk_coverage(probabilities.max(axis=1), predicted == true)
    return Metrics(
        **dict(scores(true, predicted, categories)),
        ece=expected_calibration_error(true, probabilities),
        nll=float(log_loss(true, probabilities, labels=range(len(categories)))),
        brier=float(np.square(probabilities - np.eye(len(categories))[true]).sum(axis=1).mean()),
        aurc=area_under_risk_coverage(risk),
    )


def multilabel_metrics(
    true: NDArray[np.bool_], probabilities: NDArray[np.floating], threshold: float = 0.5
) -> MultiLabelMetrics:
    """Returns the metrics of utterances that may have several true categories.

    The macro F1 is over the categories that are true for some utterance. The ranking precision does not depend on the
    threshold (Tsoumakas et al. 2010).

    Args:
        true: shape [count, categories].
        probabilities: shape [count, categories].
        threshold: the lowest probability with which a category is predicted.
    """
    predicted, present = probabilities >= threshold, np.flatnonzero(true.any(axis=0))
    return MultiLabelMetrics(
        count=len(true),
        micro_f1=float(f1_score(true, predicted, average="micro", zero_division=0)),  # pyright: ignore[reportArgumentType]
        macro_f1=float(f1_score(true, predicted, labels=present, average="macro", zero_division=0)),  # pyright: ignore[reportArgumentType]
        ranking_precision=float(label_ranking_average_precision_score(true, probabilities)),
    )


def concordance(true: ArrayLike, predicted: ArrayLike) -> float:
    """Returns the concordance correlation coefficient of two sequences of numbers, from -1 to 1 (Lin 1989).

    The moments are divided by n, as in the publication. Pairs with a NaN are left out; without a pair the coefficient
    is NaN. Of two equal constants it is 1.
    """
    x, y = np.asarray(true, dtype=float), np.asarray(predicted, dtype=float)
    known = ~(np.isnan(x) | np.isnan(y))
    if not known.any():
        return float("nan")
    x, y = x[known], y[known]
    apart = x.var() + y.var() + (x.mean() - y.mean()) ** 2
    return float(2 * ((x - x.mean()) * (y - y.mean())).mean() / apart) if apart > 0 else 1.0


def reliability(true: NDArray[np.integer], probabilities: NDArray[np.floating], bins: int = 15) -> Reliability:
    """Returns the reliability curve over equal bins of confidence (Guo et al. 2017)."""
    confidence = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == true
    bin_of = np.minimum((confidence * bins).astype(int), bins - 1)
    members = [bin_of == b for b in np.unique(bin_of)]
    return Reliability(
        confidence=[float(confidence[some].mean()) for some in members],
        accuracy=[float(right[some].mean()) for some in members],
        count=[int(some.sum()) for some in members],
    )


def expected_calibration_error(true: NDArray[np.integer], probabilities: NDArray[np.floating], bins: int = 15) -> float:
    """Returns the mean distance of confidence from accuracy over equal bins of confidence (Guo et al. 2017)."""
    curve = reliability(true, probabilities, bins)
    return float(np.average(np.abs(np.subtract(curve.confidence, curve.accuracy)), weights=curve.count))


def risk_coverage(confidence: NDArray[np.floating], right: NDArray[np.bool_]) -> RiskCoverage:
    """Returns the risk-coverage curve of answers (Geifman and El-Yaniv 2017).

    Args:
        confidence: shape [count].
        right: whether each answer is right, shape [count].
    """
    order = np.argsort(-confidence, kind="stable")
    # A threshold answers all or none of the answers of equal confidence, so their order does not matter.
    last = np.flatnonzero(np.append(np.diff(confidence[order]) != 0, True))
    answered = last + 1
    return RiskCoverage(
        threshold=confidence[order][last].tolist(),
        coverage=(answered / len(order)).tolist(),
        risk=(np.cumsum(~right[order])[last] / answered).tolist(),
    )


def area_under_risk_coverage(curve: RiskCoverage) -> float:
    """Returns the mean risk over all thresholds; 0 if all answers are right (Geifman and El-Yaniv 2017)."""
    return float(np.sum(np.multiply(curve.risk, np.diff(curve.coverage, prepend=0.0))))


def bootstrap_intervals(
    labels: ArrayLike,
    probabilities: NDArray[np.floating],
    groups: Sequence[str] | None = None,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, Interval]:
    """Returns bootstrap intervals of accuracy, weighted F1, macro F1 and UAR.

    The intervals are percentile intervals (Efron and Tibshirani 1993, chapter 13). Utterances of one speaker are not
    independent, so groups are drawn with replacement, and then within each drawn group as many utterances as it has,
    also with replacement (Davison and Hinkley 1997, section 3.8; van der Leeden, Meijer and Busing 2008). With few
    groups, the second draw keeps the interval from being narrower than that of utterances without groups; it is rather
    too wide than too narrow. Where there are several seeds, seeds are drawn too and their answers pooled, so that the
    interval covers both the choice of speakers and the variance of training.

    Args:
        labels: the true labels, of shape [count].
        probabilities: shape [count, categories], or of several seeds [seeds, count, categories].
        groups: the speaker or dialogue of each utterance; None makes each utterance a group.
        resamples: how many samples to draw.
        seed: of the draws.
        level: the probability that an interval covers.

    Returns:
        The lower and upper bound by metric; empty if there is a single group, which says nothing about others.
    """
    names, group = np.unique(np.arange(np.size(labels)) if groups is None else groups, return_inverse=True)
    if len(names) < 2:
        return {}
    rng = np.random.default_rng(seed)
    confusions = _utterance_confusions(np.asarray(labels), probabilities)
    seeds = len(confusions)
    of_seed = rng.multinomial(seeds, np.full(seeds, 1 / seeds), resamples).astype(np.float32)
    matrices = np.tensordot(_draw_counts(group, resamples, rng), confusions, axes=(1, 1))
    drawn = np.einsum("rs,rsij->rij", of_seed, matrices)
    tails = [(1 - level) / 2, (1 + level) / 2]
    quantiles = {name: np.quantile(values, tails) for name, values in _from_confusion(drawn).items()}
    return {name: (float(low), float(high)) for name, (low, high) in quantiles.items()}


def _draw_counts(group: NDArray[np.integer], resamples: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Returns how often each utterance is drawn, of shape [resamples, utterances]: groups first, then within each."""
    sizes = np.bincount(group)
    of_group = rng.multinomial(len(sizes), np.full(len(sizes), 1 / len(sizes)), resamples)
    drawn = of_group[:, group].astype(np.float32)
    for number in np.flatnonzero(sizes > 1):
        # A group that is drawn k times is resampled k times, which is the same as one draw of k times its size.
        size = sizes[number]
        drawn[:, group == number] = rng.multinomial(of_group[:, number] * size, np.full(size, 1 / size))
    return drawn


def _from_confusion(matrix: NDArray[np.number]) -> dict[str, NDArray[np.floating]]:
    """Returns the scores of confusion matrices of shape [..., categories, categories], each of shape [...].

    The definitions are those of scikit-learn, which does not take thousands of resampled matrices at once.
    """
    right, support, predicted = matrix.diagonal(axis1=-2, axis2=-1), matrix.sum(axis=-1), matrix.sum(axis=-2)
    present = support > 0
    f1 = 2 * right / np.maximum(support + predicted, 1)
    recall = right / np.maximum(support, 1)
    return {
        "accuracy": right.sum(axis=-1) / support.sum(axis=-1),
        "weighted_f1": (f1 * support).sum(axis=-1) / support.sum(axis=-1),
        "macro_f1": (f1 * present).sum(axis=-1) / present.sum(axis=-1),
        "uar": recall.sum(axis=-1) / present.sum(axis=-1),
    }


def _utterance_confusions(true: NDArray[np.integer], probabilities: NDArray[np.floating]) -> NDArray[np.float32]:
    """Returns a confusion matrix per utterance, of shape [seeds, utterances, categories, categories]."""
    predicted = probabilities.reshape(-1, *probabilities.shape[-2:]).argmax(axis=-1)
    one_hot = np.eye(probabilities.shape[-1], dtype=np.float32)
    return one_hot[true][None, :, :, None] * one_hot[predicted][:, :, None, :]


def _classes(matrix: NDArray[np.integer], categories: Sequence[str]) -> dict[str, ClassMetrics]:
    """Returns the scores of the categories that occur among the true labels."""
    counts = zip(categories, matrix.diagonal(), matrix.sum(axis=1), matrix.sum(axis=0), strict=True)
    return {
        name: ClassMetrics(
            precision=right / max(predicted, 1),
            recall=right / support,
            f1=2 * right / (support + predicted),
            support=support,
        )
        for name, right, support, predicted in counts
        if support
    }


def _check(true: NDArray[np.integer], probabilities: NDArray[np.floating], categories: Sequence[str]) -> None:
    if probabilities.shape != (len(true), len(categories)) or not len(true):
        raise ValueError(
            f"probabilities of shape {probabilities.shape} do not fit {len(true)} labels and {len(categories)} "
            "categories: they need a row for each label, of which there must be one, and a column for each category"
        )
    if true.min() < 0 or true.max() >= len(categories):
        raise ValueError(f"labels from {true.min()} to {true.max()} do not index the {len(categories)} categories")
