"""Corpora of single texts: BRIGHTER, SMP2020-EWECT, KOTE, EmoEvent, ArmanEmo, UIT-VSMEC, BEmoC, CEDR and others."""

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from training.data.corpora.tables import read_cells, read_rows
from training.data.corpora.text_corpus import Line, TextCorpus
from training.data.utterance import Split, look_up

Reader = Callable[[Path], Iterator[Line]]
Language = Callable[[Path], str]
MARKED = frozenset({"1", "1.0"})


def one_label(text: str, label: str, language: Language | None = None) -> Reader:
    """Returns a reader of a table with a text and one label in each row.

    Args:
        text: the column of the texts.
        label: the column of the labels.
        language: returns the language of a file; None if the corpus has one language only.
    """

    def read(path: Path) -> Iterator[Line]:
        for row in read_rows(path, text, label):
            yield Line(row[text], (row[label].strip(),), language=language(path) if language else None)

    return read


def marked_labels(text: str, labels: Sequence[str], otherwise: str, language: Language | None = None) -> Reader:
    """Returns a reader of a table with a column for each label, which is 1 where the label applies and 0 elsewhere.

    Args:
        text: the column of the texts.
        labels: the columns of the labels; a file may lack some of them.
        otherwise: the label of a text without any other.
        language: returns the language of a file; None if the corpus has one language only.
    """

    def read(path: Path) -> Iterator[Line]:
        for row in read_rows(path, text):
            # Some files of BRIGHTER were published with capitals.
            cells = {column.lower(): cell.strip() for column, cell in row.items()}
            marked = tuple(label for label in labels if cells.get(label.lower()) in MARKED)
            yield Line(row[text], marked or (otherwise,), language=language(path) if language else None)

    return read


def without_header(path: Path) -> Iterator[Line]:
    """Yields the lines of a table without a header, whose last two cells are a text and its label."""
    for cells in read_cells(path):
        text, label = cells[-2:]
        yield Line(text, (label.strip(),))


def same(*names: str) -> dict[str, str | None]:
    """Returns the labels that are categories of `EKMAN7` by the same name."""
    return {name: name for name in names}


BRIGHTER_LANGUAGES = {
    "afr": "af",
    "amh": "am",
    "arq": "arq",
    "ary": "ary",
    "chn": "zh",
    "deu": "de",
    "eng": "en",
    "esp": "es",
    "hau": "ha",
    "hin": "hi",
    "ibo": "ig",
    "ind": "id",
    "jav": "jv",
    "kin": "rw",
    "mar": "mr",
    "orm": "om",
    "pcm": "pcm",
    "ptbr": "pt",
    "ptmz": "pt",
    "ron": "ro",
    "rus": "ru",
    "som": "so",
    "sun": "su",
    "swa": "sw",
    "swe": "sv",
    "tat": "tt",
    "tir": "ti",
    "ukr": "uk",
    "vmw": "vmw",
    "xho": "xh",
    "yor": "yo",
    "zul": "zu",
}
"""By the name of a file. The files are not named by codes of ISO 639 throughout."""

BRIGHTER = TextCorpus(
    name="brighter",
    title="BRIGHTER",
    # Muhammad et al. 2025, with EthioEmo: track A of task 11 of SemEval 2025.
    source="https://github.com/emotion-analysis-project/SemEval2025-Task11 (track_a)",
    licence="CC BY 4.0",
    commercial="yes",
    languages=tuple(dict.fromkeys(BRIGHTER_LANGUAGES.values())),
    files={
        Split.train: ("**/train/*.csv",),
        Split.validation: ("**/dev/*.csv",),
        Split.test: ("**/test/*.csv",),
    },
    # Afrikaans lacks surprise, English disgust. A text without any of the six is mostly neutral.
    labels=same("anger", "disgust", "fear", "joy", "sadness", "surprise") | {"none": "neutral"},
    read=marked_labels(
        "text",
        ("anger", "disgust", "fear", "joy", "sadness", "surprise"),
        otherwise="none",
        language=lambda path: look_up(path.stem, BRIGHTER_LANGUAGES, f"{path}"),
    ),
)

