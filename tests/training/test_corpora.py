"""Loaders: labels, splits, and the errors that say what to do."""

import csv
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.audio.decoder import decode
from shared.domain.emotion import EKMAN7
from tests.audio_clips import encoded, tone, wav
from tests.training.corpus_samples import IEMOCAP_LABELS, RAVDESS_ACTORS, TEXTS, USERS
from training.data.corpora import iemocap, meld, ravdess, urdu_latif, xed
from training.data.registry import CORPORA, load
from training.data.utterance import (
    CorpusMissing,
    Leakage,
    Split,
    Utterance,
    check_leakage,
    ekman_target,
    implied_valence,
    look_up,
)
from training.data.views import views

VOTED = {"emotionlines", "naist_persuasion"}
"""Corpora that publish each annotator's label."""


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
        assert utterance.target is not None
        assert sum(utterance.target) == pytest.approx(1)
        assert utterance.text or utterance.audio


@pytest.mark.parametrize("name", CORPORA)
def test_the_error_for_a_missing_corpus_says_where_to_get_it(tmp_path: Path, name: str) -> None:
    with pytest.raises(CorpusMissing, match=r"get it from https?://"):
        load(tmp_path, [name])


def test_the_error_for_an_unknown_corpus_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'msp' is not a corpus: use some of ravdess, .* or the path of a manifest"):
        load(tmp_path, ["msp"])


def test_the_error_for_an_unknown_label_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"clip\.wav: '09' is not one of the labels 01, 02"):
        look_up("09", ravdess.EMOTIONS, "clip.wav")


@pytest.mark.parametrize("name", CORPORA)
def test_every_corpus_is_read_in_its_languages_with_its_own_labels(data: Path, name: str) -> None:
    utterances = load(data, [name], scheme=None)
    languages = {utterance.language for utterance in utterances}
    assert languages == set(CORPORA[name].languages) or (CORPORA[name].languages == ("mul",) and len(languages) > 1)
    labels = CORPORA[name].labels
    assert {label for utterance in utterances for label in utterance.label_names} <= set(labels)
    assert set(labels.values()) <= {*EKMAN7.categories, None}
    for utterance in utterances if name not in VOTED else ():
        assert utterance.target == ekman_target(labels[label] for label in utterance.label_names)


def test_only_the_speech_of_ravdess_is_loaded(data: Path) -> None:
    utterances = load(data, ["ravdess"])
    assert len(utterances) == 8 * len(RAVDESS_ACTORS)
    assert not any(utterance.id.startswith("03-02") for utterance in utterances)
    clip = by_id(utterances)["03-01-02-01-01-01-19"]
    assert (EKMAN7.categories[clip.label], clip.label_name) == ("neutral", "calm")
    assert (clip.text, clip.group, clip.language) == ("Kids are talking by the door.", "actor 19", "en")
    assert (clip.speaker, clip.gender) == ("actor 19", "male")
    assert by_id(utterances)["03-01-02-01-01-01-02"].gender == "female"
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
    speakers = {utterance.speaker for utterance in utterances if utterance.split is Split.validation}
    assert speakers == urdu_latif.VALIDATION_SPEAKERS
    clip = by_id(utterances)["SF6_F1_H01"]
    assert (clip.label_name, clip.gender, clip.show) == ("Happy", "female", "SF6")


def test_an_urdu_folder_that_is_no_label_is_named(tmp_path: Path) -> None:
    (tmp_path / "Bored").mkdir()
    (tmp_path / "Bored" / "SM1_F1_B01.wav").touch()
    with pytest.raises(ValueError, match="'Bored' is not one of the labels Angry, Happy, Neutral, Sad"):
        list(urdu_latif.load(tmp_path))


def test_melds_dialogues_of_the_same_number_in_two_files_are_apart(data: Path) -> None:
    utterances = load(data, ["meld"])
    assert {utterance.group for utterance in utterances} == {"train 0", "train 1", "validation 0"}
    turn = by_id(utterances)["train 0 3"]
    assert turn.text == f"Well, it's train 0, {TEXTS['joy']}"
    assert (EKMAN7.categories[turn.label], turn.valence) == ("joy", 1.0)


def test_meld_knows_the_turns_of_its_dialogues_and_who_says_them(data: Path) -> None:
    turns = [utterance for utterance in load(data, ["meld"]) if utterance.dialogue == "train 1"]
    assert [turn.position for turn in turns] == list(range(7))
    assert [turn.speaker for turn in turns[:2]] == ["Ross", "The Interviewer"]
    assert [turn.gender for turn in turns[:2]] == ["male", None]
    assert {turn.show for turn in turns} == {"season 8, episode 21"}
    assert not any(turn.audio for turn in turns)


