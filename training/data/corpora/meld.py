"""MELD: dialogues of the television series Friends, the seven categories, and three sentiments.

Poria et al. 2019, https://affective-meld.github.io, GPL-3.0. The transcripts, and, if they are unpacked beside
them, the publisher's clips of the series, `train_splits/dia0_utt0.mp4` and so on (MELD.Raw.tar.gz, for research).
"""

import csv
from collections.abc import Iterator, Mapping
from pathlib import Path

from training.data.utterance import Gender, Split, Utterance, ekman_target, look_up, require_path

LICENCE = "GPL-3.0"
SOURCE = "https://github.com/declare-lab/MELD (data/MELD, and MELD.Raw for the clips)"
LABELS = {name: name for name in ("anger", "disgust", "fear", "joy", "neutral", "sadness", "surprise")}
SENTIMENTS = {"negative": -1.0, "neutral": 0.0, "positive": 1.0}
FILES = {
    "train_sent_emo.csv": Split.train,
    "dev_sent_emo.csv": Split.validation,
    "test_sent_emo.csv": Split.test,
}
CLIPS = {
    Split.train: "train_splits",
    Split.validation: "dev_splits_complete",
    Split.test: "output_repeated_splits_test",
}
UNREADABLE = frozenset({"train_splits/dia125_utt3.mp4"})
"""Damaged as published: https://github.com/declare-lab/MELD/issues/39."""

GENDERS: Mapping[str, Gender] = {
    "Chandler": "male",
    "Joey": "male",
    "Monica": "female",
    "Phoebe": "female",
    "Rachel": "female",
    "Ross": "male",
}
"""The six main characters; the gender of the others is not stated."""


def load(folder: Path) -> Iterator[Utterance]:
    """Yields the official splits whose files exist; the training split must exist.

    The same characters speak in all three splits.

    Raises:
        CorpusMissing: it is not in `folder`.
    """
    require_path(folder / "train_sent_emo.csv", "MELD", SOURCE)
    for name, split in FILES.items():
        if not (folder / name).exists():
            continue
        with (folder / name).open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                yield _utterance(folder, name, split, row)


def _utterance(folder: Path, name: str, split: Split, row: Mapping[str, str]) -> Utterance:
    dialogue = f"{split} {row['Dialogue_ID']}"
    return Utterance(
        id=f"{dialogue} {row['Utterance_ID']}",
        corpus="meld",
        language="en",
        split=split,
        target=ekman_target([look_up(row["Emotion"], LABELS, name)]),
        valence=SENTIMENTS[row["Sentiment"]],
        group=dialogue,
        label_name=row["Emotion"],
        # The published files have the Windows apostrophe in two encodings, one of them wrong.
        text=row["Utterance"].replace("\x92", "'").replace("\u2019", "'"),
        audio=_clip(folder, split, row),
        speaker=row["Speaker"],
        gender=GENDERS.get(row["Speaker"]),
        dialogue=dialogue,
        position=int(row["Utterance_ID"]),
        show=f"season {row['Season']}, episode {row['Episode']}",
    )


def _clip(folder: Path, split: Split, row: Mapping[str, str]) -> Path | None:
    name = f"{CLIPS[split]}/dia{row['Dialogue_ID']}_utt{row['Utterance_ID']}.mp4"
    return folder / name if name not in UNREADABLE and (folder / name).exists() else None
