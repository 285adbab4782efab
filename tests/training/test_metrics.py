"""The figures, against values worked out by hand and the laws they obey."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from training.metrics import expected_calibration_error, metrics


def certain(predicted: list[int]) -> NDArray[np.float64]:
    return np.eye(7)[predicted]


def test_figures_worked_out_by_hand() -> None:
    found = metrics([0, 0, 1, 3], certain([0, 1, 1, 3]))
    # F1: anger 2/3 (precision 1, recall 1/2), disgust 2/3 (1/2, 1), joy 1.
    assert found.count == 4
    assert found.accuracy == pytest.approx(3 / 4)
    assert found.weighted_f1 == pytest.approx((2 * 2 / 3 + 2 / 3 + 1) / 4)
    assert found.macro_f1 == pytest.approx((2 / 3 + 2 / 3 + 1) / 3)
    assert found.uar == pytest.approx((1 / 2 + 1 + 1) / 3)
    assert found.recall == {"anger": 0.5, "disgust": 1.0, "joy": 1.0}
    assert found.ece == pytest.approx(1 / 4)
    assert found.confusion[0] == [1, 1, 0, 0, 0, 0, 0]
    assert np.array(found.confusion).shape == (7, 7)


def test_a_category_that_does_not_occur_counts_only_where_it_is_wrongly_named() -> None:
    found = metrics([0, 0], certain([0, 4]))
    assert found.uar == pytest.approx(1 / 2)
    assert found.macro_f1 == pytest.approx(2 / 3)
    assert set(found.recall) == {"anger"}


def test_calibration_error_worked_out_by_hand() -> None:
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4], [0.4, 0.6]])
    true = np.array([0, 1, 0, 0])
    # At 0.9 half are right, and so at 0.6: gaps of 0.4 and 0.1, half of the answers each.
    assert expected_calibration_error(true, probabilities) == pytest.approx(0.25)


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


@given(st.lists(st.integers(0, 6), min_size=1, max_size=20))
def test_who_is_right_and_sure_has_perfect_figures(labels: list[int]) -> None:
    found = metrics(labels, certain(labels))
    assert (found.accuracy, found.weighted_f1, found.macro_f1, found.uar, found.ece) == (1, 1, 1, 1, 0)


@given(answers)
def test_all_shares_are_between_nothing_and_one(given_: Answers) -> None:
    true, probabilities = given_
    found = metrics(true.tolist(), probabilities)
    for share in (found.accuracy, found.weighted_f1, found.macro_f1, found.uar, found.ece, *found.recall.values()):
        assert 0 <= share <= 1 + 1e-9
    assert sum(map(sum, found.confusion)) == len(true)
