"""Loops of a decoder."""

import pytest

from shared.modeling.repetition import Repetition, compresses, find_loop, find_repetition


@pytest.mark.parametrize(
    ("items", "found"),
    [
        ([1, 2, 3, 4, 5], None),
        ([1, 1], None),
        ([7, 1, 1, 1, 8], (1, 1, 3)),
        ([7, 1, 2, 3, 1, 2, 3, 1, 2, 3], (1, 3, 9)),
        ([1, 2, 1, 2, 1, 2, 1], (0, 2, 7)),  # the last occurrence is cut short
        ([1, 1, 1, 2, 3, 2, 3, 2, 3, 2, 3], (3, 2, 8)),
    ],
)
def test_the_longest_repetition_is_found(items: list[int], found: Repetition | None) -> None:
    assert find_repetition(items) == found


BYE = [10, 11]
"""A word of two tokens."""


def test_a_word_that_is_repeated_faster_than_people_speak_is_a_loop() -> None:
    assert find_loop(BYE * 6, seconds=0.4) == (0, 2, 12)


def test_a_word_that_is_repeated_as_people_do_is_none() -> None:
    assert find_loop(BYE * 6, seconds=3.0) is None


def test_a_text_without_an_end_is_a_loop_if_most_of_it_repeats() -> None:
    sentence = list(range(8))
    assert find_loop([20, 21, *sentence * 10], seconds=10.0, endless=True) == (2, 8, 80)
    assert find_loop(list(range(200)), seconds=10.0, endless=True) is None
    assert find_loop([*range(20, 220), 1, 1, 1], seconds=10.0, endless=True) is None


def test_a_text_of_many_tokens_for_each_letter_is_no_loop() -> None:
    # Two equal tokens in a row are usual where a letter has several.
    assert find_loop([1, 2, 2, 3, 4, 5, 5, 6, 7, 8] * 1 + list(range(100, 220)), seconds=5.0) is None


def test_long_repeated_texts_compress() -> None:
    assert compresses("no no no " * 20)
    assert not compresses("I have been waiting for an hour, and nobody has called me back.")
