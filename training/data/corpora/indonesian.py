"""The Indonesian six: some 6,800 Indonesian recordings, six acted emotions.

The data of a competition of 2025, https://www.kaggle.com/competitions/speech-emotion-recognition-dl-genap-2024-2025,
under its rules. Files are named `1_05420_sedih_no_data`: a part, a number, the emotion, and its intensity (`no_data` if
it is unknown). **The names do not identify the speaker**: the same speaker may be in training and validation. The
competition's test files (`test544.wav`) have no labels and are left out.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from training.data.utterance import Utterance, ekman_target, find_recordings, implied_valence, look_up, split_by_digest

LICENCE = "under the rules of its competition"
SOURCE = "https://www.kaggle.com/competitions/speech-emotion-recognition-dl-genap-2024-2025"
LABELS = {
    "bahagia": "joy",
    "jijik": "disgust",
    "marah": "anger",
    "netral": "neutral",
    "sedih": "sadness",
    "takut": "fear",
}
NAME = re.compile(r"\d+_\d+_([a-z]+)_\w+")
UNLABELLED = re.compile(r"test\d+")


def load(folder: Path) -> Iterator[Utterance]:
    """Yields all labelled recordings below `folder`; a tenth validates. There is no published split with labels.

    Raises:
        CorpusMissing: it is not in `folder`.
        ValueError: a file's name does not follow the corpus's scheme.
    """
    for path in find_recordings(folder, "The Indonesian six", SOURCE):
        if UNLABELLED.fullmatch(path.stem):
            continue
        name = NAME.fullmatch(path.stem)
        if name is None:
            raise ValueError(f"{path.name} is not named as the Indonesian six are (1_05420_sedih_no_data)")
        category = look_up(name[1], LABELS, path.name)
        yield Utterance(
            id=path.stem,
            corpus="indonesian",
            language="id",
            split=split_by_digest(path.stem),
            target=ekman_target([category]),
            valence=implied_valence([category]),
            group=path.stem,
            label_name=name[1],
            audio=path,
        )
