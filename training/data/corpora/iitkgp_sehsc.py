"""IITKGP-SEHSC: ten Hindi radio artists, fifteen sentences, ten sessions, eight acted emotions.

Koolagudi, Reddy, Yadav and Rao 2011, "IITKGP-SEHSC: Hindi speech corpus for emotion analysis", on request for research.
Files are named `SPEAKER.SESSION.text-SENTENCE` in a folder for each emotion. The files do not state the speakers' sex.
Sarcasm has no category in `EKMAN7`.
"""

from collections.abc import Iterator
from pathlib import Path

from training.data.utterance import Split, Utterance, ekman_target, find_recordings, implied_valence, look_up

LICENCE = "research use, on request"
SOURCE = "https://cse.iitkgp.ac.in/~ksrao/ (on request to Prof. K. Sreenivasa Rao, IIT Kharagpur)"
LABELS = {
    "anger": "anger",
    "disgust": "disgust",
    "fear": "fear",
    "happy": "joy",
    "neutral": "neutral",
    "sadness": "sadness",
    "sarcastic": None,
    "surprise": "surprise",
}
MISNAMED = {71: 1}
"""Some published files of speaker 1 have the number 71."""


def split_of(speaker: int) -> Split:
    """Returns the split of a speaker: 4 and 9 validate, 5 and 10 test, the others train; no split is published."""
    return {4: Split.validation, 0: Split.test}.get(speaker % 5, Split.train)


def load(folder: Path) -> Iterator[Utterance]:
    """Yields all recordings below `folder`, each in a folder named by its emotion: `.../anger/1.2.anger-3.wav`.

    Raises:
        CorpusMissing: it is not in `folder`.
        ValueError: a file's name does not follow the corpus's scheme, or its folder is not a label.
    """
    for path in find_recordings(folder, "IITKGP-SEHSC", SOURCE):
        fields = path.stem.split(".")
        if len(fields) != 3 or not (fields[0].isdecimal() and fields[1].isdecimal()):
            raise ValueError(f"{path.name} is not named SPEAKER.SESSION.text-SENTENCE as IITKGP-SEHSC's files are")
        emotion, number = path.parent.name, int(fields[0])
        category, speaker = look_up(emotion, LABELS, str(path)), MISNAMED.get(number, number)
        yield Utterance(
            id=f"{emotion} {path.stem}",
            corpus="iitkgp_sehsc",
            language="hi",
            split=split_of(speaker),
            target=ekman_target([category]),
            valence=implied_valence([category]),
            group=f"{speaker}",
            label_name=emotion,
            audio=path,
            speaker=f"{speaker}",
        )
