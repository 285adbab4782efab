"""Corpora of dialogues: DailyDialog, XDailyDialog, EmotionLines, EmoryNLP, EmoContext, MAIA-DQE, NAIST, CPED."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TypedDict, cast

from training.data.corpora.tables import read_rows
from training.data.corpora.text_corpus import Line, TextCorpus
from training.data.utterance import Gender, Split, look_up

UNLABELLED = "unlabelled"

DAILYDIALOG_NUMBERS = {
    "0": "neutral",
    "1": "anger",
    "2": "disgust",
    "3": "fear",
    "4": "joy",
    "5": "sadness",
    "6": "surprise",
}
XDAILYDIALOG_LANGUAGES = {"De": "de", "It": "it", "Zh": "zh"}


def read_dailydialog(path: Path) -> Iterator[Line]:
    """Yields the turns of `dialogues_train.txt`, with the labels of `dialogues_emotion_train.txt`."""
    yield from _numbered_turns(path, path.with_name(path.name.replace("dialogues_", "dialogues_emotion_")), "en")


def read_xdailydialog(path: Path) -> Iterator[Line]:
    """Yields the turns of `dialogues_text_De.txt`, with the labels of `dialogues_emotion_De.txt`.

    Without that file, those of `dialogues_emotion.txt`, which the publisher has for all languages.
    """
    code = path.stem.rpartition("_")[2]
    own = path.with_name(f"dialogues_emotion_{code}.txt")
    labels = own if own.exists() else path.with_name("dialogues_emotion.txt")
    yield from _numbered_turns(path, labels, look_up(code, XDAILYDIALOG_LANGUAGES, path.name))


def _numbered_turns(texts: Path, labels: Path, language: str) -> Iterator[Line]:
    """Yields the turns of a file with a dialogue in each line, turns ended by `__eou__`.

    Two people speak in turn. Dialogues that have more or fewer labels than turns, as a few published ones do, are left
    out.
    """
    dialogues = texts.read_text(encoding="utf-8").rstrip("\n").split("\n")
    numbers = labels.read_text(encoding="utf-8").rstrip("\n").split("\n")
    if len(dialogues) != len(numbers):
        raise ValueError(f"{texts} has {len(dialogues)} dialogues, and {labels} has the labels of {len(numbers)}")
    for number, (dialogue, codes) in enumerate(zip(dialogues, numbers, strict=True), start=1):
        turns = [turn for turn in dialogue.split("__eou__") if turn.strip()]
        if len(turns) == len(codes.split()):
            for i, (turn, code) in enumerate(zip(turns, codes.split(), strict=True)):
                label = look_up(code, DAILYDIALOG_NUMBERS, f"{labels.name}, {number}")
                yield Line(turn, (label,), language=language, dialogue=f"{number}", speaker="AB"[i % 2])


EKMAN_LABELS: dict[str, str | None] = {
    "neutral": "neutral",
    "joy": "joy",
    "sadness": "sadness",
    "fear": "fear",
    "anger": "anger",
    "surprise": "surprise",
    "disgust": "disgust",
}

DAILYDIALOG = TextCorpus(
    name="dailydialog",
    title="DailyDialog",
    # Li et al. 2017: dialogues for learners of English.
    source="http://yanran.li/dailydialog",
    licence="CC BY-NC-SA 4.0",
    commercial="no",
    languages=("en",),
    files={
        Split.train: ("**/dialogues_train.txt",),
        Split.validation: ("**/dialogues_validation.txt",),
        Split.test: ("**/dialogues_test.txt",),
    },
    labels=EKMAN_LABELS,
    read=read_dailydialog,
)

XDAILYDIALOG = TextCorpus(
    name="xdailydialog",
    title="XDailyDialog",
    # Liu et al. 2023: translations of DailyDialog. Its English file is DailyDialog itself and is not read.
    source="https://github.com/liuzeming01/XDailyDialog (data)",
    licence="CC BY-NC-SA 4.0 (code Apache-2.0)",
    commercial="no",
    languages=("de", "it", "zh"),
    files={
        Split.train: ("train/dialogues_text_[DIZ]?.txt", "dialogues_text_[DIZ]?.txt"),
        Split.validation: ("dev/dialogues_text_[DIZ]?.txt",),
        Split.test: ("test/dialogues_text_[DIZ]?.txt",),
    },
    labels=EKMAN_LABELS,
    read=read_xdailydialog,
)


class EmotionLinesTurn(TypedDict):
    """A turn as EmotionLines has it in JSON."""

    speaker: str
    utterance: str
    emotion: str
    annotation: str


def read_emotionlines(path: Path) -> Iterator[Line]:
    """Yields the turns of the publisher's JSON, which is a list of dialogues, or of a table.

    A turn's `annotation` has a digit for each label in the order of `EKMAN_LABELS`: how many of five people chose it.
    """
    if path.suffix == ".json":
        dialogues = cast("list[list[EmotionLinesTurn]]", json.loads(path.read_text(encoding="utf-8-sig")))
        turns = [(f"{number}", turn) for number, dialogue in enumerate(dialogues) for turn in dialogue]
    else:
        rows = read_rows(path, "dialogue", "speaker", "utterance", "emotion", "annotation")
        turns = [(row["dialogue"], cast("EmotionLinesTurn", row)) for row in rows]
    for dialogue, turn in turns:
        counts = zip(EKMAN_LABELS, turn["annotation"], strict=True)
        votes = tuple(label for label, count in counts for _ in range(int(count)))
        yield Line(turn["utterance"], (turn["emotion"],), votes, dialogue=dialogue, speaker=turn["speaker"])


EMOTIONLINES = TextCorpus(
    name="emotionlines",
    title="EmotionLines, Friends",
    # Hsu et al. 2018. MELD has the same dialogues, labelled by people who also heard and saw them.
    source="https://doraemon.iis.sinica.edu.tw/emotionlines/download.html",
    licence="none stated",
    commercial="unclear",
    languages=("en",),
    files={
        Split.train: ("**/friends_train.*",),
        Split.validation: ("**/friends_dev.*",),
        Split.test: ("**/friends_test.*",),
    },
    labels=EKMAN_LABELS | {"non-neutral": None},
    read=read_emotionlines,
)


class EmoryTurn(TypedDict):
    """A turn as EmoryNLP has it in JSON."""

    speakers: list[str]
    transcript: str
    emotion: str


class EmoryScene(TypedDict):
    """A scene as EmoryNLP has it in JSON."""

    scene_id: str
    utterances: list[EmoryTurn]


class EmoryEpisode(TypedDict):
    """An episode as EmoryNLP has it in JSON."""

    scenes: list[EmoryScene]


def read_emorynlp(path: Path) -> Iterator[Line]:
    """Yields the turns of the publisher's JSON, which has scenes by episode, or of a table."""
    if path.suffix != ".json":
        for row in read_rows(path, "scene_id", "speakers", "transcript", "emotion"):
            yield _emory_line(row["scene_id"], row["speakers"], row["transcript"], row["emotion"])
        return
    episodes = cast("list[EmoryEpisode]", json.loads(path.read_text(encoding="utf-8-sig"))["episodes"])
    for scene in (scene for episode in episodes for scene in episode["scenes"]):
        for turn in scene["utterances"]:
            yield _emory_line(scene["scene_id"], ", ".join(turn["speakers"]), turn["transcript"], turn["emotion"])


