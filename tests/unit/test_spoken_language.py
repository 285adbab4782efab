"""The language of a clip, from the probabilities in its stretches and from earlier turns."""

import pytest

from shared.modeling.spoken_language import combine, likeliest, stretch_language


def test_a_single_stretch_keeps_its_probabilities() -> None:
    found = {"en": 0.6, "de": 0.3, "nl": 0.1}
    assert combine([(2.0, found)]) == pytest.approx(found)


def test_all_stretches_count_and_not_only_the_longest() -> None:
    laughter, speech = {"de": 0.5, "en": 0.3, "fr": 0.2}, {"en": 0.97, "de": 0.02, "fr": 0.01}
    language, probability = likeliest(combine([(6.0, laughter), (3.0, speech), (3.0, speech)]))
    assert language == "en"
    assert probability > 0.9


def test_a_stretch_without_a_language_does_not_rule_one_out() -> None:
    noise = {"ja": 1.0}
    speech = {"en": 0.999, "ja": 0.001}
    assert likeliest(combine([(2.0, noise), (4.0, speech), (4.0, speech)]))[0] == "en"


def test_the_languages_of_earlier_turns_are_likelier() -> None:
    unclear = {"cy": 0.5, "en": 0.3, "de": 0.2}
    assert likeliest(combine([(0.5, unclear)]))[0] == "cy"
    assert likeliest(combine([(0.5, unclear)], ["en", "en"]))[0] == "en"


def test_a_clear_turn_in_another_language_is_believed() -> None:
    spanish = {"es": 0.99, "en": 0.002, "pt": 0.008}
    assert likeliest(combine([(3.0, spanish)], ["en"] * 4))[0] == "es"


@pytest.mark.parametrize(
    ("seconds", "found", "language"),
    [
        (3.0, {"de": 0.98, "en": 0.01, "nl": 0.01}, "de"),
        (3.0, {"de": 0.7, "en": 0.2, "nl": 0.1}, "en"),
        (0.4, {"de": 0.98, "en": 0.01, "nl": 0.01}, "en"),
    ],
)
def test_a_stretch_has_a_language_of_its_own_only_if_that_is_certain(
    seconds: float, found: dict[str, float], language: str
) -> None:
    assert stretch_language(seconds, found, "en") == language