SMP2020_EWECT = TextCorpus(
    name="smp2020_ewect",
    title="SMP2020-EWECT",
    source="https://smp2020ewect.github.io",
    licence="none stated",
    commercial="unclear",
    languages=("zh",),
    files={
        Split.train: ("**/*_train.*",),
        Split.validation: ("**/*_eval.*", "**/*_eval_labeled.*"),
        Split.test: ("**/*_test_labeled.*",),
    },
    labels={
        "angry": "anger",
        "fear": "fear",
        "happy": "joy",
        "neutral": "neutral",
        "sad": "sadness",
        "surprise": "surprise",
    },
    read=one_label("content", "label"),
)

KOTE_LABELS: dict[str, str | None] = {
    "불평/불만": "anger",
    "환영/호의": "joy",
    "감동/감탄": "joy",
    "지긋지긋": "anger",
    "고마움": "joy",
    "슬픔": "sadness",
    "화남/분노": "anger",
    "존경": None,
    "기대감": None,
    "우쭐댐/무시함": None,
    "안타까움/실망": "sadness",
    "비장함": None,
    "의심/불신": None,
    "뿌듯함": "joy",
    "편안/쾌적": "joy",
    "신기함/관심": None,
    "아껴주는": None,
    "부끄러움": None,
    "공포/무서움": "fear",
    "절망": "sadness",
    "한심함": None,
    "역겨움/징그러움": "disgust",
    "짜증": "anger",
    "어이없음": None,
    "없음": "neutral",
    "패배/자기혐오": "sadness",
    "귀찮음": None,
    "힘듦/지침": "sadness",
    "즐거움/신남": "joy",
    "깨달음": None,
    "죄책감": None,
    "증오/혐오": "disgust",
    "흐뭇함(귀여움/예쁨)": "joy",
    "당황/난처": None,
    "경악": "surprise",
    "부담/안_내킴": None,
    "서러움": "sadness",
    "재미없음": None,
    "불쌍함/연민": "sadness",
    "놀람": "surprise",
    "행복": "joy",
    "불안/걱정": "fear",
    "기쁨": "joy",
    "안심/신뢰": "joy",
}
"""In the order of the labels' numbers, from 0."""


def read_kote(path: Path) -> Iterator[Line]:
    """Yields the comments of a table without a header, whose last two cells are a comment and its labels' numbers."""
    names = {f"{number}": name for number, name in enumerate(KOTE_LABELS)}
    for cells in read_cells(path):
        text, numbers = cells[-2:]
        yield Line(text, tuple(look_up(number.strip(), names, path.name) for number in numbers.split(",")))


KOTE = TextCorpus(
    name="kote",
    title="KOTE",
    # Jeon et al. 2022. A label applies where at least one of five people chose it.
    source="https://github.com/searle-j/KOTE",
    licence="MIT",
    commercial="yes",
    languages=("ko",),
    files={Split.train: ("train.tsv",), Split.validation: ("val.tsv",), Split.test: ("test.tsv",)},
    labels=KOTE_LABELS,
    read=read_kote,
)

EMOEVENT = TextCorpus(
    name="emoevent",
    title="EmoEvent",
    # Plaza-del-Arco et al. 2020. `others` is neutral, or another emotion.
    source="https://github.com/fmplaza/EmoEvent",
    licence="Apache-2.0 on one page of its authors, CC BY-NC-SA 4.0 on another",
    commercial="unclear",
    languages=("es", "en"),
    files={
        Split.train: ("**/es/train.tsv", "**/en/train.tsv"),
        Split.validation: ("**/es/dev.tsv", "**/en/dev.tsv"),
        Split.test: ("**/es/test.tsv", "**/en/test.tsv"),
    },
    labels=same("anger", "disgust", "fear", "joy", "sadness", "surprise") | {"others": None},
    read=one_label("tweet", "emotion", language=lambda path: path.parent.name),
)

ARMANEMO = TextCorpus(
    name="armanemo",
    title="ArmanEmo",
    # Mirzaee et al. 2022.
    source="https://github.com/Arman-Rayan-Sharif/arman-text-emotion",
    licence="CC BY-NC-SA 4.0",
    commercial="no",
    languages=("fa",),
    files={Split.train: ("**/train.tsv",), Split.test: ("**/test.tsv",)},
    labels={
        "ANGRY": "anger",
        "FEAR": "fear",
        "HAPPY": "joy",
        "HATE": "disgust",
        "SAD": "sadness",
        "SURPRISE": "surprise",
        "OTHER": None,
    },
    read=without_header,
)

