"""UrduSER: ten actors of Pakistani television, 3,500 clips of their plays, seven emotions.

Akhtar et al. 2025, "UrduSER: A comprehensive dataset for speech emotion recognition in Urdu language",
https://doi.org/10.1016/j.dib.2025.111627, on Mendeley Data. Files are named `ACTOR_SEX_EMOTION_nn`, all in numbers, in
a folder for each emotion; `UrSEC_Description.csv` has their texts. Boredom has no category in `EKMAN7`. The published
bilingual classifier counts boredom as neutral, as its published counts show; a label scheme can do the same.
"""

import csv
from collections.abc import Iterator, Mapping
from pathlib import Path

from training.data.utterance import Gender, Split, Utterance, ekman_target, find_recordings, implied_valence, look_up

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
NAME_COLUMN, TEXT_COLUMN = "فائل کا نام", "تشریح"
"""The columns of the table: the file's name, and its text."""


def split_of(actor: int) -> Split:
    """Returns the split of an actor: 4 and 9 validate, 5 and 10 test, the others train. There is no published split."""
    return {4: Split.validation, 0: Split.test}.get(actor % 5, Split.train)


def load(folder: Path) -> Iterator[Utterance]:
    """Yields the recordings `Angry/1_0_1_01.wav` ..., with texts if `UrSEC_Description.csv` exists.

    Raises:
        CorpusMissing: it is not in `folder`.
        ValueError: a file's name does not follow the corpus's scheme, or the table has other columns.
    """
    texts = _texts(folder / "UrSEC_Description.csv")
    for path in find_recordings(folder, "UrduSER", SOURCE, "*/*"):
        fields = path.stem.split("_")
        if len(fields) != 4 or not fields[0].isdecimal():
            raise ValueError(f"{path.name} is not named ACTOR_SEX_EMOTION_NUMBER as UrduSER's files are")
        actor, sex, code, _ = fields
        emotion = look_up(code, EMOTIONS, path.name)
        yield Utterance(
            id=path.stem,
            corpus="urduser",
            language="ur",
            split=split_of(int(actor)),
            target=ekman_target([LABELS[emotion]]),
            valence=implied_valence([LABELS[emotion]]),
            group=actor,
            label_name=emotion,
            text=texts.get(path.stem),
            audio=path,
            speaker=actor,
            gender=look_up(sex, SEXES, path.name),
        )


def _texts(table: Path) -> dict[str, str]:
    if not table.exists():
        return {}
    with table.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        if not {NAME_COLUMN, TEXT_COLUMN} <= set(reader.fieldnames or ()):
            raise ValueError(f"{table} has no columns {NAME_COLUMN!r} and {TEXT_COLUMN!r}")
        return {row[NAME_COLUMN].strip().removesuffix(".wav"): row[TEXT_COLUMN].strip() for row in reader}
