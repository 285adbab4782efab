"""ASED: 65 Amharic speakers, read sentences, five acted emotions.

Retta et al. 2022, "A New Amharic Speech Emotion Dataset and Classification Benchmark", ACM TALLIP,
https://github.com/Ethio2021/ASED_V1; no licence is stated, only a request to cite. Files are named by emotion and
folder, sentence, repetition, gender and speaker, as `n1-01-01-01-01`, in a folder for each emotion.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from training.data.utterance import Split, Utterance, ekman_target, find_recordings, implied_valence, look_up

LICENCE = "none stated, citation asked"
SOURCE = "https://github.com/Ethio2021/ASED_V1"
EMOTIONS = {"n": "neutral", "f": "fearful", "h": "happy", "s": "sad", "a": "angry"}
LABELS = {"neutral": "neutral", "fearful": "fear", "happy": "joy", "sad": "sadness", "angry": "anger"}
WOMEN = frozenset({*range(1, 38, 2), 43, 47, 48, 49, 58, 62})
"""The speakers who are women. The gender in the name of four files contradicts the speaker's other files."""

NAME = re.compile(r"([a-z])\d-\d\d-\d\d-\d\d-(\d\d)", re.IGNORECASE)


def split_of(speaker: int) -> Split:
    """Returns the split of a speaker: those whose number ends in 5 or 6 validate. There is no published split."""
    return Split.validation if speaker % 10 in (5, 6) else Split.train


def load(folder: Path) -> Iterator[Utterance]:
    """Yields the recordings `01Neutral/n1-01-01-01-01.wav` ...

    Raises:
        CorpusMissing: it is not in `folder`.
        ValueError: a file's name does not follow the corpus's scheme.
    """
    for path in find_recordings(folder, "ASED", SOURCE):
        name = NAME.fullmatch(path.stem)
        if name is None:
            raise ValueError(
                f"{path.name} is not named by emotion, sentence, repetition, gender and speaker as ASED's files are "
                "(n1-01-01-01-01)"
            )
        emotion = look_up(name[1].lower(), EMOTIONS, path.name)
        yield Utterance(
            id=path.stem,
            corpus="ased",
            language="am",
            split=split_of(int(name[2])),
            target=ekman_target([LABELS[emotion]]),
            valence=implied_valence([LABELS[emotion]]),
            group=name[2],
            label_name=emotion,
            audio=path,
            speaker=name[2],
            gender="female" if int(name[2]) in WOMEN else "male",
        )
