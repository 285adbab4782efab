"""UrduSER: ten actors of Pakistani television, 3,500 clips of their plays, seven emotions.

Akhtar et al. 2025, "UrduSER: A comprehensive dataset for speech emotion recognition in Urdu language",
https://doi.org/10.1016/j.dib.2025.111627, on Mendeley Data. Files are named `ACTOR_SEX_EMOTION_nn`, all in numbers, in
a folder for each emotion; `UrSEC_Description.csv` has their words. Boredom has no place among the seven categories; the
published bilingual classifier's numbers say that it counts boredom as neutral, which a label scheme can do as well.
"""

import csv
from collections.abc import Iterator, Mapping
from pathlib import Path

from training.data.utterance import Gender, Split, Utterance, mapped, recordings, target, valence

LICENCE = "as stated on its page of Mendeley Data"
SOURCE = "https://doi.org/10.1016/j.dib.2025.111627 (its data on Mendeley Data)"
EMOTIONS = {"1": "Angry", "2": "Fear", "3": "Boredom", "4": "Disgust", "5": "Happy", "6": "Neutral", "7": "Sad"}
LABELS = {
    "Angry": "anger",
    "Fear": "fear",
    "Boredom": None,
    "Disgust": "disgust",
    "Happy": "joy",
    "Neutral": "neutral",
    "Sad": "sadness",
}
SEXES: Mapping[str, Gender] = {"0": "male", "1": "female"}
NAME_COLUMN, WORDS_COLUMN = "فائل کا نام", "تشریح"
"""The columns of the table: the file's name, and what is said."""


def split_of(actor: int) -> Split:
    """Speaker-independent: actors 4 and 9 validate, 5 and 10 test, the rest train; there is no published split."""
    return {4: Split.validation, 0: Split.test}.get(actor % 5, Split.train)


def load(folder: Path) -> Iterator[Utterance]:
    """`Angry/1_0_1_01.wav` ..., and the words where `UrSEC_Description.csv` is there.

    Raises:
        CorpusMissing: it is not at `folder`.
        ValueError: a file is not named as the corpus names its own, or the table has other columns.
    """
    words = _words(folder / "UrSEC_Description.csv")
    for path in recordings(folder, "UrduSER", SOURCE, "*/*"):
        fields = path.stem.split("_")
        if len(fields) != 4 or not fields[0].isdecimal():
            raise ValueError(f"{path.name} is not named ACTOR_SEX_EMOTION_NUMBER as UrduSER's files are")
        actor, sex, code, _ = fields
        emotion = mapped(code, EMOTIONS, path.name)
        yield Utterance(
            id=path.stem,
            corpus="urduser",
            language="ur",
            split=split_of(int(actor)),
            target=target([LABELS[emotion]]),
            valence=valence([LABELS[emotion]]),
            group=actor,
            label_name=emotion,
            text=words.get(path.stem),
            audio=path,
            speaker=actor,
            gender=mapped(sex, SEXES, path.name),
        )


def _words(table: Path) -> dict[str, str]:
    if not table.exists():
        return {}
    with table.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        if not {NAME_COLUMN, WORDS_COLUMN} <= set(reader.fieldnames or ()):
            raise ValueError(f"{table} has no columns {NAME_COLUMN!r} and {WORDS_COLUMN!r}")
        return {row[NAME_COLUMN].strip().removesuffix(".wav"): row[WORDS_COLUMN].strip() for row in reader}
