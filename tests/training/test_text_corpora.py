"""Loaders of texts and dialogues: labels, votes, turns, splits, and the formats of tables."""

import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from shared.domain.emotion import EKMAN7
from tests.training.text_corpus_samples import EMORY_TURNS, EMOTIONLINES_TURNS, write_table
from training.__main__ import run_recipe
from training.data.corpora import dialogues, texts
from training.data.corpora.tables import read_rows
from training.data.corpora.text_corpus import Line, TextCorpus
from training.data.registry import CORPORA, load
from training.data.utterance import Split, Utterance, ekman_target, vote_target

TEXT_CORPORA = {corpus.name: corpus for corpus in (*dialogues.CORPORA, *texts.CORPORA)}


def shares(utterance: Utterance) -> dict[str, float]:
    """The share of each category that has one."""
    return {name: share for name, share in zip(EKMAN7.categories, utterance.target or (), strict=False) if share}


@pytest.mark.parametrize("corpus", TEXT_CORPORA.values(), ids=lambda corpus: corpus.name)
def test_the_error_for_a_label_that_a_corpus_does_not_have_lists_its_labels(
    data: Path, tmp_path: Path, corpus: TextCorpus
) -> None:
    bored = replace(corpus, read=lambda _: iter([Line("how dull", ("boredom",))]))
    with pytest.raises(ValueError, match=rf"1: 'boredom' is not one of the labels {next(iter(corpus.labels))}"):
        list(bored.load(data / corpus.name))


@pytest.mark.parametrize("corpus", TEXT_CORPORA.values(), ids=lambda corpus: corpus.name)
def test_every_label_of_a_corpus_is_read(data: Path, corpus: TextCorpus) -> None:
    found = {label for utterance in load(data, [corpus.name], scheme=None) for label in utterance.label_names}
    assert found == set(corpus.labels)


def test_corpora_for_commercial_use_can_be_selected() -> None:
    assert {name for name, corpus in CORPORA.items() if corpus.commercial == "yes"} == {
        "brighter",
        "cedr",
        "cped",
        "crema_d",
        "emodb",
        "emorynlp",
        "emot",
        "goemotions",
        "kote",
        "naist_persuasion",
        "punjabi_rasa",
        "red_ro",
        "shemo",
        "xed",
    }


def test_the_documentation_has_the_table_of_corpora(capsys: pytest.CaptureFixture[str]) -> None:
    run_recipe(["list_corpora"])
    guide = Path(__file__).parents[2] / "docs" / "models" / "training.md"
    assert capsys.readouterr().out in guide.read_text(encoding="utf-8")


def test_a_label_that_several_people_chose_has_the_share_of_their_votes(data: Path) -> None:
    turns = [turn for turn in load(data, ["emotionlines"], None) if turn.dialogue == "Friends/friends_train 0"]
    ambiguous, surprise, neutral = turns[:3]
    assert (ambiguous.label_name, ambiguous.target, ambiguous.valence) == ("non-neutral", None, -1)
    assert shares(surprise) == {"neutral": 0.2, "anger": 0.2, "surprise": 0.6}
    assert shares(neutral) == {"neutral": 1}
    assert surprise.valence == -0.5


def test_the_label_of_a_japanese_turn_is_the_one_of_most_annotators(data: Path) -> None:
    first, second = load(data, ["naist_persuasion"])[:2]
    assert (first.label_name, shares(first)) == ("平静", {"anger": 1 / 3, "neutral": 2 / 3})
    assert (second.label_name, shares(second)) == ("悲しみ, 平静", {"neutral": 0.5, "sadness": 0.5})


def test_votes_for_what_has_no_category_do_not_count() -> None:
    assert vote_target(["joy", "joy", "fear", None]) == (0, 0, 1 / 3, 2 / 3, 0, 0, 0)
    assert vote_target([None]) is None


