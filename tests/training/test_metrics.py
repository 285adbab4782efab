"""The metrics, against values computed by hand, scikit-learn, and their mathematical properties."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from sklearn.metrics import accuracy_score, f1_score, precision_recall_fscore_support, recall_score

from training.metrics import (
    Metrics,
    area_under_risk_coverage,
    bootstrap_intervals,
    concordance,
    expected_calibration_error,
    metrics,
    multilabel_metrics,
    reliability,
    risk_coverage,
    scores,
)


def certain(predicted: list[int]) -> NDArray[np.float64]:
    return np.eye(7)[predicted]


def test_metrics_computed_by_hand() -> None:
    found = metrics([0, 0, 1, 3], certain([0, 1, 1, 3]))
    # F1: anger 2/3 (precision 1, recall 1/2), disgust 2/3 (1/2, 1), joy 1.
    assert found.count == 4
    assert found.accuracy == pytest.approx(3 / 4)
    assert found.weighted_f1 == pytest.approx((2 * 2 / 3 + 2 / 3 + 1) / 4)
    assert found.macro_f1 == pytest.approx((2 / 3 + 2 / 3 + 1) / 3)
    assert found.uar == pytest.approx((1 / 2 + 1 + 1) / 3)
    assert {name: of.recall for name, of in found.classes.items()} == {"anger": 0.5, "disgust": 1.0, "joy": 1.0}
    assert {name: of.precision for name, of in found.classes.items()} == {"anger": 1.0, "disgust": 0.5, "joy": 1.0}
    assert {name: of.support for name, of in found.classes.items()} == {"anger": 2, "disgust": 1, "joy": 1}
    assert found.classes["anger"].f1 == pytest.approx(2 / 3)
    assert found.ece == pytest.approx(1 / 4)
    assert found.brier == pytest.approx(2 / 4)
    assert found.confusion[0] == [1, 1, 0, 0, 0, 0, 0]
    assert np.array(found.confusion).shape == (7, 7)


def test_scores_need_no_probabilities() -> None:
    found = scores([1, 1, 1, 0], [1, 1, 0, 0], ["fear", "joy"])
    assert (found.count, found.accuracy) == (4, 0.75)
    assert found.weighted_f1 == pytest.approx((3 * 0.8 + 2 / 3) / 4)
    assert found.uar == pytest.approx((1 + 2 / 3) / 2)
    assert found.classes["joy"].recall == pytest.approx(2 / 3)
    assert found.confusion == [[1, 0], [1, 2]]


def test_a_category_that_does_not_occur_counts_only_where_it_is_wrongly_predicted() -> None:
    found = metrics([0, 0], certain([0, 4]))
    assert found.uar == pytest.approx(1 / 2)
    assert found.macro_f1 == pytest.approx(2 / 3)
    assert set(found.classes) == {"anger"}


def test_likelihood_and_squared_error_computed_by_hand() -> None:
    found = metrics([0, 1], np.array([[0.5, 0.5], [0.25, 0.75]]), ["calm", "loud"])
    assert found.nll == pytest.approx(-(np.log(0.5) + np.log(0.75)) / 2)
    assert found.brier == pytest.approx((2 * 0.25 + 2 * 0.0625) / 2)
    assert set(found.classes) == {"calm", "loud"}


@pytest.mark.parametrize(
    ("labels", "probabilities", "message"),
    [([0, 1], np.eye(7)[[0]], "2 labels"), ([0], np.eye(6)[[0]], "7 categories"), ([], np.zeros((0, 7)), "0 labels")],
    ids=["too few rows", "too few columns", "nothing"],
)
def test_probabilities_that_do_not_fit_are_refused(
    labels: list[int], probabilities: NDArray[np.float64], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        metrics(labels, probabilities)


def test_a_label_that_is_no_category_is_refused() -> None:
    with pytest.raises(ValueError, match="labels from 0 to 7 do not index the 7 categories"):
        metrics([0, 7], certain([0, 1]))


def test_metrics_of_utterances_with_several_categories() -> None:
    true = np.array([[1, 1, 0], [0, 1, 0]], dtype=bool)
    found = multilabel_metrics(true, np.array([[0.9, 0.2, 0.6], [0.1, 0.7, 0.2]]))
    # Predicted are categories 1 and 3 of the first and 2 of the second: two of three true ones, and one wrong.
    assert found.micro_f1 == pytest.approx(2 * 2 / (2 * 2 + 1 + 1))
    # The first category 1, the second 2/3; the third is nowhere true.
    assert found.macro_f1 == pytest.approx((1 + 2 / 3) / 2)
    # Ranks of the first's true ones are 1 and 3: (1/1 + 2/3) / 2.
    assert found.ranking_precision == pytest.approx(((1 + 2 / 3) / 2 + 1) / 2)


def test_a_lower_threshold_predicts_more_categories() -> None:
    true, probabilities = np.array([[1, 1, 0]], dtype=bool), np.array([[0.5, 0.4, 0.1]])
    assert multilabel_metrics(true, probabilities, threshold=0.3).micro_f1 == 1
    assert multilabel_metrics(true, probabilities, threshold=0.45).micro_f1 == pytest.approx(2 / 3)


def test_concordance_computed_by_hand() -> None:
    # Means 2 and 3, variances 2/3 each, covariance 2/3: 2 * 2/3 / (2/3 + 2/3 + 1).
    assert concordance([1, 2, 3], [2, 3, 4]) == pytest.approx(4 / 7)
    assert concordance([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)
    assert concordance([1, np.nan, 2, 3], [2, 9, 3, 4]) == pytest.approx(4 / 7)
    assert np.isnan(concordance([np.nan], [1.0]))


numbers = arrays(np.float64, st.shared(st.integers(1, 20), key="n"), elements=st.floats(-5, 5, width=16))


@given(numbers, numbers)
def test_concordance_is_bounded_symmetric_and_one_with_itself(x: NDArray[np.float64], y: NDArray[np.float64]) -> None:
    assert concordance(x, x) == pytest.approx(1)
    assert -1 - 1e-9 <= concordance(x, y) <= 1 + 1e-9
    assert concordance(x, y) == pytest.approx(concordance(y, x), abs=1e-9)


def test_risk_and_coverage_computed_by_hand() -> None:
    curve = risk_coverage(np.array([0.5, 0.9, 0.7, 0.7]), np.array([False, True, True, False]))
    assert curve.threshold == [0.9, 0.7, 0.5]
    assert curve.coverage == [0.25, 0.75, 1.0]
    assert curve.risk == pytest.approx([0, 1 / 3, 1 / 2])
    assert area_under_risk_coverage(curve) == pytest.approx((0 + 1 / 3 + 1 / 3 + 1 / 2) / 4)


def test_calibration_error_computed_by_hand() -> None:
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4], [0.4, 0.6]])
    true = np.array([0, 1, 0, 0])
    # At 0.9 half are right, and so at 0.6: gaps of 0.4 and 0.1, half of the answers each.
    assert expected_calibration_error(true, probabilities) == pytest.approx(0.25)


def test_the_reliability_curve_has_a_point_for_each_bin_that_is_not_empty() -> None:
    curve = reliability(np.array([0, 1, 0]), np.array([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4]]), bins=10)
    assert curve.confidence == pytest.approx([0.6, 0.9])
    assert curve.accuracy == pytest.approx([1.0, 0.5])
    assert curve.count == [1, 2]


answers = st.lists(
    st.tuples(st.integers(0, 6), st.lists(st.floats(0.001, 1), min_size=7, max_size=7)), min_size=1, max_size=30
).map(lambda rows: (np.array([label for label, _ in rows]), _shares(np.array([weights for _, weights in rows]))))


def _shares(weights: NDArray[np.float64]) -> NDArray[np.float64]:
    return weights / weights.sum(axis=1, keepdims=True)


Answers = tuple[NDArray[np.int64], NDArray[np.float64]]


@given(answers, st.integers(1, 20))
def test_calibration_error_is_at_least_the_overall_gap_and_at_most_one(given_: Answers, bins: int) -> None:
    true, probabilities = given_
    error = expected_calibration_error(true, probabilities, bins)
    gap = abs((probabilities.argmax(axis=1) == true).mean() - probabilities.max(axis=1).mean())
    assert gap - 1e-9 <= error <= 1 + 1e-9
    assert expected_calibration_error(true, probabilities, bins=1) == pytest.approx(gap)


@given(answers)
def test_calibration_error_does_not_depend_on_the_order(given_: Answers) -> None:
    true, probabilities = given_
    order = np.random.default_rng(len(true)).permutation(len(true))
    assert expected_calibration_error(true[order], probabilities[order]) == pytest.approx(
        expected_calibration_error(true, probabilities)
    )


@settings(deadline=None)
@given(answers)
def test_the_scores_are_those_of_scikit_learn(given_: Answers) -> None:
    true, probabilities = given_
    found, predicted, present = metrics(true, probabilities), probabilities.argmax(axis=1), np.unique(true)
    assert found.accuracy == pytest.approx(accuracy_score(true, predicted))
    assert found.weighted_f1 == pytest.approx(f1_score(true, predicted, average="weighted"))
    assert found.macro_f1 == pytest.approx(f1_score(true, predicted, labels=present, average="macro"))
    assert found.uar == pytest.approx(recall_score(true, predicted, labels=present, average="macro"))
    expected = precision_recall_fscore_support(true, predicted, labels=present, zero_division=0)  # pyright: ignore[reportArgumentType]
    for name, values in zip(("precision", "recall", "f1", "support"), expected, strict=True):
        assert [getattr(of, name) for of in found.classes.values()] == pytest.approx(values)


@settings(deadline=None)
@given(answers)
def test_no_metric_depends_on_the_order(given_: Answers) -> None:
    true, probabilities = given_
    order = np.random.default_rng(len(true)).permutation(len(true))
    assert flat(metrics(true[order], probabilities[order])) == pytest.approx(flat(metrics(true, probabilities)))


def flat(found: Metrics) -> dict[str, float]:
    return {name: value for name, value in found if isinstance(value, float)}


@given(answers)
def test_coverage_grows_as_the_threshold_falls(given_: Answers) -> None:
    true, probabilities = given_
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == true
    curve = risk_coverage(confidence, right)
    assert curve.threshold == sorted(set(confidence.tolist()), reverse=True)
    assert curve.coverage == sorted(curve.coverage)
    assert curve.coverage[-1] == 1
    assert curve.risk[-1] == pytest.approx(1 - right.mean())
    assert min(curve.risk) - 1e-9 <= area_under_risk_coverage(curve) <= max(curve.risk) + 1e-9


@settings(deadline=None)
@given(answers)
def test_intervals_are_shares_and_the_same_for_the_same_seed(given_: Answers) -> None:
    true, probabilities = given_
    found = bootstrap_intervals(true, probabilities, resamples=50)
    assert found == bootstrap_intervals(true, probabilities, resamples=50)
    assert set(found) == (set() if len(true) < 2 else {"accuracy", "weighted_f1", "macro_f1", "uar"})
    for low, high in found.values():
        assert 0 <= low <= high <= 1 + 1e-9


@settings(deadline=None)
@given(answers)
def test_the_interval_of_accuracy_holds_the_accuracy(given_: Answers) -> None:
    true, probabilities = given_
    if len(true) > 1:
        low, high = bootstrap_intervals(true, probabilities)["accuracy"]
        assert low <= metrics(true, probabilities).accuracy <= high


def test_an_interval_has_the_width_of_the_normal_approximation() -> None:
    labels = np.zeros(400, dtype=int)
    low, high = bootstrap_intervals(labels, certain([0, 1] * 200), resamples=4000)["accuracy"]
    width = 2 * 1.96 * np.sqrt(0.25 / 400)
    assert high - low == pytest.approx(width, rel=0.1)
    assert (low + high) / 2 == pytest.approx(0.5, abs=0.01)


def test_utterances_of_one_speaker_are_drawn_together() -> None:
    labels, predicted = np.zeros(400, dtype=int), [0] * 200 + [1] * 200
    alone = bootstrap_intervals(labels, certain(predicted))["accuracy"]
    speakers = [f"speaker {i // 50}" for i in range(400)]
    low, high = bootstrap_intervals(labels, certain(predicted), speakers)["accuracy"]
    assert high - low > 3 * (alone[1] - alone[0])
    assert bootstrap_intervals(labels, certain(predicted), ["one"] * 400) == {}


@pytest.mark.parametrize(("first", "second"), [(0.7, 0.7), (0.5, 0.9), (0.95, 0.3)])
def test_intervals_over_two_speakers_are_no_narrower_than_those_over_their_clips(first: float, second: float) -> None:
    labels = np.tile(np.arange(4), 30)
    right = np.random.default_rng(0).random(120) < np.repeat([first, second], 60)
    answered = certain(np.where(right, labels, (labels + 1) % 4).tolist())
    of_clips = bootstrap_intervals(labels, answered, resamples=3000)
    of_speakers = bootstrap_intervals(labels, answered, ["a"] * 60 + ["b"] * 60, resamples=3000)
    for name, (low, high) in of_clips.items():
        by_speakers = of_speakers[name][1] - of_speakers[name][0]
        assert by_speakers >= 0.95 * (high - low), name  # up to the variance of the draws


def test_a_speaker_drawn_twice_has_clips_drawn_anew() -> None:
    labels, predicted = np.zeros(40, dtype=int), [0, 1] * 20
    low, high = bootstrap_intervals(labels, certain(predicted), ["a"] * 20 + ["b"] * 20, resamples=4000)["accuracy"]
    # Both speakers are alike, so only their clips vary.
    assert high - low == pytest.approx(2 * 1.96 * np.sqrt(0.25 / 40), rel=0.1)


def test_an_interval_over_seeds_covers_their_variance() -> None:
    labels = np.zeros(100, dtype=int)
    lucky, unlucky = certain([0] * 100), certain([1] * 100)
    same = bootstrap_intervals(labels, np.stack([lucky, lucky]))["accuracy"]
    assert same == (1, 1)
    assert bootstrap_intervals(labels, np.stack([lucky, unlucky]))["accuracy"] == (0, 1)


@settings(deadline=None)
@given(st.lists(st.integers(0, 6), min_size=1, max_size=20))
def test_correct_answers_of_confidence_1_have_perfect_metrics(labels: list[int]) -> None:
    found = metrics(labels, certain(labels))
    assert (found.accuracy, found.weighted_f1, found.macro_f1, found.uar) == (1, 1, 1, 1)
    assert (found.ece, found.brier, found.aurc) == (0, 0, 0)
    assert found.nll == pytest.approx(0, abs=1e-9)


@settings(deadline=None)
@given(answers)
def test_every_metric_that_is_a_share_is_between_0_and_1(given_: Answers) -> None:
    true, probabilities = given_
    found = metrics(true.tolist(), probabilities)
    recalls = [of.recall for of in found.classes.values()]
    for share in (found.accuracy, found.weighted_f1, found.macro_f1, found.uar, found.ece, found.aurc, *recalls):
        assert 0 <= share <= 1 + 1e-9
    assert 0 <= found.brier <= 2
    assert sum(map(sum, found.confusion)) == len(true)
