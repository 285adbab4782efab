"""EmoT of IndoNLU: Indonesian tweets, five emotions.

Saputri et al. 2018, in the splits of Wilie et al. 2020, https://github.com/IndoNLP/indonlu, CC BY-SA 4.0.
"""

import csv
from collections.abc import Iterator
from pathlib import Path

from training.data.utterance import Split, Utterance, ekman_target, implied_valence, look_up, require_path

LICENCE = "CC BY-SA 4.0"
SOURCE = "https://github.com/IndoNLP/indonlu (dataset/emot_emotion-twitter)"
LABELS = {"anger": "anger", "fear": "fear", "happy": "joy", "love": "joy", "sadness": "sadness"}
PARTS = {"train": Split.train, "valid": Split.validation}
"""The published test part has no labels."""


def load(folder: Path) -> Iterator[Utterance]:
    """Yields the tweets of `train_preprocess.csv` and `valid_preprocess.csv`, or of `train.csv` and `valid.csv`.

    Raises:
        CorpusMissing: one of the files is not in `folder`.
        ValueError: a row has a label that is not the corpus's.
    """
    for part, split in PARTS.items():
        published = folder / f"{part}_preprocess.csv"
        path = require_path(published if published.exists() else folder / f"{part}.csv", "EmoT", SOURCE)
        with path.open(encoding="utf-8", newline="") as file:
            for number, row in enumerate(csv.DictReader(file)):
                category = look_up(row["label"], LABELS, f"{path.name}, row {number}")
                yield Utterance(
                    id=f"{part} {number}",
                    corpus="emot",
                    language="id",
                    split=split,
                    target=ekman_target([category]),
                    valence=implied_valence([category]),
                    group=f"{part} {number}",
                    label_name=row["label"],
                    text=row["tweet"].strip(),
                )