UIT_VSMEC = TextCorpus(
    name="uit_vsmec",
    title="UIT-VSMEC",
    # Ho et al. 2019.
    source="https://nlp.uit.edu.vn/datasets",
    licence="none stated",
    commercial="unclear",
    languages=("vi",),
    files={
        Split.train: ("train_nor_811.*",),
        Split.validation: ("valid_nor_811.*",),
        Split.test: ("test_nor_811.*",),
    },
    labels={
        "Anger": "anger",
        "Disgust": "disgust",
        "Enjoyment": "joy",
        "Fear": "fear",
        "Sadness": "sadness",
        "Surprise": "surprise",
        "Other": None,
    },
    read=one_label("Sentence", "Emotion"),
)

BEMOC = TextCorpus(
    name="bemoc",
    title="BEmoC",
    source="https://aclanthology.org (Das et al. 2021, NAACL student research workshop, on emotions in Bengali)",
    licence="none stated",
    commercial="unclear",
    languages=("bn",),
    files={Split.train: ("**/train.*",), Split.validation: ("**/val.*",), Split.test: ("**/test.*",)},
    labels=same("anger", "disgust", "fear", "joy", "sadness", "surprise"),
    read=one_label("cleaned", "classes"),
)

CEDR_NUMBERS = {"0": "joy", "1": "sadness", "2": "surprise", "3": "fear", "4": "anger"}


def read_cedr(path: Path) -> Iterator[Line]:
    """Yields the sentences of a table whose column `labels` has numbers in brackets, none for a neutral sentence."""
    for row in read_rows(path, "text", "labels"):
        numbers: list[str] = re.findall(r"\d+", row["labels"])
        labels = tuple(look_up(number, CEDR_NUMBERS, path.name) for number in numbers)
        yield Line(row["text"], labels or ("no emotion",))


CEDR = TextCorpus(
    name="cedr",
    title="CEDR",
    # Sboev et al. 2021.
    source="https://github.com/sag111/CEDR",
    licence="Apache-2.0",
    commercial="yes",
    languages=("ru",),
    files={Split.train: ("**/cedr-main-train.*",), Split.test: ("**/cedr-main-test.*",)},
    labels=same("joy", "sadness", "surprise", "fear", "anger") | {"no emotion": "neutral"},
    read=read_cedr,
)

MULTIEMOTIONS_LABELS: dict[str, str | None] = {
    "GIOIA": "joy",
    "FIDUCIA": None,
    "TRISTEZZA": "sadness",
    "RABBIA": "anger",
    "PAURA": "fear",
    "DISGUSTO": "disgust",
    "SORPRESA": "surprise",
    "TREPIDAZIONE": None,
}

MULTIEMOTIONS_IT = TextCorpus(
    name="multiemotions_it",
    title="MultiEmotions-It",
    # Sprugnoli 2020. Every comment without an emotion is marked as neutral.
    source="https://github.com/RacheleSprugnoli/Esercitazioni_SA/tree/master/dataset",
    licence="CC BY-NC-SA 4.0",
    commercial="no",
    languages=("it",),
    files={Split.train: ("**/MultiEmotions-It.tsv",)},
    labels=MULTIEMOTIONS_LABELS | {"NEUT": "neutral"},
    read=marked_labels("comment", tuple(MULTIEMOTIONS_LABELS), otherwise="NEUT"),
)

EMOTIONAL_TONE = TextCorpus(
    name="emotional_tone",
    title="Emotional-Tone",
    # Al-Khatib and El-Beltagy 2018, mostly Egyptian.
    source="https://github.com/amrmalkhatib/Emotional-Tone",
    licence="none stated",
    commercial="unclear",
    languages=("ar",),
    files={Split.train: ("Emotional-Tone-Dataset.*",)},
    labels={
        "none": "neutral",
        "anger": "anger",
        "fear": "fear",
        "joy": "joy",
        "love": "joy",
        "sadness": "sadness",
        "surprise": "surprise",
        "sympathy": None,
    },
    read=one_label("TWEET", "LABEL"),
)

BHAAV_NUMBERS = {"0": "anger", "1": "joy", "2": "sad", "3": "suspense", "4": "neutral"}


