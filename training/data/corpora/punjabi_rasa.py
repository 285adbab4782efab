"""Punjabi RASA: 9,634 Punjabi recordings, four emotions.

AI4Bharat's Rasa (Varadhan et al. 2024), its Punjabi part as released on Kaggle,
https://www.kaggle.com/datasets/fatimatuzahra9115/punjabi-emotional-speech-dataset-rasa, CC BY 4.0. Files are named
`PAN_<gender>_<emotion>_<nnnnn>`. **The names do not say who speaks**, and the published split is random: the same voice
may stand in training and test, which makes any figure on it an upper bound.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from training.data.utterance import Gender, Split, Utterance, mapped, recordings, split_by_digest, target, valence

LICENCE = "CC BY 4.0"
SOURCE = "https://www.kaggle.com/datasets/fatimatuzahra9115/punjabi-emotional-speech-dataset-rasa"
LABELS = {"angry": "anger", "happy": "joy", "neutral": "neutral", "sad": "sadness"}
NAME = re.compile(r"PAN_(f|m)[a-z]*_[a-z]+_\d+", re.IGNORECASE)
GENDERS: dict[str, Gender] = {"f": "female", "m": "male"}


def load(folder: Path) -> Iterator[Utterance]:
    """`train` and `test` (perhaps in `punjabi_emotional_speech`): `angry/audio/*.wav` ..., words in `metadata.txt`.

    A tenth of what is published for training validates.

    Raises:
        CorpusMissing: one of the two is not at `folder`.
        ValueError: a file is not named as the corpus names its own, or is in a folder that is no label.
    """
    inner = folder / "punjabi_emotional_speech"
    for part in ("train", "test"):
        root = (inner if inner.exists() else folder) / part
        words = _words(root)
        for path in recordings(root, "Punjabi RASA", SOURCE):
            yield _utterance(path, part, path.relative_to(root).parts[0], words.get(path.name))


def _utterance(path: Path, part: str, emotion: str, text: str | None) -> Utterance:
    name = NAME.fullmatch(path.stem)
    if name is None:
        raise ValueError(f"{path.name} is not named PAN_<gender>_<emotion>_<nnnnn> as Punjabi RASA's files are")
    category = mapped(emotion, LABELS, str(path))
    return Utterance(
        id=f"{part} {path.stem}",
        corpus="punjabi_rasa",
        language="pa",
        split=Split.test if part == "test" else split_by_digest(path.stem),
        target=target([category]),
        valence=valence([category]),
        group=f"{part} {path.stem}",
        label_name=emotion,
        text=text,
        audio=path,
        gender=GENDERS[name[1].lower()],
    )


def _words(root: Path) -> dict[str, str]:
    """Lines of the file's name, its words and more, parted by bars."""
    lines = (line for table in root.glob("*/metadata.txt") for line in table.read_text(encoding="utf-8").splitlines())
    rows = (line.split("|") for line in lines)
    return {row[0].strip(): row[1].strip() for row in rows if len(row) > 1}
