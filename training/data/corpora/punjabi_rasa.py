"""Punjabi RASA: 9,634 Punjabi recordings, four emotions.

AI4Bharat's Rasa (Varadhan et al. 2024), its Punjabi part as released on Kaggle,
https://www.kaggle.com/datasets/fatimatuzahra9115/punjabi-emotional-speech-dataset-rasa, CC BY 4.0. Files are named
`PAN_<gender>_<emotion>_<nnnnn>`. **The names do not identify the speaker**, and the published split is random: the same
speaker may be in training and test, so every figure on this corpus is an upper bound.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from training.data.utterance import (
    Gender,
    Split,
    Utterance,
    ekman_target,
    find_recordings,
    implied_valence,
    look_up,
    split_by_digest,
)

LICENCE = "CC BY 4.0"
SOURCE = "https://www.kaggle.com/datasets/fatimatuzahra9115/punjabi-emotional-speech-dataset-rasa"
LABELS = {"angry": "anger", "happy": "joy", "neutral": "neutral", "sad": "sadness"}
NAME = re.compile(r"PAN_(f|m)[a-z]*_[a-z]+_\d+", re.IGNORECASE)
GENDERS: dict[str, Gender] = {"f": "female", "m": "male"}


def load(folder: Path) -> Iterator[Utterance]:
    """Yields the recordings of `train` and `test`: `angry/audio/*.wav` ..., with texts from `metadata.txt`.

    Both folders may be inside `punjabi_emotional_speech`. A tenth of the published training part validates.

    Raises:
        CorpusMissing: one of the two parts is not in `folder`.
        ValueError: a file's name does not follow the corpus's scheme, or its folder is not a label.
    """
    inner = folder / "punjabi_emotional_speech"
    for part in ("train", "test"):
        root = (inner if inner.exists() else folder) / part
        texts = _texts(root)
        for path in find_recordings(root, "Punjabi RASA", SOURCE):
            yield _utterance(path, part, path.relative_to(root).parts[0], texts.get(path.name))


def _utterance(path: Path, part: str, emotion: str, text: str | None) -> Utterance:
    name = NAME.fullmatch(path.stem)
    if name is None:
        raise ValueError(f"{path.name} is not named PAN_<gender>_<emotion>_<nnnnn> as Punjabi RASA's files are")
    category = look_up(emotion, LABELS, str(path))
    return Utterance(
        id=f"{part} {path.stem}",
        corpus="punjabi_rasa",
        language="pa",
        split=Split.test if part == "test" else split_by_digest(path.stem),
        target=ekman_target([category]),
        valence=implied_valence([category]),
        group=f"{part} {path.stem}",
        label_name=emotion,
        text=text,
        audio=path,
        gender=GENDERS[name[1].lower()],
    )


def _texts(root: Path) -> dict[str, str]:
    """Returns the texts by file name, from lines of the form `name|text|...`."""
    lines = (line for table in root.glob("*/metadata.txt") for line in table.read_text(encoding="utf-8").splitlines())
    rows = (line.split("|") for line in lines)
    return {row[0].strip(): row[1].strip() for row in rows if len(row) > 1}
