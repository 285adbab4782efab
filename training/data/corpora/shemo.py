"""ShEMO: 3,000 clips of Persian radio plays, 87 speakers, six emotions.

Mohamad Nezami et al. 2019, https://github.com/pariajm/sharif-emotional-speech-dataset, Apache-2.0. Files are named by
speaker, emotion and number, as `F01A01`; `shemo.json` has their words.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path

from training.data.utterance import Split, Utterance, mapped, recordings, target, valence

LICENCE = "Apache-2.0"
SOURCE = "https://github.com/pariajm/sharif-emotional-speech-dataset (female.zip, male.zip and shemo.json)"
EMOTIONS = {"A": "angry", "F": "fearful", "H": "happy", "N": "neutral", "S": "sad", "W": "surprised"}
LABELS = {
    "angry": "anger",
    "fearful": "fear",
    "happy": "joy",
    "neutral": "neutral",
    "sad": "sadness",
    "surprised": "surprise",
}
NAME = re.compile(r"([FM])(\d\d)([A-Z])\d+")


def split_of(speaker: int) -> Split:
    """Speaker-independent, by the last digit: 9 validates, 0 tests, the rest train; there is no published split."""
    return {9: Split.validation, 0: Split.test}.get(speaker % 10, Split.train)


def load(folder: Path) -> Iterator[Utterance]:
    """`female/F01A01.wav` ... and `male/M01A01.wav` ..., and the words where `shemo.json` is there.

    Raises:
        CorpusMissing: it is not at `folder`.
        ValueError: a file is not named as the corpus names its own.
    """
    words = _words(folder / "shemo.json")
    for path in recordings(folder, "ShEMO", SOURCE):
        name = NAME.match(path.stem)
        if name is None:
            raise ValueError(f"{path.name} is not named by speaker, emotion and number as ShEMO's files are (F01A01)")
        sex, number, code = name.groups()
        emotion = mapped(code, EMOTIONS, path.name)
        yield Utterance(
            id=path.stem,
            corpus="shemo",
            language="fa",
            split=split_of(int(number)),
            target=target([LABELS[emotion]]),
            valence=valence([LABELS[emotion]]),
            group=f"{sex}{number}",
            label_name=emotion,
            text=words.get(path.stem),
            audio=path,
            speaker=f"{sex}{number}",
            gender="female" if sex == "F" else "male",
        )


def _words(table: Path) -> dict[str, str]:
    if not table.exists():
        return {}
    # Some transcripts begin with a byte order mark.
    rows = json.loads(table.read_text(encoding="utf-8"))
    return {row["id"]: row["transcript"].strip("\ufeff ") for row in rows}