@pytest.mark.parametrize(
    ("name", "dialogue", "languages", "turns"),
    [
        (
            "dailydialog",
            "train/dialogues_train 1",
            ["en"] * 2,
            [("A", "train turn neutral ."), ("B", "train turn anger .")],
        ),
        ("xdailydialog", "dialogues_text_It 2", ["it"] * 2, [("A", "It eins 1"), ("B", "It zwei 1")]),
        ("emotionlines", "Friends/friends_dev 1", ["en"] * 2, [("Monica", "What?"), ("Ross", "Nine.")]),
        (
            "emorynlp",
            "json/emotion-detection-trn s01_e02_c02",
            ["en"] * 3,
            [("Rachel Green", "Coffee."), ("Ross Geller, Joey Tribbiani", "Yes!"), ("Rachel Green", "Fine.")],
        ),
        (
            "emocontext",
            "dev 1",
            ["en"] * 3,
            [("user", "dev hello 0"), ("bot", "hello"), ("user", "happy in EmoContext 0")],
        ),
        (
            "maia_dqe",
            "pt_br_client_04 pt_br_client_04 3",
            ["pt", "pt", "en"],
            [("inbound", "pt_br_client_04 eins."), ("inbound", "Zwei."), ("outbound", "Thank you.")],
        ),
        (
            "naist_persuasion",
            "train cleaning/0",
            ["ja"] * 2,
            [("ロボット", "掃除をしてください。"), ("A君", "後でね。")],
        ),
    ],
)
def test_the_turns_of_a_dialogue_are_in_their_order_and_name_their_speaker(
    data: Path, name: str, dialogue: str, languages: list[str], turns: list[tuple[str, str]]
) -> None:
    found = [turn for turn in load(data, [name], scheme=None) if turn.dialogue == dialogue][:3]
    assert [turn.position for turn in found[: len(turns)]] == list(range(len(turns)))
    assert [(turn.speaker, turn.text) for turn in found[: len(turns)]] == turns
    assert [turn.language for turn in found[: len(turns)]] == languages
    assert len({turn.group for turn in found}) == 1


def test_a_dialogue_with_more_turns_than_labels_is_left_out(data: Path) -> None:
    turns = load(data, ["dailydialog"])
    assert len(turns) == 2 * 7
    assert not any(turn.text and turn.text.startswith("Hello") for turn in turns)


