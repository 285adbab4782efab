"""RAVDESS: 24 English actors, two sentences, eight acted emotions.

Livingstone and Russo 2018, https://zenodo.org/records/1188976, CC BY-NC-SA 4.0. Files are named by seven numbers:
modality, channel, emotion, intensity, statement, repetition, actor. Only speech (channel 01) is loaded.
"""

from collections.abc import Iterator
from pathlib import Path

from training.data.utterance import Split, Utterance, ekman_target, find_recordings, implied_valence, look_up

LICENCE = "CC BY-NC-SA 4.0"
SOURCE = "https://zenodo.org/records/1188976 (Audio_Speech_Actors_01-24.zip)"
EMOTIONS = {
    "01": "neutral",
    "02": "calm",
    "03": "happy",
    "04": "sad",
    "05": "angry",
    "06": "fearful",
    "07": "disgust",
    "08": "surprised",
}
LABELS = {
    "neutral": "neutral",
    "calm": "neutral",
    "happy": "joy",
    "sad": "sadness",
    "angry": "anger",
    "fearful": "fear",
    "disgust": "disgust",
    "surprised": "surprise",
}
STATEMENTS = {"01": "Kids are talking by the door.", "02": "Dogs are sitting by the door."}


def split_of(actor: int) -> Split:
    """Returns the split of an actor: 1 to 18 train, 19 and 20 validate, 21 to 24 test."""
    if actor <= 18:
        return Split.train
    return Split.validation if actor <= 20 else Split.test


def load(folder: Path) -> Iterator[Utterance]:
    """Yields the speech recordings `Actor_NN/*.wav`, or the same as FLAC.

    Raises:
        CorpusMissing: it is not in `folder`.
        ValueError: a file's name does not follow the corpus's scheme.
    """
    for path in find_recordings(folder, "RAVDESS", SOURCE, "Actor_*/*"):
        fields = path.stem.split("-")
        if len(fields) != 7:
            raise ValueError(f"{path.name} is not named by seven numbers as RAVDESS's files are")
        if fields[1] != "01":
            continue
        emotion, actor = look_up(fields[2], EMOTIONS, path.name), int(fields[6])
        yield Utterance(
            id=path.stem,
            corpus="ravdess",
            language="en",
            split=split_of(actor),
            target=ekman_target([LABELS[emotion]]),
            valence=implied_valence([LABELS[emotion]]),
            group=f"actor {actor:02}",
            label_name=emotion,
            text=look_up(fields[4], STATEMENTS, path.name),
            audio=path,
            speaker=f"actor {actor:02}",
            gender="male" if actor % 2 else "female",
        )
