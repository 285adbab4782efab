"""MELD: dialogues of the television series Friends, the seven categories, and three sentiments.

Poria et al. 2019, https://affective-meld.github.io, GPL-3.0. The transcripts only.
"""

import csv
from collections.abc import Iterator
from pathlib import Path

from training.data.corpus import Split, Utterance, existing, mapped, target

LICENCE = "GPL-3.0"
SOURCE = "https://github.com/declare-lab/MELD (data/MELD)"
LABELS = {name: name for name in ("anger", "disgust", "fear", "joy", "neutral", "sadness", "surprise")}
SENTIMENTS = {"negative": -1.0, "neutral": 0.0, "positive": 1.0}
FILES = {
    "train_sent_emo.csv": Split.train,
    "dev_sent_emo.csv": Split.validation,
    "test_sent_emo.csv": Split.test,
}


def load(folder: Path) -> Iterator[Utterance]:
    """The official splits, as far as their files are there; the one for training must be.

    Raises:
        CorpusMissing: it is not at `folder`.
    """
    existing(folder / "train_sent_emo.csv", "MELD", SOURCE)
    for name, split in FILES.items():
        if not (folder / name).exists():
            continue
        with (folder / name).open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                dialogue = f"{split} {row['Dialogue_ID']}"
                yield Utterance(
                    id=f"{dialogue} {row['Utterance_ID']}",
                    corpus="meld",
                    language="en",
                    split=split,
                    target=target([mapped(row["Emotion"], LABELS, name)]),
                    valence=SENTIMENTS[row["Sentiment"]],
                    group=dialogue,
                    # The published files hold Windows' apostrophe, well and wrongly encoded.
                    text=row["Utterance"].replace("\x92", "'").replace("\u2019", "'"),
                )
