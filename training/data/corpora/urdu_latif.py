"""URDU: 400 utterances of talk shows, four emotions.

Latif et al. 2018, "Cross Lingual Speech Emotion Recognition: Urdu vs. Western Languages",
https://github.com/siddiquelatif/URDU-Dataset, for research. Files are named `SPEAKER_Fnn_Xnn` in a folder a label.
A speaker has often one emotion only, so a split by speaker is far harder than a random one, and recordings of the same
show may still share more than the voice.

The files do not name their shows. Khan 2026 (https://doi.org/10.5281/zenodo.20709692) takes the first part of the name
for the show, and so does this loader: here, what is independent of the speaker is what that work calls independent of
the show.
"""

from collections.abc import Iterator
from pathlib import Path

from training.data.utterance import Split, Utterance, mapped, recordings, target, valence

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
    for path in recordings(folder, "URDU", SOURCE, "*/*"):
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
            label_name=path.parent.name,
            audio=path,
            speaker=speaker,
            gender="female" if speaker.startswith("SF") else "male",
            show=speaker,
        )
