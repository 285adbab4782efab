"""URDU: 400 utterances of talk shows, four emotions.

Latif et al. 2018, "Cross Lingual Speech Emotion Recognition: Urdu vs. Western Languages",
https://github.com/siddiquelatif/URDU-Dataset, for research. Files are named `SPEAKER_Fnn_Xnn` in a folder a label.
Many speakers have one emotion only, so a split by speaker is far harder than a random one.

The file names do not contain the show. Khan 2026 (https://doi.org/10.5281/zenodo.20709692) takes the first part of the
name as the show, and so does this loader: a split that this project calls independent of the speaker is one that
Khan 2026 calls independent of the show.
"""

from collections.abc import Iterator
from pathlib import Path

from training.data.utterance import Split, Utterance, ekman_target, find_recordings, implied_valence, look_up

LICENCE = "research use"
SOURCE = "https://github.com/siddiquelatif/URDU-Dataset"
LABELS = {"Angry": "anger", "Happy": "joy", "Neutral": "neutral", "Sad": "sadness"}

VALIDATION_SPEAKERS = frozenset({"SF6", "SF9", "SF10", "SF11", "SM1", "SM22", "SM23"})
"""Together these speakers have all four labels, which few single speakers have."""


def split_of(speaker: str) -> Split:
    """Returns the split of a speaker; there is no published split."""
    return Split.validation if speaker in VALIDATION_SPEAKERS else Split.train


def load(folder: Path) -> Iterator[Utterance]:
    """Yields the WAV or FLAC files of the folders `Angry`, `Happy`, `Neutral` and `Sad`.

    Raises:
        CorpusMissing: it is not in `folder`.
        ValueError: a folder's name is not a label.
    """
    for path in find_recordings(folder, "URDU", SOURCE, "*/*"):
        category = look_up(path.parent.name, LABELS, str(path))
        speaker = path.stem.split("_")[0]
        yield Utterance(
            id=path.stem,
            corpus="urdu_latif",
            language="ur",
            split=split_of(speaker),
            target=ekman_target([category]),
            valence=implied_valence([category]),
            group=speaker,
            label_name=path.parent.name,
            audio=path,
            speaker=speaker,
            gender="female" if speaker.startswith("SF") else "male",
            show=speaker,
        )
