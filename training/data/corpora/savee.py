"""SAVEE: four English men, 480 sentences, seven acted emotions.

Jackson and Haq 2014, http://kahlan.eps.surrey.ac.uk/savee, for research, on registration. Files are named by emotion
and sentence, in a folder for each speaker (`AudioData/DC/a01.wav`) or with the speaker in the name (`DC_a01.wav`).
"""

import re
from collections.abc import Iterator
from pathlib import Path

from training.data.utterance import Split, Utterance, ekman_target, find_recordings, implied_valence, look_up

LICENCE = "research use, on registration"
SOURCE = "http://kahlan.eps.surrey.ac.uk/savee (AudioData)"
EMOTIONS = {
    "a": "anger",
    "d": "disgust",
    "f": "fear",
    "h": "happiness",
    "n": "neutral",
    "sa": "sadness",
    "su": "surprise",
}
LABELS = {
    "anger": "anger",
    "disgust": "disgust",
    "fear": "fear",
    "happiness": "joy",
    "neutral": "neutral",
    "sadness": "sadness",
    "surprise": "surprise",
}
SPLITS = {"DC": Split.train, "JE": Split.train, "JK": Split.validation, "KL": Split.test}
"""By speaker; there is no published split."""

NAME = re.compile(r"([a-z]+)\d+")


def load(folder: Path) -> Iterator[Utterance]:
    """Yields all recordings below `folder`, in either layout.

    Raises:
        CorpusMissing: it is not in `folder`.
        ValueError: a file's name does not follow the corpus's scheme.
    """
    for path in find_recordings(folder, "SAVEE", SOURCE):
        speaker, _, rest = path.stem.rpartition("_")
        speaker = speaker or path.parent.name
        name = NAME.fullmatch(rest)
        if speaker not in SPLITS or name is None:
            raise ValueError(f"{path} is neither SPEAKER/a01 nor SPEAKER_a01, with {', '.join(SPLITS)} as the speaker")
        emotion = look_up(name[1], EMOTIONS, path.name)
        yield Utterance(
            id=f"{speaker}_{rest}",
            corpus="savee",
            language="en",
            split=SPLITS[speaker],
            target=ekman_target([LABELS[emotion]]),
            valence=implied_valence([LABELS[emotion]]),
            group=speaker,
            label_name=emotion,
            audio=path,
            speaker=speaker,
            gender="male",
        )
