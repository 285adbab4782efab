"""Loaders: labels, splits, and the errors that say what to do."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.domain.emotion import EKMAN7
from tests.training.corpora import FEELINGS, RAVDESS_ACTORS
from training.data import goemotions, meld, ravdess, urdu_latif, xed
from training.data.corpus import (
    CorpusMissing,
    Leakage,
    Split,
    Utterance,
    check_leakage,
    mapped,
    target,
    valence,
    views,
)
from training.data.load import CORPORA, load


def labels(utterances: Sequence[Utterance]) -> set[str]:
    return {EKMAN7.categories[utterance.label] for utterance in utterances}


def by_id(utterances: Sequence[Utterance]) -> dict[str, Utterance]:
    return {utterance.id: utterance for utterance in utterances}


@pytest.mark.parametrize("name", CORPORA)
def test_every_corpus_trains_and_validates_and_its_targets_sum_to_one(data: Path, name: str) -> None:
    utterances = load(data, [name])
    assert {Split.train, Split.validation} <= {utterance.split for utterance in utterances}
    assert len({utterance.id for utterance in utterances}) == len(utterances)
    for utterance in utterances:
        assert utterance.corpus == name
        assert sum(utterance.target) == pytest.approx(1)
        assert utterance.text or utterance.audio


@pytest.mark.parametrize("name", CORPORA)
def test_a_missing_corpus_is_named_with_where_to_get_it(tmp_path: Path, name: str) -> None:
    with pytest.raises(CorpusMissing, match=r"get it from https://"):
        load(tmp_path, [name])


def test_a_corpus_that_nobody_knows_is_refused_with_those_that_are(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'iemocap' is not a corpus: use some of ravdess, urdu_latif"):
        load(tmp_path, ["iemocap"])


def test_a_label_that_a_corpus_does_not_have_is_named_with_those_it_has() -> None:
    with pytest.raises(ValueError, match=r"clip\.wav: '09' is not one of the labels 01, 02"):
        mapped("09", ravdess.LABELS, "clip.wav")


@pytest.mark.parametrize("labels", [ravdess.LABELS, urdu_latif.LABELS, meld.LABELS, goemotions.LABELS, xed.LABELS])
def test_every_label_maps_onto_a_category_or_onto_none(labels: dict[str, str | None]) -> None:
    assert set(labels.values()) <= {*EKMAN7.categories, None}


def test_ravdess_has_its_speech_and_not_its_songs(data: Path) -> None:
    utterances = load(data, ["ravdess"])
    assert len(utterances) == 8 * len(RAVDESS_ACTORS)
    assert not any(utterance.id.startswith("03-02") for utterance in utterances)
    clip = by_id(utterances)["03-01-02-01-01-01-19"]
    assert EKMAN7.categories[clip.label] == "neutral"  # calm
    assert (clip.text, clip.group, clip.language) == ("Kids are talking by the door.", "actor 19", "en")
    assert by_id(utterances)["03-01-08-01-01-01-01"].valence is None  # surprise is neither


def test_ravdess_is_split_by_actor(data: Path) -> None:
    splits = {utterance.group: utterance.split for utterance in load(data, ["ravdess"])}
    assert splits == {
        "actor 01": Split.train,
        "actor 02": Split.train,
        "actor 19": Split.validation,
        "actor 21": Split.test,
    }
    assert [ravdess.split_of(actor) for actor in (18, 19, 20, 21, 24)] == [
        Split.train,
        Split.validation,
        Split.validation,
        Split.test,
        Split.test,
    ]


@pytest.mark.parametrize(
    "name",
    [
        "03-01-09-01-01-01-01.wav",  # no such emotion
        "03-01-03-01-03-01-01.wav",  # no such statement
        "happy.wav",
    ],
)
def test_ravdess_files_that_are_none_are_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "Actor_01").mkdir()
    (tmp_path / "Actor_01" / name).touch()
    with pytest.raises(ValueError, match=name):
        list(ravdess.load(tmp_path))


def test_urdu_is_split_by_speaker_so_that_all_its_labels_train_and_validate(data: Path) -> None:
    utterances = load(data, ["urdu_latif"])
    for split in (Split.train, Split.validation):
        part = [utterance for utterance in utterances if utterance.split is split]
        assert labels(part) == set(urdu_latif.LABELS.values())
    speakers = {utterance.group for utterance in utterances if utterance.split is Split.validation}
    assert speakers == urdu_latif.VALIDATION_SPEAKERS


def test_an_urdu_folder_that_is_no_label_is_named(tmp_path: Path) -> None:
    (tmp_path / "Bored").mkdir()
    (tmp_path / "Bored" / "SM1_F1_B01.wav").touch()
    with pytest.raises(ValueError, match="'Bored' is not one of the labels Angry, Happy, Neutral, Sad"):
        list(urdu_latif.load(tmp_path))


def test_melds_dialogues_of_the_same_number_in_two_files_are_apart(data: Path) -> None:
    utterances = load(data, ["meld"])
    assert {utterance.group for utterance in utterances} == {"train 0", "train 1", "validation 0"}
    said = by_id(utterances)["train 0 3"]
    assert said.text == f"Well, it's train 0, {FEELINGS['joy']}"
    assert (EKMAN7.categories[said.label], said.valence) == ("joy", 1.0)


def test_a_label_that_meld_does_not_have_is_named(data: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(data / "meld", tmp_path / "meld"))
    path = copy / "dev_sent_emo.csv"
    path.write_text(path.read_text(encoding="utf-8").replace("disgust", "boredom"), encoding="utf-8")
    with pytest.raises(ValueError, match=r"dev_sent_emo\.csv: 'boredom' is not one of"):
        list(meld.load(copy))


def test_goemotions_with_several_labels_shares_its_target(data: Path) -> None:
    both = by_id(load(data, ["goemotions"]))["train7"]
    assert both.target == target(["anger", "sadness"])
    assert both.valence == -1
    assert both.text == "train, of two minds\u2028about it"


def test_xed_leaves_out_what_has_no_category_no_words_or_no_known_script(data: Path) -> None:
    utterances = load(data, ["xed"])
    assert {utterance.language for utterance in utterances} == {"en", "fi", "sv", "pt"}
    texts = {utterance.text: utterance for utterance in utterances}
    assert "" not in texts
    assert "so, only hope" not in texts
    assert EKMAN7.categories[texts["so, fear and hope"].label] == "fear"
    neutral = [utterance for utterance in utterances if utterance.target == target(["neutral"])]
    assert len(neutral) == 40


def test_xed_takes_no_more_of_a_projected_language_than_the_limit(data: Path) -> None:
    languages = [utterance.language for utterance in xed.load(data / "xed", limit=3)]
    assert languages.count("sv") == 3
    assert languages.count("en") == 6 * 6 + 1 + 3  # annotated by people: all of them, and three neutral lines


def test_one_target_of_several_categories() -> None:
    assert target(["joy", "joy", "surprise"]) == (0, 0, 0, 0.5, 0, 0, 0.5)
    assert valence(["joy", "surprise"]) == 1
    assert valence(["anger", "joy"]) == 0
    assert valence(["surprise"]) is None
    with pytest.raises(ValueError, match="'boredom' is not a category of ekman7"):
        target(["boredom"])


def utterance(id_: str, group: str, split: Split, corpus: str = "meld") -> Utterance:
    return Utterance(id_, corpus, "en", split, target(["joy"]), 1.0, group)


splits = st.sampled_from(Split)
clean = st.dictionaries(st.sampled_from("abcdef"), splits, min_size=1).flatmap(
    lambda split_of: st.lists(st.sampled_from(sorted(split_of)), min_size=1).map(
        lambda groups: [utterance(f"{i}", group, split_of[group]) for i, group in enumerate(groups)]
    )
)


@given(clean)
def test_groups_that_each_stay_in_one_split_do_not_leak(utterances: list[Utterance]) -> None:
    check_leakage(utterances)


@given(clean, st.data())
def test_any_group_in_two_splits_leaks(utterances: list[Utterance], draw: st.DataObject) -> None:
    first = draw.draw(st.sampled_from(utterances))
    split = draw.draw(splits.filter(lambda split: split is not first.split))
    place = draw.draw(st.integers(0, len(utterances)))
    utterances.insert(place, utterance("another", first.group, split))
    with pytest.raises(Leakage, match=f"group {first.group} is in"):
        check_leakage(utterances)


def test_the_same_utterance_in_two_splits_leaks_and_the_same_name_in_two_corpora_does_not() -> None:
    with pytest.raises(Leakage, match="utterance 1"):
        check_leakage([utterance("1", "a", Split.train), utterance("1", "b", Split.test)])
    check_leakage([utterance("1", "a", Split.train), utterance("1", "a", Split.test, corpus="xed")])


def test_tess_is_split_by_speaker_and_its_surprise_is_pleasant(data: Path) -> None:
    utterances = by_id(load(data, ["tess"]))
    assert utterances["OAF_back_angry"].split is Split.train
    assert utterances["YAF_back_angry"].split is Split.validation
    surprise = utterances["YAF_back_ps"]
    assert (EKMAN7.categories[surprise.label], surprise.valence) == ("surprise", 1.0)
    assert surprise.text == "Say the word back."
    assert labels(list(utterances.values())) == set(EKMAN7.categories)


def test_a_file_that_is_not_tess_s_own_is_named(tmp_path: Path) -> None:
    (tmp_path / "tess").mkdir()
    (tmp_path / "tess" / "03-01-01-01-01-01-01.wav").touch()
    with pytest.raises(ValueError, match="is not named SPEAKER_word_emotion, with OAF or YAF"):
        load(tmp_path, ["tess"])


def test_love_in_emot_is_joy(data: Path) -> None:
    utterances = load(data, ["emot"])
    assert {u.language for u in utterances} == {"id"}
    assert labels([u for u in utterances if u.text and "love" in u.text]) == {"joy"}
    assert labels(utterances) == {"anger", "fear", "joy", "sadness"}


def test_a_corpus_is_viewed_by_what_it_has(data: Path) -> None:
    assert views(load(data, ["ravdess", "urdu_latif", "meld"])) == {
        "ravdess voice": ("ravdess", False, True),
        "ravdess both": ("ravdess", True, True),
        "urdu_latif voice": ("urdu_latif", False, True),
        "meld text": ("meld", True, False),
    }
