"""EmoT of IndoNLU: Indonesian tweets, five emotions.

Saputri et al. 2018, in the splits of Wilie et al. 2020, https://github.com/IndoNLP/indonlu, CC BY-SA 4.0.
"""

import csv
from collections.abc import Iterator
from pathlib import Path

from training.data.utterance import Split, Utterance, existing, mapped, target, valence

LICENCE = "CC BY-SA 4.0"
SOURCE = "https://github.com/IndoNLP/indonlu (dataset/emot_emotion-twitter)"
LABELS = {"anger": "anger", "fear": "fear", "happy": "joy", "love": "joy", "sadness": "sadness"}
PARTS = {"train": Split.train, "valid": Split.validation}
"""The published test part has no labels."""


def load(folder: Path) -> Iterator[Utterance]:
    """`train_preprocess.csv` and `valid_preprocess.csv`, or the same without `_preprocess`.

    Raises:
        CorpusMissing: one is not at `folder`.
        ValueError: a line has a label that the corpus does not know.
    """
    for part, split in PARTS.items():
        published = folder / f"{part}_preprocess.csv"
        path = existing(published if published.exists() else folder / f"{part}.csv", "EmoT", SOURCE)
        with path.open(encoding="utf-8", newline="") as file:
            for number, row in enumerate(csv.DictReader(file)):
                category = mapped(row["label"], LABELS, f"{path.name}, row {number}")
                yield Utterance(
                    id=f"{part} {number}",
                    corpus="emot",
                    language="id",
                    split=split,
                    target=target([category]),
                    valence=valence([category]),
                    group=f"{part} {number}",
                    label_name=row["label"],
                    text=row["tweet"].strip(),
                )