def read_bhaav(path: Path) -> Iterator[Line]:
    """Yields the sentences of a table whose column `Annotation` has labels or their numbers."""
    for row in read_rows(path, "Sentences", "Annotation"):
        label = row["Annotation"].strip()
        yield Line(row["Sentences"], (BHAAV_NUMBERS.get(label, label),))


BHAAV = TextCorpus(
    name="bhaav",
    title="BHAAV",
    # Kumar et al. 2019.
    source="https://zenodo.org/record/3457467 (named by https://github.com/midas-research/bhaav)",
    licence="MIT with its repository, none stated for the data",
    commercial="unclear",
    languages=("hi",),
    files={Split.train: ("Bhaav-Dataset.*",)},
    labels={"anger": "anger", "joy": "joy", "sad": "sadness", "suspense": None, "neutral": "neutral"},
    read=read_bhaav,
)

TURKISH_TWEETS = TextCorpus(
    name="turkish_tweets",
    title="Turkish Tweets Dataset",
    # Z. A. Güven. The tweets were found by words of emotion: the labels are weak, and easier than those of real texts.
    source="https://www.kaggle.com/datasets/anil1055/turkish-tweet-dataset",
    licence="none stated",
    commercial="unclear",
    languages=("tr",),
    files={Split.train: ("turkish_tweets.*", "TurkishTweets.*")},
    labels={"kızgın": "anger", "korku": "fear", "mutlu": "joy", "surpriz": "surprise", "üzgün": "sadness"},  # noqa: RUF001
    read=one_label("Tweet", "Etiket"),
)

RED_RO = TextCorpus(
    name="red_ro",
    title="RED",
    # Ciobotaru and Dinu 2021, the first version.
    source="https://github.com/Alegzandra/RED-Romanian-Emotions-Dataset (REDv1)",
    licence="MIT",
    commercial="yes",
    languages=("ro",),
    files={Split.train: ("train.*",), Split.validation: ("val.*",), Split.test: ("test.*",)},
    labels={"Neutru": "neutral", "Bucurie": "joy", "Frica": "fear", "Furie": "anger", "Tristete": "sadness"},
    read=one_label("Tweet", "Emotion"),
)

ISEAR = TextCorpus(
    name="isear",
    title="ISEAR",
    # Scherer and Wallbott 1994. The label is the teller's.
    source="https://github.com/sinmaniphel/py_isear_dataset (isear.csv)",
    licence="CC BY-NC-SA 3.0",
    commercial="no",
    languages=("en",),
    files={Split.train: ("isear.*",)},
    labels=same("joy", "fear", "anger", "sadness", "disgust") | {"shame": None, "guilt": None},
    read=one_label("SIT", "Field1"),
)

SEMEVAL2018_LABELS: dict[str, str | None] = {
    "anger": "anger",
    "anticipation": None,
    "disgust": "disgust",
    "fear": "fear",
    "joy": "joy",
    "love": "joy",
    "optimism": "joy",
    "pessimism": "sadness",
    "sadness": "sadness",
    "surprise": "surprise",
    "trust": None,
}

SEMEVAL2018_EC = TextCorpus(
    name="semeval2018_ec",
    title="SemEval-2018 E-c",
    # Mohammad et al. 2018: the English part of subtask 5 of task 1.
    source="https://competitions.codalab.org/competitions/17751 (English/E-c)",
    licence="research use; commercial use by agreement",
    commercial="no",
    languages=("en",),
    files={
        Split.train: ("**/2018-E-c-En-train.txt",),
        Split.validation: ("**/2018-E-c-En-dev.txt",),
        Split.test: ("**/2018-E-c-En-test-gold.txt",),
    },
    labels=SEMEVAL2018_LABELS | {"none": "neutral"},
    read=marked_labels("Tweet", tuple(SEMEVAL2018_LABELS), otherwise="none"),
)

CORPORA = (
    BRIGHTER,
    SMP2020_EWECT,
    KOTE,
    EMOEVENT,
    ARMANEMO,
    UIT_VSMEC,
    BEMOC,
    CEDR,
    MULTIEMOTIONS_IT,
    EMOTIONAL_TONE,
    BHAAV,
    TURKISH_TWEETS,
    RED_RO,
    ISEAR,
    SEMEVAL2018_EC,
)
