"""Temperatures, the threshold of abstention, and the folds of cross-validation."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from training.data.corpus import Split, Utterance, target
from training.recipes.evaluate import softmax
from training.recipes.export_bundle import abstention_threshold, best_temperature
from training.recipes.train import fold_of, is_training

logits = arrays(np.float64, (3, 7), elements=st.floats(-30, 30))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_temperature_that_made_the_logits_is_found(temperature: float) -> None:
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
def test_a_higher_temperature_is_less_sure(values: NDArray[np.float64]) -> None:
    assert (softmax(values, 4).max(axis=1) <= softmax(values, 2).max(axis=1) + 1e-12).all()


def test_tenor_abstains_below_the_confidence_from_which_half_are_right() -> None:
    confidence = np.linspace(0.1, 1.0, 9001)
    threshold = abstention_threshold(confidence, confidence >= 0.6)
    assert threshold == pytest.approx(0.6, abs=0.011)


def test_well_calibrated_answers_are_given_from_about_one_half() -> None:
    rng = np.random.default_rng(0)
    confidence = rng.uniform(0.15, 1, 20_000)
    threshold = abstention_threshold(confidence, rng.random(20_000) < confidence)
    assert threshold == pytest.approx(0.5, abs=0.05)


def test_who_is_always_right_never_abstains_and_who_never_is_always_does() -> None:
    confidence = np.linspace(0.15, 0.95, 1000)
    assert abstention_threshold(confidence, np.ones(1000, bool)) == 0.0
    assert abstention_threshold(confidence, np.zeros(1000, bool)) > 0.95


def test_a_few_lucky_answers_do_not_lower_the_threshold() -> None:
    confidence = np.array([0.2] + [0.3] * 1000 + [0.6] * 1000)
    right = np.array([True] + [False] * 1000 + [True] * 1000)
    assert 0.3 < abstention_threshold(confidence, right) <= 0.6


def spoken(group: str, split: Split = Split.train) -> Utterance:
    return Utterance("1", "ravdess", "en", split, target(["joy"]), 1.0, group, audio=Path("1.wav"))


@given(st.integers(1, 99).map("actor {:02}".format) | st.text(min_size=1), st.integers(2, 7))
def test_a_speaker_is_in_one_fold_and_trains_in_all_others(group: str, folds: int) -> None:
    utterance = spoken(group)
    trains = [is_training(utterance, fold, folds) for fold in range(folds)]
    assert trains.count(False) == 1
    assert trains.index(False) == fold_of(utterance, folds)


def test_in_cross_validation_those_who_test_never_train_and_texts_keep_their_split() -> None:
    assert not any(is_training(spoken("actor 21", Split.test), fold, 5) for fold in range(5))
    text = Utterance("1", "meld", "en", Split.validation, target(["joy"]), 1.0, "1", text="1")
    assert not any(is_training(text, fold, 5) for fold in range(5))
    assert not is_training(spoken("actor 19", Split.validation), None, 5)