def test_melds_clips_are_heard_where_they_are_there(data: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(data / "meld", tmp_path / "meld"))
    clips = {"train 0 2": "train_splits/dia0_utt2.mp4", "validation 0 1": "dev_splits_complete/dia0_utt1.mp4"}
    for clip in clips.values():
        (copy / clip).parent.mkdir()
        (copy / clip).write_bytes(encoded("m4a", tone(0.5)))
    clip_of = {utterance.id: utterance.audio for utterance in meld.load(copy) if utterance.audio}
    assert clip_of == {id_: copy / clip for id_, clip in clips.items()}
    assert all(len(decode(path).samples) == pytest.approx(8_000, abs=2_048) for path in clip_of.values())


def test_melds_broken_clip_is_not_heard(data: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(data / "meld", tmp_path / "meld"))
    table = (copy / "train_sent_emo.csv").read_text(encoding="utf-8")
    (copy / "train_sent_emo.csv").write_text(table.replace(",0,3,8,", ",125,3,8,"), encoding="utf-8")
    (copy / "train_splits").mkdir()
    (copy / "train_splits" / "dia125_utt3.mp4").touch()
    assert by_id(list(meld.load(copy)))["train 125 3"].audio is None


def test_a_label_that_meld_does_not_have_is_named(data: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(data / "meld", tmp_path / "meld"))
    path = copy / "dev_sent_emo.csv"
    path.write_text(path.read_text(encoding="utf-8").replace("disgust", "boredom"), encoding="utf-8")
    with pytest.raises(ValueError, match=r"dev_sent_emo\.csv: 'boredom' is not one of"):
        list(meld.load(copy))


def test_goemotions_with_several_labels_shares_its_target(data: Path) -> None:
    both = by_id(load(data, ["goemotions"]))["train7"]
    assert both.target == ekman_target(["anger", "sadness"])
    assert both.label_names == ("anger", "sadness")
    assert both.valence == -1
    assert both.text == "train, of two minds\u2028about it"


def test_xed_leaves_out_what_has_no_category_no_words_or_no_known_script(data: Path) -> None:
    utterances = load(data, ["xed"])
    assert {utterance.language for utterance in utterances} == {"en", "fi", "sv", "pt"}
    texts = {utterance.text: utterance for utterance in utterances}
    assert "" not in texts
    assert "so, only hope" not in texts
    hope = [utterance for utterance in xed.load(data / "xed") if utterance.text == "so, only hope"]
    assert [(utterance.label_name, utterance.target) for utterance in hope] == [("anticipation, trust", None)]
    assert EKMAN7.categories[texts["so, fear and hope"].label] == "fear"
    neutral = [utterance for utterance in utterances if utterance.target == ekman_target(["neutral"])]
    assert len(neutral) == 40


def test_xed_takes_no_more_of_a_projected_language_than_the_limit(data: Path) -> None:
    languages = [utterance.language for utterance in xed.load(data / "xed", limit=3) if utterance.target]
    assert languages.count("sv") == 3
    assert languages.count("en") == 6 * 6 + 1 + 3  # annotated by people: all of them, and three neutral lines


def test_one_target_of_several_categories() -> None:
    assert ekman_target(["joy", "joy", "surprise"]) == (0, 0, 0, 0.5, 0, 0, 0.5)
    assert implied_valence(["joy", "surprise"]) == 1
    assert implied_valence(["anger", "joy"]) == 0
    assert implied_valence(["surprise"]) is None
    assert ekman_target([None]) is None
    assert implied_valence([None]) is None
    with pytest.raises(ValueError, match="'boredom' is not a category of ekman7"):
        ekman_target(["boredom"])


def utterance(id_: str, group: str, split: Split, corpus: str = "meld") -> Utterance:
    return Utterance(id_, corpus, "en", split, ekman_target(["joy"]), 1.0, group, "joy")


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


def test_a_corpus_has_a_view_for_each_combination_of_its_modalities(data: Path) -> None:
    assert views(load(data, ["ravdess", "urdu_latif", "meld"])) == {
        "ravdess audio": ("ravdess", False, True),
        "ravdess both": ("ravdess", True, True),
        "urdu_latif audio": ("urdu_latif", False, True),
        "meld text": ("meld", True, False),
    }


