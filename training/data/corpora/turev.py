"""TurEV-DB: six Turkish amateurs, single words, four acted emotions.

Canpolat, Ormanoglu and Zeyrek 2020, "Turkish Emotion Voice Database (TurEV-DB)", SLTU-CCURL,
https://github.com/Xeaver/TurEV-DB, CC BY-NC-ND 4.0. Files are named `SPEAKER_CODE_word`, in a folder for each emotion.
The words have no diacritics. The speakers' gender is not published.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from training.data.utterance import Split, Utterance, ekman_target, find_recordings, implied_valence, look_up

LICENCE = "CC BY-NC-ND 4.0"
SOURCE = "https://github.com/Xeaver/TurEV-DB"
LABELS = {"Angry": "anger", "Calm": "neutral", "Happy": "joy", "Sad": "sadness"}
VALIDATION_SPEAKERS = frozenset({"6783"})
"""A speaker with all four emotions; the other five train. There is no published split."""

NAME = re.compile(r"(\d+)_[a-z]+_(.+)")


def load(folder: Path) -> Iterator[Utterance]:
    """Yields the recordings `Sound Source/Angry/1157_kz_acik.wav` ...

    Raises:
        CorpusMissing: it is not in `folder`.
        ValueError: the name of a file or folder does not follow the corpus's scheme.
    """
    for path in find_recordings(folder / "Sound Source", "TurEV-DB", SOURCE, "*/*"):
        name = NAME.fullmatch(path.stem)
        if name is None:
            raise ValueError(f"{path.name} is not named SPEAKER_CODE_word as TurEV-DB's files are")
        speaker, word = name.groups()
        category = look_up(path.parent.name, LABELS, path.name)
        yield Utterance(
            id=f"{path.parent.name} {path.stem}",
            corpus="turev",
            language="tr",
            split=Split.validation if speaker in VALIDATION_SPEAKERS else Split.train,
            target=ekman_target([category]),
            valence=implied_valence([category]),
            group=speaker,
            label_name=path.parent.name,
            text=word,
            audio=path,
            speaker=speaker,
        )
