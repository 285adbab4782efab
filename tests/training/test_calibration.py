"""Temperatures, the threshold of abstention, and the folds of cross-validation."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from training.args import FoldArgs
from training.calibration import (
    abstention_threshold,
    best_temperature,
    calibrate,
    risk_bound,
    selective_accuracy,
    softmax,
)
from training.data.splits import fold_of, is_training
from training.data.utterance import Split, Utterance, ekman_target

logits = arrays(np.float64, (3, 7), elements=st.floats(-30, 30))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_best_temperature_is_the_one_that_made_the_logits(temperature: float) -> None:
    rng = np.random.default_rng(0)
    true = rng.standard_normal((4_000, 7)) * 2
    labels = np.array([rng.choice(7, p=row) for row in softmax(true)])
    assert best_temperature(labels, true * temperature) == pytest.approx(temperature, rel=0.08)


@given(logits, st.floats(0.2, 10))
def test_probabilities_sum_to_one_and_keep_the_order(values: NDArray[np.float64], temperature: float) -> None:
    shares = softmax(values, temperature)
    assert np.isfinite(shares).all()
    assert shares.sum(axis=1) == pytest.approx(1)
    assert (shares[range(3), values.argmax(axis=1)] == shares.max(axis=1)).all()
    np.testing.assert_allclose(softmax(values + 100, temperature), shares, atol=1e-9)


@given(logits)
def test_a_higher_temperature_lowers_the_confidence(values: NDArray[np.float64]) -> None:
    assert (softmax(values, 4).max(axis=1) <= softmax(values, 2).max(axis=1) + 1e-12).all()


def test_the_threshold_is_the_lowest_that_keeps_the_accepted_risk() -> None:
    rng = np.random.default_rng(0)
    confidence = rng.uniform(0, 1, 20_000)
    right = confidence >= 0.6  # below it all is wrong, hence from 0.4 on a third
    assert abstention_threshold(confidence, right, accepted_risk=1 / 3) == pytest.approx(0.4, abs=0.02)
    assert abstention_threshold(confidence, right, accepted_risk=0.01) == pytest.approx(0.6, abs=0.02)


def test_by_default_two_of_three_answers_above_the_threshold_are_right() -> None:
    rng = np.random.default_rng(0)
    confidence = rng.beta(3, 3, 20_000)  # most answers are neither sure nor random
    threshold = abstention_threshold(confidence, rng.random(20_000) < confidence)
    # Calibrated answers are as often right as their confidence says.
    assert confidence[confidence >= threshold].mean() == pytest.approx(2 / 3, abs=0.02)


def test_the_guaranteed_risk_holds_on_new_answers() -> None:
    kept = []
    for seed in range(200):
        rng = np.random.default_rng(seed)
        confidence = rng.uniform(0.15, 1, 300)
        threshold = abstention_threshold(confidence, rng.random(300) < confidence, accepted_risk=0.3, level=0.9)
        kept.append(1 - (threshold + 1) / 2 <= 0.3)
    assert np.mean(kept) >= 0.9


def test_fewer_answers_need_a_higher_threshold() -> None:
    rng = np.random.default_rng(0)
    confidence = rng.uniform(0.15, 1, 20_000)
    right = rng.random(20_000) < confidence
    thresholds = [abstention_threshold(confidence[:count], right[:count], 0.3) for count in (100, 1_000, 20_000)]
    assert thresholds == sorted(thresholds, reverse=True)
    assert thresholds[0] > thresholds[-1]


def test_the_threshold_is_0_if_all_answers_are_right_and_1_if_all_are_wrong() -> None:
    confidence = np.linspace(0.15, 0.95, 1000)
    assert abstention_threshold(confidence, np.ones(1000, bool)) == 0.0
    assert abstention_threshold(confidence, np.zeros(1000, bool)) == 1.0


def test_a_few_lucky_answers_do_not_lower_the_threshold() -> None:
    confidence = np.array([0.2] + [0.3] * 1000 + [0.6] * 1000)
    right = np.array([True] + [False] * 1000 + [True] * 1000)
    assert 0.3 < abstention_threshold(confidence, right) <= 0.6
    assert abstention_threshold(np.array([0.9, 0.9]), np.array([True, True])) == 1.0


@pytest.mark.parametrize("risk", [0.0, -0.1, 1.5])
def test_an_accepted_risk_that_is_not_a_share_is_refused(risk: float) -> None:
    with pytest.raises(ValueError, match=f"accepted_risk is {risk}"):
        abstention_threshold(np.array([0.5]), np.array([True]), risk)


@pytest.mark.parametrize(("wrong", "count", "bound"), [(0, 10, 0.2589), (5, 10, 0.7776), (10, 10, 1.0), (0, 0, 1.0)])
def test_the_bound_of_clopper_and_pearson(wrong: int, count: int, bound: float) -> None:
    # Of no wrong one among ten: 1 - 0.05 ** (1 / 10).
    assert risk_bound(np.arange(count) >= wrong) == pytest.approx(bound, abs=1e-4)


@settings(deadline=None)
@given(st.lists(st.booleans(), min_size=1), st.floats(0.5, 0.99))
def test_the_risk_bound_is_above_the_observed_risk_and_rises_with_the_level(right: list[bool], level: float) -> None:
    seen = 1 - np.mean(right)
    assert seen <= risk_bound(np.array(right), level) <= risk_bound(np.array(right), (1 + level) / 2) <= 1


def test_the_curve_of_selective_accuracy_ends_where_nothing_is_answered() -> None:
    points = selective_accuracy(np.array([0.25, 0.35, 0.55, 0.55]), np.array([False, True, True, True]))
    found = [(point.threshold, point.coverage, point.accuracy) for point in points]
    assert found[0] == (0.0, 1.0, 0.75)
    assert found[-1] == (0.5, 0.5, 1.0)
    assert [coverage for _, coverage, _ in found] == [1.0, 1.0, 1.0, 0.75, 0.5, 0.5]


def predictions(count: int, temperature: float, seed: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    rng = np.random.default_rng(seed)
    true = rng.standard_normal((count, 7)) * 2
    return np.array([rng.choice(7, p=row) for row in softmax(true)]), true * temperature


def test_each_set_of_modalities_has_a_temperature_and_all_share_one_threshold() -> None:
    found = calibrate({"text": predictions(3_000, 2.0, 0), "audio": predictions(3_000, 0.5, 1)}, accepted_risk=0.2)
    assert found.temperature == 1.0
    assert found.text_temperature == pytest.approx(2.0, rel=0.1)
    assert found.audio_temperature == pytest.approx(0.5, rel=0.1)
    assert (found.accepted_risk, found.risk_level) == (0.2, 0.95)
    assert 0 < found.abstain_below < 1
    assert found.coverage is not None
    near = [point for point in found.selective_accuracy if abs(point.threshold - found.abstain_below) <= 0.1]
    assert min(point.coverage for point in near) <= found.coverage <= max(point.coverage for point in near)
    assert max(point.accuracy for point in near) >= 0.8


def test_a_risk_that_no_threshold_keeps_is_a_warning() -> None:
    labels, logits = predictions(500, 1.0, 0)
    with pytest.warns(UserWarning, match="no threshold keeps the risk at 0.01"):
        found = calibrate({"text": ((labels + 1) % 7, logits)}, accepted_risk=0.01)
    assert (found.abstain_below, found.coverage) == (1.0, 0.0)


def test_calibration_without_validation_data_is_refused() -> None:
    with pytest.raises(ValueError, match="validation split"):
        calibrate({})


def spoken(group: str, split: Split = Split.train) -> Utterance:
    return Utterance("1", "ravdess", "en", split, ekman_target(["joy"]), 1.0, group, "joy", audio=Path("1.wav"))


@given(st.integers(1, 99).map("actor {:02}".format) | st.text(min_size=1), st.integers(2, 7))
def test_a_speaker_is_in_one_fold_and_trains_in_all_others(group: str, folds: int) -> None:
    utterance = spoken(group)
    trains = [is_training(utterance, FoldArgs(index=fold, count=folds)) for fold in range(folds)]
    assert trains.count(False) == 1
    assert trains.index(False) == fold_of(utterance, folds)


def test_in_cross_validation_test_speakers_never_train_and_texts_keep_their_split() -> None:
    assert not any(is_training(spoken("actor 21", Split.test), FoldArgs(index=fold)) for fold in range(5))
    text = Utterance("1", "meld", "en", Split.validation, ekman_target(["joy"]), 1.0, "1", "joy", text="1")
    assert not any(is_training(text, FoldArgs(index=fold)) for fold in range(5))
    assert not is_training(spoken("actor 19", Split.validation))
