"""nEMO: nine Polish actors, 90 sentences, six acted emotions.

Christop 2024, "nEMO: Dataset of Emotional Speech in Polish", LREC-COLING, https://github.com/amu-cai/nEMO,
CC BY-NC-SA 4.0. Files are named `SPEAKER_EMOTION_SENTENCE`; `data.tsv` has their texts.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

from training.data.corpora.tables import rows_by_file
from training.data.utterance import Gender, Split, Utterance, ekman_target, find_recordings, implied_valence, look_up

LICENCE = "CC BY-NC-SA 4.0"
SOURCE = "https://github.com/amu-cai/nEMO"
LABELS = {
    "anger": "anger",
    "fear": "fear",
    "happiness": "joy",
    "neutral": "neutral",
    "sadness": "sadness",
    "surprised": "surprise",
}
GENDERS: Mapping[str, Gender] = {
    "EB0": "female",
    "IC0": "female",
    "KD0": "female",
    "KS0": "male",
    "MK0": "female",
    "MP0": "male",
    "SM0": "male",
    "TP0": "male",
    "WR0": "male",
}
VALIDATION_SPEAKERS = frozenset({"KD0", "TP0"})
"""A woman and a man, both with all six emotions; the others train. There is no published split."""

TABLES = {"data.tsv": ("file_id", "raw_text"), "labels.tsv": ("file", "transcript")}
"""The tables of texts, with their columns of the file's name and of its text."""


def load(folder: Path) -> Iterator[Utterance]:
    """Yields the recordings `samples/EB0_anger_1.wav` ..., with texts if there is a table of them.

    Raises:
        CorpusMissing: it is not in `folder`.
        ValueError: a file's name does not follow the corpus's scheme, or the table has other columns.
    """
    texts = _texts(folder)
    for path in find_recordings(folder, "nEMO", SOURCE, "samples/*"):
        fields = path.stem.split("_")
        if len(fields) != 3:
            raise ValueError(f"{path.name} is not named SPEAKER_EMOTION_SENTENCE as nEMO's files are")
        speaker, emotion, _ = fields
        category = look_up(emotion, LABELS, path.name)
        yield Utterance(
            id=path.stem,
            corpus="nemo",
            language="pl",
            split=Split.validation if speaker in VALIDATION_SPEAKERS else Split.train,
            target=ekman_target([category]),
            valence=implied_valence([category]),
            group=speaker,
            label_name=emotion,
            text=texts.get(path.stem),
            audio=path,
            speaker=speaker,
            gender=look_up(speaker, GENDERS, path.name),
        )


def _texts(folder: Path) -> dict[str, str]:
    return {
        stem: row[text]
        for table, (file, text) in TABLES.items()
        for stem, row in rows_by_file(folder / table, file).items()
    }