def test_files_of_dialogues_and_of_labels_have_equally_many_lines(data: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(data / "dailydialog", tmp_path / "dailydialog"))
    (copy / "train" / "dialogues_emotion_train.txt").write_text("0 0\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"dialogues_train\.txt has 2 dialogues, and .* has the labels of 1"):
        load(tmp_path, ["dailydialog"])


def test_the_speakers_of_chinese_series_have_a_gender_where_it_is_known(data: Path) -> None:
    first, second = load(data, ["cped"], scheme=None)[:2]
    assert (first.speaker, first.gender, first.show, first.split) == ("戴娜", "female", "01", Split.train)
    assert (second.speaker, second.gender) == ("其他", None)


def test_a_dialogue_is_in_the_same_split_in_every_language(data: Path) -> None:
    splits = {(turn.text or "").split()[-1] + turn.split for turn in load(data, ["xdailydialog"])}
    assert len(splits) == 20


def test_texts_of_several_labels_share_their_target(data: Path) -> None:
    by_text = {utterance.text: utterance for utterance in load(data, ["kote", "brighter", "semeval2018_ec", "cedr"])}
    assert shares(by_text["train of two minds"]) == {"anger": 0.5, "sadness": 0.5}
    assert shares(by_text["dev, swe, 1"]) == {"anger": 0.5, "fear": 0.5}
    assert (by_text["dev, swe, 0"].label_name, shares(by_text["dev, swe, 0"])) == ("none", {"neutral": 1})
    assert shares(by_text["train, nothing"]) == {"neutral": 1}
    assert shares(by_text["Предложение 0 [1 3]"]) == {"fear": 0.5, "sadness": 0.5}
    assert "train, trust" not in by_text


def test_a_file_of_a_language_that_brighter_does_not_have_is_named(tmp_path: Path) -> None:
    write_table(tmp_path / "brighter" / "train" / "xyz.csv", ["text", "joy"], [["hello", 1]])
    with pytest.raises(ValueError, match=r"xyz\.csv: 'xyz' is not one of the labels afr, amh"):
        load(tmp_path, ["brighter"])


@pytest.mark.parametrize(
    ("name", "file", "cells", "message"),
    [
        ("kote", "train.tsv", ["1", "hello", "44"], r"train\.tsv: '44' is not one of the labels 0, 1"),
        ("cedr", "cedr-main-train.csv", ["hello", "[7]"], r"'7' is not one of the labels 0, 1, 2, 3, 4"),
        ("maia_dqe", "train.tsv", ["a", "inbound", "fr", "hello", "anger"], "'fr' is not one of the labels de, en"),
    ],
)
def test_a_number_or_language_that_a_corpus_does_not_have_is_named(
    tmp_path: Path, name: str, file: str, cells: list[str], message: str
) -> None:
    headers = {"cedr": ["text", "labels"], "maia_dqe": ["id", "floor", "language", "text_src", "Emotion"]}
    write_table(tmp_path / name / file, headers.get(name), [cells])
    with pytest.raises(ValueError, match=message):
        load(tmp_path, [name])


def test_a_table_without_a_column_is_named(tmp_path: Path) -> None:
    write_table(tmp_path / "red_ro" / "train.csv", ["Tweet", "Label"], [["hello", "Furie"]])
    with pytest.raises(ValueError, match=r"train\.csv has no column 'Emotion': it has Tweet, Label"):
        load(tmp_path, ["red_ro"])


def test_the_publishers_parts_are_the_splits(data: Path) -> None:
    split_of = {utterance.id.split()[0]: utterance.split for utterance in load(data, ["kote"])}
    assert split_of == {"train": Split.train, "val": Split.validation, "test": Split.test}


def test_a_tenth_validates_where_only_one_part_is_there(tmp_path: Path) -> None:
    write_table(tmp_path / "kote" / "val.tsv", None, [[i, f"hello {i}", 0] for i in range(200)])
    write_table(tmp_path / "kote" / "test.tsv", None, [[1, "goodbye", 0]])
    splits = Counter(utterance.split for utterance in load(tmp_path, ["kote"]))
    assert splits[Split.test] == 1
    assert 0 < splits[Split.validation] < 40 < splits[Split.train]


def test_tables_of_the_same_turns_in_other_formats_are_read_alike(data: Path, tmp_path: Path) -> None:
    header = ["dialogue", "speaker", "utterance", "emotion", "annotation"]
    rows = [["0", *turn.values()] for turn in EMOTIONLINES_TURNS]
    write_table(tmp_path / "emotionlines" / "friends_train.tsv", header, rows)
    rows = [["s01_e02_c01", ", ".join(turn["speakers"]), turn["transcript"], turn["emotion"]] for turn in EMORY_TURNS]
    header = ["scene_id", "speakers", "transcript", "emotion"]
    write_table(tmp_path / "emorynlp" / "emotion-detection-trn.tsv", header, rows)
    for name in ("emotionlines", "emorynlp"):
        tables, published = load(tmp_path, [name], None), load(data, [name], None)[: len(rows)]
        assert [(t.text, t.speaker, t.target, t.position) for t in tables] == [
            (t.text, t.speaker, t.target, t.position) for t in published
        ]


@pytest.mark.parametrize("suffix", [".tsv", ".csv", ".xlsx", ".json", ".txt"])
def test_a_table_is_read_in_the_format_of_its_suffix(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"table{suffix}"
    rows = [["say “hello”, he said", 1], ["another\u2028line", 2]]
    if suffix == ".json":
        path.write_text(json.dumps([{"text": text, "label": label} for text, label in rows]), encoding="utf-8")
    else:
        write_table(path, ["text", "label"], rows)
    assert [list(row.values()) for row in read_rows(path, "text")] == [[text, str(label)] for text, label in rows]


def test_a_row_that_ends_early_has_empty_cells(tmp_path: Path) -> None:
    (tmp_path / "table.tsv").write_text("text\tlabel\nhello\n", encoding="utf-8")
    assert list(read_rows(tmp_path / "table.tsv", "label")) == [{"text": "hello", "label": ""}]


def test_hindi_labels_may_be_words(data: Path, tmp_path: Path) -> None:
    write_table(tmp_path / "bhaav" / "Bhaav-Dataset.tsv", ["Sentences", "Annotation"], [["रोज मार खाते हैं", "sad"]])
    assert [shares(utterance) for utterance in load(tmp_path, ["bhaav"])] == [{"sadness": 1}]
    assert load(data, ["bhaav"])[0].target == ekman_target(["anger"])
