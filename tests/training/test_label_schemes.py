"""Label schemes: which labels map to which categories, and which are left out."""

from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from hypothesis import assume, given
from hypothesis import strategies as st
from pydantic import ValidationError

from shared.domain.emotion import EKMAN7
from training.data.corpora import xed
from training.data.label_schemes import SCHEMES, LabelScheme, relabel, scheme_named
from training.data.registry import load
from training.data.utterance import Split, Utterance, ekman_target


def labels_by_category(utterances: list[Utterance], scheme: LabelScheme) -> dict[str, set[str]]:
    """The corpus labels of every category."""
    found: dict[str, set[str]] = {}
    for utterance in utterances:
        found.setdefault(scheme.space.categories[utterance.label], set()).add(utterance.label_name)
    return found


def test_the_scheme_valence3_maps_the_seven_categories_to_three(data: Path) -> None:
    utterances = load(data, ["ravdess"], SCHEMES["valence3"])
    assert labels_by_category(utterances, SCHEMES["valence3"]) == {
        "negative": {"sad", "angry", "fearful", "disgust"},
        "neutral": {"neutral", "calm"},
        "positive": {"happy", "surprised"},
    }


def test_excitement_is_happiness_among_iemocaps_four(data: Path) -> None:
    assert labels_by_category(load(data, ["iemocap"], SCHEMES["four"]), SCHEMES["four"]) == {
        "anger": {"ang"},
        "joy": {"hap", "exc"},
        "neutral": {"neu"},
        "sadness": {"sad"},
    }


def test_urdu_and_punjabi_have_the_same_four(data: Path) -> None:
    for corpus in ("urdu_latif", "punjabi_rasa"):
        assert set(labels_by_category(load(data, [corpus], SCHEMES["four"]), SCHEMES["four"])) == set(
            SCHEMES["four"].space.categories
        )


def test_ravdess_has_eight_categories_of_its_own(data: Path) -> None:
    utterances = load(data, ["ravdess"], SCHEMES["ravdess8"])
    assert labels_by_category(utterances, SCHEMES["ravdess8"]) == {
        label: {label} for label in SCHEMES["ravdess8"].space.categories
    }
    assert len(utterances) == len(load(data, ["ravdess"]))


def test_the_scheme_indonesian6_maps_ravdess_except_calm_and_surprised(data: Path) -> None:
    six = SCHEMES["indonesian6"]
    assert set(labels_by_category(load(data, ["indonesian"], six), six)) == set(six.space.categories)
    assert labels_by_category(load(data, ["ravdess"], six), six) == {
        "marah": {"angry"},
        "jijik": {"disgust"},
        "takut": {"fearful"},
        "bahagia": {"happy"},
        "netral": {"neutral"},
        "sedih": {"sad"},
    }


def test_a_scheme_can_be_written_in_a_configuration(data: Path) -> None:
    config = yaml.safe_load("""
        space: {name: arousal, categories: [low, high]}
        mapping: {Boredom: low, Sad: low, Angry: high, Fear: high}
    """)
    arousal = LabelScheme.model_validate(config)
    assert labels_by_category(load(data, ["urduser"], arousal), arousal) == {
        "low": {"Boredom", "Sad"},
        "high": {"Angry", "Fear"},
    }


def test_a_scheme_maps_to_its_own_categories_only() -> None:
    space = {"name": "two", "categories": ["low", "high"]}
    with pytest.raises(ValidationError, match="'hihg' is not a category of two: use one of low, high"):
        LabelScheme.model_validate({"space": space, "mapping": {"Angry": "hihg"}})


def test_a_scheme_is_found_by_name_or_given() -> None:
    assert scheme_named("four") is SCHEMES["four"]
    assert scheme_named(SCHEMES["four"]) is SCHEMES["four"]
    with pytest.raises(ValueError, match="'five' is not a label scheme: use one of ekman7, valence3"):
        scheme_named("five")


def test_the_error_for_a_corpus_without_mapped_labels_lists_its_labels(data: Path) -> None:
    with pytest.raises(ValueError, match="indonesian6 maps none of urdu_latif's labels: Angry, Happy"):
        load(data, ["ravdess", "urdu_latif"], SCHEMES["indonesian6"])


def test_several_labels_share_the_target_equally() -> None:
    plutchik = LabelScheme.model_validate(
        {
            "space": {"name": "plutchik", "categories": list(xed.EMOTIONS.values())},
            "mapping": {name: name for name in xed.EMOTIONS.values()},
        }
    )
    [hope] = relabel([utterance(None, "anticipation, trust")], plutchik)
    assert hope.target == (0, 0.5, 0, 0, 0, 0, 0, 0.5)


def utterance(categories: list[str] | None, label_name: str) -> Utterance:
    return Utterance("1", "xed", "en", Split.train, ekman_target(categories or ()), None, "1", label_name)


@given(st.sets(st.sampled_from(EKMAN7.categories), min_size=1))
def test_the_scheme_ekman7_does_not_change_targets(categories: set[str]) -> None:
    before = utterance(sorted(categories), ", ".join(sorted(categories)))
    [after] = relabel([before], SCHEMES["ekman7"])
    assert after.target == pytest.approx(before.target)
    assert replace(after, target=before.target) == before


@given(st.sets(st.sampled_from(EKMAN7.categories), min_size=1), st.sampled_from(sorted(SCHEMES)))
def test_shares_over_any_scheme_sum_to_one(categories: set[str], name: str) -> None:
    labelled = utterance(sorted(categories), ", ".join(sorted(categories)))
    assume(name in ("ekman7", "valence3") or categories & SCHEMES[name].mapping.keys())
    [after] = relabel([labelled], SCHEMES[name])
    assert after.target is not None
    assert len(after.target) == len(SCHEMES[name].space.categories)
    assert sum(after.target) == pytest.approx(1)