def _emory_line(scene: str, speaker: str, text: str, emotion: str) -> Line:
    return Line(text, (emotion,), dialogue=scene, speaker=speaker, show=scene.rpartition("_")[0])


EMORYNLP = TextCorpus(
    name="emorynlp",
    title="EmoryNLP",
    # Zahiri and Choi 2018: the first four seasons of Friends.
    source="https://github.com/emorynlp/emotion-detection",
    licence="Apache-2.0",
    commercial="yes",
    languages=("en",),
    files={
        Split.train: ("**/emotion-detection-trn.*",),
        Split.validation: ("**/emotion-detection-dev.*",),
        Split.test: ("**/emotion-detection-tst.*",),
    },
    labels={
        "Joyful": "joy",
        "Mad": "anger",
        "Neutral": "neutral",
        "Peaceful": None,
        "Powerful": None,
        "Sad": "sadness",
        "Scared": "fear",
    },
    read=read_emorynlp,
)


def read_emocontext(path: Path) -> Iterator[Line]:
    """Yields three turns of each row, by the user, the bot and the user; only the third has a label."""
    for number, row in enumerate(read_rows(path, "turn1", "turn2", "turn3", "label"), start=1):
        labels = (UNLABELLED, UNLABELLED, row["label"].strip())
        for i, (speaker, label) in enumerate(zip(("user", "bot", "user"), labels, strict=True), start=1):
            yield Line(row[f"turn{i}"], (label,), dialogue=f"{number}", speaker=speaker)


EMOCONTEXT = TextCorpus(
    name="emocontext",
    title="EmoContext",
    # Chatterjee et al. 2019: task 3 of SemEval 2019. `others` is neutral, or another emotion.
    source="https://www.humanizing-ai.com/emocontext.html",
    licence="none stated",
    commercial="unclear",
    languages=("en",),
    files={Split.train: ("**/train.txt",), Split.validation: ("**/dev.txt",), Split.test: ("**/test.txt",)},
    labels={"happy": "joy", "sad": "sadness", "angry": "anger", "others": None, UNLABELLED: None},
    read=read_emocontext,
)


class MaiaTurn(TypedDict):
    """A turn as MAIA-DQE has it in JSON: its sentences, and the number of each one's emotion."""

    floor: str
    text_src: list[str]
    Emotion: list[int]


class MaiaDialogue(TypedDict):
    """A dialogue as MAIA-DQE has it in JSON."""

    id: str
    turns: list[MaiaTurn]