def without_category(utterances: Sequence[Utterance]) -> set[str]:
    return {utterance.label_name for utterance in utterances if utterance.target is None}


@pytest.mark.parametrize(
    ("name", "labels"),
    [
        ("urduser", {"Boredom"}),
        ("emodb", {"boredom"}),
        ("iitkgp_sehsc", {"sarcastic"}),
        ("iemocap", {"fru", "xxx"}),
    ],
)
def test_utterances_without_a_category_are_left_out_unless_no_scheme_is_applied(
    data: Path, name: str, labels: set[str]
) -> None:
    assert without_category(load(data, [name], scheme=None)) == labels
    assert without_category(load(data, [name])) == set()


def test_an_utterance_without_a_category_has_no_label(data: Path) -> None:
    bored = by_id(load(data, ["emodb"], scheme=None))["03a01La"]
    with pytest.raises(ValueError, match="emodb, 03a01La: the label 'boredom' has no category"):
        _ = bored.label


@pytest.mark.parametrize(
    ("name", "id_", "label", "category", "speaker", "gender", "text"),
    [
        ("crema_d", "1001_DFA_HAP_XX", "HAP", "joy", "1001", "male", "Don't forget a jacket."),
        ("crema_d", "1091_DFA_SAD_XX", "SAD", "sadness", "1091", "female", "Don't forget a jacket."),
        ("savee", "JK_su01", "surprise", "surprise", "JK", "male", None),
        ("savee", "DC_sa01", "sadness", "sadness", "DC", "male", None),
        ("emodb", "08a01Aa", "anxiety", "fear", "08", "female", "Der Lappen liegt auf dem Eisschrank."),
        ("emodb", "15a01Wa", "anger", "anger", "15", "male", "Der Lappen liegt auf dem Eisschrank."),
        ("urduser", "1_0_2_01", "Fear", "fear", "1", "male", "آپ کہاں ہیں"),
        ("urduser", "10_1_7_01", "Sad", "sadness", "10", "female", None),
        ("punjabi_rasa", "test PAN_F_HAPPY_00000", "happy", "joy", None, "female", "ਤੁਸੀਂ ਕਿੱਥੇ ਹੋ"),
        ("punjabi_rasa", "train PAN_M_ANGRY_00001", "angry", "anger", None, "male", None),
        ("shemo", "F01W01", "surprised", "surprise", "F01", "female", "دیگر"),
        ("shemo", "M09F01", "fearful", "fear", "M09", "male", None),
        ("iitkgp_sehsc", "happy 71.1.happy-1", "happy", "joy", "1", None, None),
        ("indonesian", "2_00050_sedih_no_data", "sedih", "sadness", None, None, None),
        ("indonesian", "2_00001_marah_sedang", "marah", "anger", None, None, None),
        ("iemocap", "Ses03F_impro01_M003", "exc", "joy", "Ses03M", "male", "Turn 3."),
        ("ased", "S4-01-02-02-02", "sad", "sadness", "02", "male", None),
        ("ased", "h3-01-02-01-15", "happy", "joy", "15", "female", None),
        ("emospeech_india", f"bacho-safe-Happy-1562996360436-{0:056x}", "happy", "joy", f"{0:056x}", None, "bacho"),
        ("emospeech_india", f"unknown-safe-fearful-1562996360436-{2:056x}", "fearful", "fear", f"{2:056x}", None, None),
        ("nemo", "TP0_surprised_5", "surprised", "surprise", "TP0", "male", "Lubię czytać."),
        ("turev", "Calm 6783_sk_acik", "Calm", "neutral", "6783", None, "acik"),
        ("selvas_emotional", "nea00101", "기쁨", "joy", "nea", "female", "문장 101"),
        ("selvas_emotional", "neo00001", "일반", "neutral", "neo", "male", None),
        ("baved", "54-f-19-4-1-1", "normal", "neutral", "54", "female", "رائع"),
    ],
)
def test_a_loader_reads_label_speaker_gender_and_text_of_an_utterance(
    data: Path,
    name: str,
    id_: str,
    label: str,
    category: str,
    speaker: str | None,
    gender: str | None,
    text: str | None,
) -> None:
    clip = by_id(load(data, [name]))[id_]
    assert (clip.label_name, EKMAN7.categories[clip.label]) == (label, category)
    assert (clip.speaker, clip.gender, clip.text) == (speaker, gender, text)
    assert clip.audio is not None
    assert len(decode(clip.audio).samples) > 0


