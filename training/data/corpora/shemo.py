"""ShEMO: 3,000 clips of Persian radio plays, 87 speakers, six emotions.

Mohamad Nezami et al. 2019, https://github.com/pariajm/sharif-emotional-speech-dataset, Apache-2.0. Files are named by
speaker, emotion and number, as `F01A01`; `shemo.json` has their texts.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path

from training.data.utterance import Split, Utterance, ekman_target, find_recordings, implied_valence, look_up

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
    """Returns the split of a speaker by the last digit: 9 validates, 0 tests, the others train. There is no published
    split."""
    return {9: Split.validation, 0: Split.test}.get(speaker % 10, Split.train)


def load(folder: Path) -> Iterator[Utterance]:
    """Yields the recordings `female/F01A01.wav` ... and `male/M01A01.wav` ..., with texts if `shemo.json` exists.

    Raises:
        CorpusMissing: it is not in `folder`.
        ValueError: a file's name does not follow the corpus's scheme.
    """
    texts = _texts(folder / "shemo.json")
    for path in find_recordings(folder, "ShEMO", SOURCE):
        name = NAME.match(path.stem)
        if name is None:
            raise ValueError(f"{path.name} is not named by speaker, emotion and number as ShEMO's files are (F01A01)")
        sex, number, code = name.groups()
        emotion = look_up(code, EMOTIONS, path.name)
        yield Utterance(
            id=path.stem,
            corpus="shemo",
            language="fa",
            split=split_of(int(number)),
            target=ekman_target([LABELS[emotion]]),
            valence=implied_valence([LABELS[emotion]]),
            group=f"{sex}{number}",
            label_name=emotion,
            text=texts.get(path.stem),
            audio=path,
            speaker=f"{sex}{number}",
            gender="female" if sex == "F" else "male",
        )


def _texts(table: Path) -> dict[str, str]:
    if not table.exists():
        return {}
    # Some transcripts begin with a byte order mark.
    rows = json.loads(table.read_text(encoding="utf-8"))
    return {row["id"]: row["transcript"].strip("\ufeff ") for row in rows}
