"""Splits: what stays together, what is drawn, and what a report says about it."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.data.registry import load
from training.data.splits import Strategy, folds, split, split_notes
from training.data.utterance import Leakage, Split, Utterance, check_leakage, ekman_target


def spoken(number: int, speaker: str | None, show: str | None = None, label: str = "joy") -> Utterance:
    return Utterance(
        id=f"{number}",
        corpus="plays",
        language="en",
        split=Split.train,
        target=ekman_target([label]),
        valence=1.0,
        group=speaker or f"{number}",
        label_name=label,
        audio=Path(f"{number}.wav"),
        speaker=speaker,
        show=show,
    )


def by_split(utterances: list[Utterance], attribute: str) -> dict[Split, set[str]]:
    return {name: {getattr(u, attribute) for u in utterances if u.split is name} for name in Split}


casts = st.lists(
    st.tuples(st.sampled_from("abcdef"), st.sampled_from("123"), st.sampled_from("123")), min_size=3
).filter(lambda cast: len({theatre for theatre, _, _ in cast}) >= 3)
"""Three theatres at least that have neither a speaker nor a show in common: the theatre, its speaker, its show."""

seeds = st.integers(0, 2**31)


@settings(deadline=None)
@given(casts, seeds, st.sampled_from([Strategy.group_shuffle, Strategy.show]))
def test_speakers_and_shows_drawn_at_random_are_in_one_split_only(
    cast: list[tuple[str, str, str]], seed: int, strategy: Strategy
) -> None:
    utterances = [spoken(i, theatre + speaker, theatre + show) for i, (theatre, speaker, show) in enumerate(cast)]
    found = split(utterances, strategy, seed)
    check_leakage(found, ("group", "speaker") if strategy is Strategy.group_shuffle else ("speaker", "show"))
    assert {u.split for u in found} == set(Split)
    assert [replace(u, split=Split.train) for u in found] == utterances
    assert split(utterances, strategy, seed) == found


@settings(deadline=None)
@given(casts, st.data())
def test_only_the_speaker_who_is_left_out_tests(cast: list[tuple[str, str, str]], draw: st.DataObject) -> None:
    utterances = [spoken(i, theatre) for i, (theatre, _, _) in enumerate(cast)]
    left_out = draw.draw(st.sampled_from([theatre for theatre, _, _ in cast]))
    found = split(utterances, Strategy.leave_one_speaker_out, held_out=left_out)
    assert by_split(found, "speaker")[Split.test] == {left_out}
    assert by_split(found, "speaker")[Split.validation]


@settings(deadline=None)
@given(st.lists(st.sampled_from(["joy", "anger", "fear"]), min_size=1, max_size=200), seeds)
def test_at_random_every_label_has_its_share(labels: list[str], seed: int) -> None:
    utterances = [spoken(i, "a", label=label) for i, label in enumerate(labels)]
    found = split(utterances, Strategy.random, seed, validation=0.2, test=0.3)
    for label, count in Counter(labels).items():
        parts = Counter(u.split for u in found if u.label_name == label)
        assert abs(parts[Split.test] - 0.3 * count) <= 1
        assert abs(parts[Split.validation] - 0.2 * count) <= 2


def test_the_seed_decides_what_is_drawn() -> None:
    utterances = [spoken(i, f"{i // 4}") for i in range(80)]
    for strategy in (Strategy.random, Strategy.group_shuffle):
        assert split(utterances, strategy, seed=1) == split(utterances, strategy, seed=1)
        assert split(utterances, strategy, seed=1) != split(utterances, strategy, seed=2)


def test_the_shares_are_those_of_the_groups() -> None:
    utterances = [spoken(i, f"{i % 20}") for i in range(200)]
    found = by_split(split(utterances, Strategy.group_shuffle, validation=0.1, test=0.2), "speaker")
    assert [len(found[name]) for name in Split] == [14, 2, 4]
    without = by_split(split(utterances, Strategy.group_shuffle, validation=0, test=0.2), "speaker")
    assert [len(without[name]) for name in Split] == [16, 0, 4]


def test_the_official_split_is_the_loaders_and_so_is_the_one_by_speaker(data: Path) -> None:
    utterances = load(data, ["ravdess"])
    assert split(utterances) == utterances
    assert split(utterances, Strategy.speaker) == utterances
    assert split_notes(utterances, Strategy.speaker) == []


def test_meld_cannot_be_split_by_speaker_because_its_speakers_are_in_all_splits(data: Path) -> None:
    with pytest.raises(Leakage, match="meld: speaker Ross is in train and in validation"):
        split(load(data, ["meld"]), Strategy.speaker)


@pytest.mark.parametrize("strategy", [Strategy.speaker, Strategy.leave_one_speaker_out, Strategy.show])
def test_a_corpus_that_does_not_name_its_speakers_cannot_be_split_by_them(data: Path, strategy: Strategy) -> None:
    held_out = "a" if strategy is Strategy.leave_one_speaker_out else None
    with pytest.raises(ValueError, match="punjabi_rasa does not identify its speakers"):
        split(load(data, ["punjabi_rasa"]), strategy, held_out=held_out)


def test_a_corpus_that_does_not_name_its_shows_cannot_be_split_by_them(data: Path) -> None:
    with pytest.raises(ValueError, match="ravdess does not identify its shows"):
        split(load(data, ["ravdess"]), Strategy.show)


def test_one_show_of_urdu_can_be_the_test_split(data: Path) -> None:
    found = split(load(data, ["urdu_latif"]), Strategy.show, held_out="SM4")
    assert by_split(found, "show")[Split.test] == {"SM4"}


def test_a_speaker_of_the_test_show_does_not_train_with_another_show() -> None:
    utterances = [
        spoken(0, "a", "s"),
        spoken(1, "a", "t"),
        spoken(2, "b", "t"),
        spoken(3, "c", "u"),
        spoken(4, "d", "v"),
    ]
    found = split(utterances, Strategy.show, held_out="s")
    assert by_split(found, "speaker")[Split.test] == {"a", "b"}


def test_the_other_speaker_of_an_iemocap_session_tests_together_with_the_one_left_out(data: Path) -> None:
    found = split(load(data, ["iemocap"]), Strategy.leave_one_speaker_out, held_out="Ses02F")
    assert by_split(found, "speaker")[Split.test] == {"Ses02F", "Ses02M"}


def test_a_speaker_is_left_out_of_several_corpora_by_name(data: Path) -> None:
    found = split(load(data, ["savee", "emodb"]), Strategy.leave_one_speaker_out, held_out="savee/KL")
    assert by_split(found, "speaker")[Split.test] == {"KL"}
    assert {u.corpus for u in found if u.split is Split.train} == {"savee", "emodb"}


def test_the_error_for_an_unknown_or_ambiguous_speaker_lists_the_known_ones(data: Path) -> None:
    utterances = load(data, ["savee"])
    with pytest.raises(ValueError, match="held_out: 'XY' is not exactly one speaker: use one of savee/DC, savee/JE"):
        split(utterances, Strategy.leave_one_speaker_out, held_out="XY")
    both = utterances + [replace(u, corpus="other") for u in utterances]
    with pytest.raises(ValueError, match="held_out: 'DC' is not exactly one speaker: use one of other/DC"):
        split(both, Strategy.leave_one_speaker_out, held_out="DC")
    with pytest.raises(ValueError, match="leave_one_speaker_out needs held_out"):
        split(utterances, Strategy.leave_one_speaker_out)
    with pytest.raises(ValueError, match="random does not hold out 'DC': use one of group_shuffle, leave_one"):
        split(utterances, Strategy.random, held_out="DC")


@pytest.mark.parametrize("strategy", [Strategy.group_shuffle, Strategy.leave_one_speaker_out])
def test_two_speakers_are_too_few_for_three_splits(strategy: Strategy) -> None:
    utterances = [spoken(i, "ab"[i % 2]) for i in range(8)]
    held_out = "a" if strategy is Strategy.leave_one_speaker_out else None
    with pytest.raises(ValueError, match="there are too few separate groups to split: 1 left"):
        split(utterances, strategy, held_out=held_out)
    assert len(by_split(split(utterances, strategy, validation=0, held_out=held_out), "speaker")[Split.train]) == 1


@pytest.mark.parametrize(("validation", "test"), [(0.5, 0.5), (-0.1, 0.2), (0.1, 1.0)])
def test_shares_that_leave_nothing_are_refused(validation: float, test: float) -> None:
    with pytest.raises(ValueError, match="leave nothing to train on"):
        split([spoken(1, "a")], Strategy.random, validation=validation, test=test)


def test_the_notes_on_a_random_split_say_that_speakers_are_in_several_splits(data: Path) -> None:
    found = split(load(data, ["ravdess"]), Strategy.random, validation=0.25, test=0.25)
    assert split_notes(found, Strategy.random) == ["ravdess: 4 of 4 speakers are in several splits (random)"]


def test_the_notes_on_a_corpus_without_speakers_say_so(data: Path) -> None:
    utterances = load(data, ["punjabi_rasa", "savee", "xed"])
    for strategy in (Strategy.official, Strategy.group_shuffle):
        assert split_notes(split(utterances, strategy), strategy) == [
            "punjabi_rasa: the corpus does not identify its speakers: the same speaker may be in train and test"
        ]


@settings(deadline=None, max_examples=50)
@given(st.lists(st.sampled_from("abcdef"), min_size=24, max_size=24).filter(lambda names: len(set(names)) > 3))
def test_folds_by_speaker_have_no_speaker_on_both_sides_and_test_every_utterance_once(speakers: list[str]) -> None:
    found = list(folds(["joy", "anger"] * 12, speakers, "speaker", count=3, seed=0))
    for trained, tested in found:
        assert not {speakers[i] for i in trained} & {speakers[i] for i in tested}
    assert sorted(np.concatenate([tested for _, tested in found])) == list(range(24))


def test_folds_at_random_have_equal_shares_of_each_label() -> None:
    labels = np.array(["joy"] * 20 + ["anger"] * 10)
    for trained, tested in folds(labels, None, "random", count=5, seed=0):
        assert Counter(labels[tested]) == {"joy": 4, "anger": 2}
        assert not set(trained) & set(tested)
