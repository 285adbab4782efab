"""The Indonesian six: some 6,800 Indonesian recordings, six acted emotions.

Of a competition of 2025, https://www.kaggle.com/competitions/speech-emotion-recognition-dl-genap-2024-2025, under its
rules. Files are named `1_05420_sedih_no_data`: a part, a number, the emotion, and its intensity or that nothing is
known of it. **The names do not say who speaks**: the same voice may stand in training and validation. The competition's
own test files (`test544.wav`) have no labels and are left out.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from training.data.utterance import Utterance, mapped, recordings, split_by_digest, target, valence

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
    """All recordings below `folder`, of which a tenth validates; there is no published split with labels.

    Raises:
        CorpusMissing: it is not at `folder`.
        ValueError: a file is not named as the corpus names its own.
    """
    for path in recordings(folder, "The Indonesian six", SOURCE):
        if UNLABELLED.fullmatch(path.stem):
            continue
        name = NAME.fullmatch(path.stem)
        if name is None:
            raise ValueError(f"{path.name} is not named as the Indonesian six are (1_05420_sedih_no_data)")
        category = mapped(name[1], LABELS, path.name)
        yield Utterance(
            id=path.stem,
            corpus="indonesian",
            language="id",
            split=split_by_digest(path.stem),
            target=target([category]),
            valence=valence([category]),
            group=path.stem,
            label_name=name[1],
            audio=path,
        )
