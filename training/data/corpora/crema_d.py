"""CREMA-D: 91 American actors, twelve sentences, six acted emotions.

Cao et al. 2014, https://github.com/CheyneyComputerScience/CREMA-D, ODbL 1.0. Files are named
`ACTOR_SENTENCE_EMOTION_LEVEL`.
"""

import csv
from collections.abc import Iterator
from pathlib import Path

from training.data.utterance import Gender, Split, Utterance, ekman_target, find_recordings, implied_valence, look_up

LICENCE = "ODbL 1.0"
SOURCE = "https://github.com/CheyneyComputerScience/CREMA-D (AudioWAV and VideoDemographics.csv)"
LABELS = {"ANG": "anger", "DIS": "disgust", "FEA": "fear", "HAP": "joy", "NEU": "neutral", "SAD": "sadness"}
SENTENCES = {
    "DFA": "Don't forget a jacket.",
    "IEO": "It's eleven o'clock.",
    "IOM": "I'm on my way to the meeting.",
    "ITH": "I think I have a doctor's appointment.",
    "ITS": "I think I've seen this before.",
    "IWL": "I would like a new alarm clock.",
    "IWW": "I wonder what this is about.",
    "MTI": "Maybe tomorrow it will be cold.",
    "TAI": "The airplane is almost full.",
    "TIE": "That is exactly what happened.",
    "TSI": "The surface is slick.",
    "WSI": "We'll stop in a couple of minutes.",
}
SEXES: dict[str, Gender] = {"Female": "female", "Male": "male"}


def split_of(actor: int) -> Split:
    """Returns the split of an actor: 80% train, 10% validate, 10% test. There is no published split."""
    if actor <= 1073:
        return Split.train
    return Split.validation if actor <= 1082 else Split.test


def load(folder: Path) -> Iterator[Utterance]:
    """Yields the recordings `AudioWAV/1001_DFA_ANG_XX.wav` ..., with the actors' sex from `VideoDemographics.csv`.

    The table may be missing; the gender is then None.

    Raises:
        CorpusMissing: it is not in `folder`.
        ValueError: a file's name does not follow the corpus's scheme.
    """
    genders = _genders(folder / "VideoDemographics.csv")
    for path in find_recordings(folder, "CREMA-D", SOURCE, "AudioWAV/*"):
        fields = path.stem.split("_")
        if len(fields) != 4 or not fields[0].isdecimal():
            raise ValueError(f"{path.name} is not named ACTOR_SENTENCE_EMOTION_LEVEL as CREMA-D's files are")
        actor, sentence, emotion, _ = fields
        category = look_up(emotion, LABELS, path.name)
        yield Utterance(
            id=path.stem,
            corpus="crema_d",
            language="en",
            split=split_of(int(actor)),
            target=ekman_target([category]),
            valence=implied_valence([category]),
            group=actor,
            label_name=emotion,
            text=look_up(sentence, SENTENCES, path.name),
            audio=path,
            speaker=actor,
            gender=genders.get(actor),
        )


def _genders(table: Path) -> dict[str, Gender]:
    if not table.exists():
        return {}
    with table.open(encoding="utf-8-sig", newline="") as file:
        return {row["ActorID"]: look_up(row["Sex"], SEXES, table.name) for row in csv.DictReader(file)}