MAIA_LABELS: dict[str, str | None] = {
    "empathy": None,
    "happiness": "joy",
    "neutral": "neutral",
    "disappointment": "sadness",
    "confusion": None,
    "frustration": "anger",
    "anger": "anger",
    "anxiety": "fear",
}
"""In the order of the labels' numbers, from 0."""

MAIA_LANGUAGES = {"de": "de", "en": "en", "pt-BR": "pt", "pt-PT": "pt", "pt": "pt"}


def read_maia(path: Path) -> Iterator[Line]:
    """Yields the sentences of the publisher's JSON, such as `pt_br_client_02.json`, or of a table.

    A customer (`inbound`) writes in the file's language, the agent (`outbound`) in English.
    """
    if path.suffix != ".json":
        for row in read_rows(path, "id", "floor", "language", "text_src", "Emotion"):
            language = look_up(row["language"], MAIA_LANGUAGES, path.name)
            yield Line(row["text_src"], (row["Emotion"],), (), language, row["id"], row["floor"])
        return
    names = {f"{number}": name for number, name in enumerate(MAIA_LABELS)}
    dialogues = cast("list[MaiaDialogue]", json.loads(path.read_text(encoding="utf-8-sig")))
    for dialogue in dialogues:
        for turn in dialogue["turns"]:
            code = "en" if turn["floor"] == "outbound" else path.stem.partition("_")[0]
            language = look_up(code, MAIA_LANGUAGES, path.name)
            for text, number in zip(turn["text_src"], turn["Emotion"], strict=False):
                label = look_up(f"{number}", names, path.name)
                yield Line(text, (label,), (), language, dialogue["id"], turn["floor"])


MAIA_DQE = TextCorpus(
    name="maia_dqe",
    title="MAIA-DQE",
    # Mendonça et al. 2023: help-desk dialogues.
    source="https://github.com/johndmendonca/MAIA-DQE (data)",
    licence="none stated",
    commercial="unclear",
    languages=("de", "pt", "en"),
    files={Split.train: ("train.tsv", "*_client_*.json"), Split.validation: ("dev.tsv",)},
    labels=MAIA_LABELS,
    read=read_maia,
)


def read_naist(path: Path) -> Iterator[Line]:
    """Yields the turns of a table whose column `emotion` has each annotator's label, separated by hyphens.

    The labels that most annotators chose are the turn's.
    """
    for row in read_rows(path, "dialogue", "speaker", "utterance", "emotion"):
        votes = tuple(row["emotion"].split("-"))
        counts = Counter(votes)
        labels = tuple(label for label, count in counts.items() if count == max(counts.values()))
        yield Line(row["utterance"], labels, votes, dialogue=row["dialogue"], speaker=row["speaker"].strip())


NAIST_PERSUASION = TextCorpus(
    name="naist_persuasion",
    title="NAIST persuasive dialogues",
    # A robot persuades a boy, in writing.
    source="https://aclanthology.org (Yoshino et al. 2018, LREC, on persuasive dialogue with emotional expressions)",
    licence="no restriction, citation asked",
    commercial="yes",
    languages=("ja",),
    files={Split.train: ("train.tsv",), Split.validation: ("dev.tsv",), Split.test: ("test.tsv",)},
    # 安心 is contentment.
    labels={"平静": "neutral", "怒り": "anger", "喜び": "joy", "悲しみ": "sadness", "安心": "joy"},
    read=read_naist,
)

CPED_GENDERS: Mapping[str, Gender] = {"female": "female", "male": "male"}


def read_cped(path: Path) -> Iterator[Line]:
    """Yields the turns of a table of CPED; the dialogue's name begins with the number of the programme."""
    for row in read_rows(path, "Dialogue_ID", "Speaker", "Emotion", "Utterance"):
        yield Line(
            row["Utterance"],
            (row["Emotion"],),
            dialogue=row["Dialogue_ID"],
            speaker=row["Speaker"],
            gender=CPED_GENDERS.get(row.get("Gender", "")),
            show=row["Dialogue_ID"].partition("_")[0],
        )


CPED = TextCorpus(
    name="cped",
    title="CPED",
    # Chen et al. 2022: dialogues of 40 television series.
    source="https://github.com/scutcyr/CPED (data/CPED)",
    licence="Apache-2.0",
    commercial="yes",
    languages=("zh",),
    files={
        Split.train: ("**/train_split.csv",),
        Split.validation: ("**/valid_split.csv",),
        Split.test: ("**/test_split.csv",),
    },
    labels={
        "happy": "joy",
        "grateful": "joy",
        "relaxed": None,
        "positive-other": None,
        "neutral": "neutral",
        "anger": "anger",
        "sadness": "sadness",
        "fear": "fear",
        "depress": "sadness",
        "disgust": "disgust",
        "astonished": "surprise",
        "worried": "fear",
        "negative-other": None,
    },
    read=read_cped,
)

CORPORA = (
    DAILYDIALOG,
    XDAILYDIALOG,
    EMOTIONLINES,
    EMORYNLP,
    EMOCONTEXT,
    MAIA_DQE,
    NAIST_PERSUASION,
    CPED,
)
