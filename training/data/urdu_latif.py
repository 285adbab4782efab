"""URDU: 400 utterances of talk shows, four emotions.

Latif et al. 2018, "Cross Lingual Speech Emotion Recognition: Urdu vs. Western Languages",
https://github.com/siddiquelatif/URDU-Dataset, for research. Files are named `SPEAKER_Fnn_Xnn` in a folder a label.
A speaker has often one emotion only, so a split by speaker is far harder than a random one, and recordings of the same
show may still share more than the voice.
"""

from collections.abc import Iterator
from pathlib import Path

from training.data.corpus import Split, Utterance, existing, mapped, target, valence

LICENCE = "research use"
SOURCE = "https://github.com/siddiquelatif/URDU-Dataset"
LABELS = {"Angry": "anger", "Happy": "joy", "Neutral": "neutral", "Sad": "sadness"}


VALIDATION_SPEAKERS = frozenset({"SF6", "SF9", "SF10", "SF11", "SM1", "SM22", "SM23"})
"""Together they have all four labels, which few speakers have."""


def split_of(speaker: str) -> Split:
    """Speaker-independent; there is no published split."""
    return Split.validation if speaker in VALIDATION_SPEAKERS else Split.train


def load(folder: Path) -> Iterator[Utterance]:
    """The corpus as published: `Angry`, `Happy`, `Neutral` and `Sad`, with WAV or FLAC files.

    Raises:
        CorpusMissing: it is not at `folder`.
        ValueError: there is a folder that is no label.
    """
    existing(folder, "URDU", SOURCE)
    for path in sorted(path for path in folder.glob("*/*") if path.suffix in (".wav", ".flac")):
        category = mapped(path.parent.name, LABELS, str(path))
        speaker = path.stem.split("_")[0]
        yield Utterance(
            id=path.stem,
            corpus="urdu_latif",
            language="ur",
            split=split_of(speaker),
            target=target([category]),
            valence=valence([category]),
            group=speaker,
            audio=path,
        )