@pytest.mark.parametrize(
    "name", ["ased", "baved", "emospeech_india", "nemo", "selvas_emotional", "tess", "turev", "urdu_latif"]
)
def test_no_speaker_of_a_corpus_without_a_test_part_trains_and_validates(data: Path, name: str) -> None:
    utterances = load(data, [name], scheme=None)
    assert {utterance.split for utterance in utterances} == {Split.train, Split.validation}
    check_leakage(utterances, ["speaker"])
    assert all(utterance.speaker for utterance in utterances)


def test_two_korean_labels_that_the_publisher_swapped_are_corrected(data: Path) -> None:
    clips = by_id(load(data, ["selvas_emotional"]))
    sad, angry = clips["nea00201"], clips["nea00400"]
    assert (sad.label_name, EKMAN7.categories[sad.label]) == ("화남", "sadness")
    assert (angry.label_name, EKMAN7.categories[angry.label]) == ("슬픔", "anger")


def test_a_table_beside_copied_clips_has_their_texts(data: Path, tmp_path: Path) -> None:
    for name, path in (("nemo", "samples/EB0_anger_0.ogg"), ("selvas_emotional", "emotional-to-emotional/a/wav")):
        corpus = tmp_path / name
        clip = corpus / path if path.endswith(".ogg") else corpus / path / "nea00001.ogg"
        clip.parent.mkdir(parents=True)
        clip.write_bytes(encoded("opus", tone(0.2)))
        rows = f"file\ttranscript\n{clip.relative_to(corpus).as_posix()}\tHello.\n"
        (corpus / "labels.tsv").write_text(rows, encoding="utf-8")
        assert [utterance.text for utterance in load(tmp_path, [name])] == ["Hello."]


def test_emospeech_leaves_out_noise_and_unknown_users(data: Path) -> None:
    utterances = load(data, ["emospeech_india"])
    assert {utterance.audio.parent.name for utterance in utterances if utterance.audio} == {"webservice"}
    assert len({utterance.speaker for utterance in utterances}) == USERS


def test_baved_has_levels_of_which_one_has_a_category_and_leaves_out_a_repeated_speaker(data: Path) -> None:
    utterances = load(data, ["baved"], scheme=None)
    assert {utterance.speaker for utterance in utterances} == {"0", "54"}
    assert without_category(utterances) == {"low", "high"}


@pytest.mark.parametrize("name", ["crema_d", "savee", "emodb", "urduser", "shemo", "iitkgp_sehsc", "iemocap"])
def test_the_split_of_an_acted_corpus_has_three_parts_without_a_common_speaker(data: Path, name: str) -> None:
    utterances = load(data, [name])
    assert {utterance.split for utterance in utterances} == set(Split)
    check_leakage(utterances, ["speaker"])
    assert all(utterance.speaker for utterance in utterances)


def test_crema_d_without_its_table_has_no_genders(data: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(data / "crema_d", tmp_path / "crema_d"))
    (copy / "VideoDemographics.csv").unlink()
    assert {utterance.gender for utterance in load(tmp_path, ["crema_d"])} == {None}


def test_savee_may_have_the_speaker_in_the_file_name(data: Path, tmp_path: Path) -> None:
    (tmp_path / "savee").mkdir()
    for path in (data / "savee" / "AudioData").glob("*/*"):
        shutil.copy(path, tmp_path / "savee" / f"{path.parent.name}_{path.name}")
    flat, folders = by_id(load(tmp_path, ["savee"])), by_id(load(data, ["savee"]))
    assert flat.keys() == folders.keys()
    assert all((flat[id_].label, flat[id_].split) == (folders[id_].label, folders[id_].split) for id_ in flat)


def test_the_table_of_urduser_must_have_its_columns(data: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(data / "urduser", tmp_path / "urduser"))
    (copy / "UrSEC_Description.csv").write_text("name,text\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"UrSEC_Description\.csv has no columns"):
        load(tmp_path, ["urduser"])


def test_the_published_test_part_of_punjabi_rasa_is_the_test_split(data: Path) -> None:
    tests = [utterance for utterance in load(data, ["punjabi_rasa"]) if utterance.split is Split.test]
    assert {utterance.id.split()[0] for utterance in tests} == {"test"}
    assert len(tests) == 4


def test_punjabi_rasa_without_its_test_part_is_missing(data: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(data / "punjabi_rasa", tmp_path / "punjabi_rasa"))
    shutil.rmtree(copy / "punjabi_emotional_speech" / "test")
    with pytest.raises(CorpusMissing, match=r"Punjabi RASA is not at .*test"):
        load(tmp_path, ["punjabi_rasa"])


def test_unlabelled_clips_of_the_indonesian_competition_are_left_out(data: Path) -> None:
    assert not any(utterance.id.startswith("test") for utterance in load(data, ["indonesian"]))


def test_iemocaps_turns_are_sorted_by_time_and_include_those_without_a_category(data: Path) -> None:
    turns = [turn for turn in load(data, ["iemocap"], scheme=None) if turn.dialogue == "Ses02F_impro01"]
    assert [(turn.position, turn.label_name) for turn in turns] == list(enumerate(IEMOCAP_LABELS))
    assert [turn.speaker for turn in turns[:2]] == ["Ses02F", "Ses02M"]
    assert {turn.group for turn in turns} == {"session 2"}
    assert [turn.valence for turn in turns[:5]] == [-1, -0.5, 0, 0.5, 1]


def test_a_session_of_iemocap_that_is_not_there_is_named(data: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(data / "iemocap", tmp_path / "iemocap"))
    shutil.rmtree(copy / "Session5")
    with pytest.raises(CorpusMissing, match=r"IEMOCAP is not at .*Session5"):
        list(iemocap.load(copy))


@pytest.mark.parametrize(
    ("name", "path", "message"),
    [
        ("crema_d", "AudioWAV/1001_DFA_ANG.wav", "is not named ACTOR_SENTENCE_EMOTION_LEVEL"),
        ("crema_d", "AudioWAV/1001_DFA_SUR_XX.wav", "'SUR' is not one of the labels ANG, DIS"),
        ("savee", "AudioData/XY/a01.wav", "is neither SPEAKER/a01 nor SPEAKER_a01, with DC, JE, JK, KL"),
        ("emodb", "wav/happy.wav", r"as Emo-DB's files are \(03a01Fa\)"),
        ("emodb", "wav/99a01Fa.wav", "'99' is not one of the labels 03, 08"),
        ("urduser", "Angry/angry01.wav", "is not named ACTOR_SEX_EMOTION_NUMBER"),
        ("punjabi_rasa", "train/angry/audio/angry1.wav", "is not named PAN_<gender>_<emotion>_<nnnnn>"),
        ("punjabi_rasa", "train/bored/PAN_F_BORED_00001.wav", "'bored' is not one of the labels angry, happy"),
        ("shemo", "female/woman1.wav", r"as ShEMO's files are \(F01A01\)"),
        ("iitkgp_sehsc", "anger/1.wav", "is not named SPEAKER.SESSION.text-SENTENCE"),
        ("iitkgp_sehsc", "1/session1/1.1.anger-1.wav", "'session1' is not one of the labels anger, disgust"),
        ("ased", "01Neutral/neutral1.wav", r"as ASED's files are \(n1-01-01-01-01\)"),
        ("ased", "01Neutral/x1-01-01-01-01.wav", "'x' is not one of the labels n, f, h, s, a"),
        ("emospeech_india", "metro/yes-happy.wav", "is not named KEYWORD-ENVIRONMENT-EMOTION-TIME-USER"),
        ("emospeech_india", "metro/yes-safe-bored-1-0a.wav", "'bored' is not one of the labels happy, angry"),
        ("nemo", "samples/EB0_anger.wav", "is not named SPEAKER_EMOTION_SENTENCE"),
        ("nemo", "samples/EB0_bored_1.wav", "'bored' is not one of the labels anger, fear"),
        ("turev", "Sound Source/Angry/acik.wav", "is not named SPEAKER_CODE_word"),
        ("turev", "Sound Source/Bored/1157_kz_acik.wav", "'Bored' is not one of the labels Angry, Calm"),
        ("selvas_emotional", "emotional-to-emotional/nea/wav/nea1.wav", r"as SELVAS's files are \(nea00001\)"),
        ("selvas_emotional", "emotional-to-emotional/nea/wav/nea00401.wav", "'4' is not one of the labels 0, 1, 2, 3"),
        ("baved", "0/word.wav", "is not named SPEAKER-GENDER-AGE-WORD-LEVEL-RECORD"),
        ("baved", "0/0-m-21-0-3-105.wav", "'3' is not one of the labels 0, 1, 2"),
        ("indonesian", "train/sedih.wav", r"as the Indonesian six are \(1_05420_sedih_no_data\)"),
    ],
)
def test_the_error_names_a_file_that_does_not_belong_to_the_corpus(
    tmp_path: Path, name: str, path: str, message: str
) -> None:
    (tmp_path / name / path).parent.mkdir(parents=True)
    (tmp_path / name / path).touch()
    with pytest.raises(ValueError, match=message):
        load(tmp_path, [name])


def test_a_folder_without_recordings_is_a_missing_corpus(tmp_path: Path) -> None:
    (tmp_path / "emodb" / "wav").mkdir(parents=True)
    (tmp_path / "emodb" / "wav" / ".03a01Fa.wav").touch()
    with pytest.raises(CorpusMissing, match=r"Emo-DB has no recordings at .*: get it from http://emodb"):
        load(tmp_path, ["emodb"])


MANIFEST = [
    {"path": "clips/1.wav", "text": "hello", "label": "joy", "speaker": "a", "language": "fi", "dialogue": "d"},
    {"path": "clips/2.wav", "label": "boredom", "speaker": "b", "gender": "female", "dialogue": "d", "split": "train"},
    {"text": "go away", "label": "anger, disgust", "speaker": "c", "split": "test", "dialogue": "e", "show": "s"},
]


def write_manifest(path: Path) -> None:
    (path.parent / "clips").mkdir(parents=True)
    for number in (1, 2):
        (path.parent / "clips" / f"{number}.wav").write_bytes(wav(tone(0.2)))
    if path.suffix == ".jsonl":
        path.write_text("\n".join(json.dumps(row) for row in MANIFEST) + "\n", encoding="utf-8")
        return
    columns = list(dict.fromkeys(column for row in MANIFEST for column in row))
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(MANIFEST)


@pytest.mark.parametrize("name", ["mine/calls.csv", "mine/calls.jsonl"])
def test_a_manifest_is_a_corpus(tmp_path: Path, name: str) -> None:
    write_manifest(tmp_path / name)
    spoken, bored, written = load(tmp_path, [name], scheme=None)
    assert (spoken.corpus, spoken.language, spoken.split, spoken.text) == (name, "fi", Split.train, "hello")
    assert (spoken.audio, spoken.group, spoken.valence) == (tmp_path / "mine" / "clips" / "1.wav", "a", 1)
    assert (bored.label_name, bored.target, bored.gender, bored.language) == ("boredom", None, "female", "und")
    assert [(turn.dialogue, turn.position) for turn in (spoken, bored, written)] == [("d", 0), ("d", 1), ("e", 0)]
    assert (written.target, written.audio, written.show) == (ekman_target(["anger", "disgust"]), None, "s")
    assert [utterance.label_name for utterance in load(tmp_path, [name])] == ["joy", "anger, disgust"]


@pytest.mark.parametrize(
    ("row", "error", "message"),
    [
        ({"text": "hello"}, ValueError, r"my\.jsonl, row 1 has text: a row has a label, and a path or a text"),
        ({"label": "joy", "speaker": "a"}, ValueError, "has label, speaker: a row has"),
        ({"label": "joy", "text": "a", "split": "dev"}, ValueError, "'dev' is not one of the labels train, validation"),
        ({"label": "joy", "text": "a", "gender": "f"}, ValueError, "'f' is not one of the labels female, male"),
        ({"label": "joy", "path": "a.wav"}, CorpusMissing, r"row 1: there is no recording at .*a\.wav"),
    ],
)
def test_the_error_names_a_row_of_a_manifest_that_cannot_be_read(
    tmp_path: Path, row: dict[str, str], error: type[Exception], message: str
) -> None:
    (tmp_path / "my.jsonl").write_text(json.dumps(row), encoding="utf-8")
    with pytest.raises(error, match=message):
        load(tmp_path, ["my.jsonl"])


def test_a_manifest_that_is_missing_or_outside_the_data_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CorpusMissing, match=r"there is no manifest at .*my\.csv"):
        load(tmp_path, ["my.csv"])
    with pytest.raises(ValueError, match="name a manifest by its path below the data folder"):
        load(tmp_path, [str(tmp_path / "my.csv")])


def test_a_speaker_of_a_manifest_in_two_splits_leaks(tmp_path: Path) -> None:
    rows = [{"label": "joy", "text": split, "speaker": "a", "split": split} for split in ("train", "test")]
    (tmp_path / "my.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    with pytest.raises(Leakage, match=r"my\.jsonl: group a is in train and in test"):
        load(tmp_path, ["my.jsonl"])
