"""BAVED: single Arabic words by some 60 students, at three levels of emotion.

Aouf 2019, "Basic Arabic Vocal Emotions Dataset", https://github.com/40uf411/Basic-Arabic-Vocal-Emotions-Dataset; no
licence is stated. Files are named `SPEAKER-GENDER-AGE-WORD-LEVEL-RECORD`, in a folder for each word. The levels are
degrees of arousal and not categories: low is tired or down, high a strong positive or negative emotion. Only the
normal level has a category in `EKMAN7`.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

from training.data.utterance import Gender, Split, Utterance, ekman_target, find_recordings, implied_valence, look_up

LICENCE = "none stated"
SOURCE = "https://github.com/40uf411/Basic-Arabic-Vocal-Emotions-Dataset"
LEVELS = {"0": "low", "1": "normal", "2": "high"}
LABELS = {"low": None, "normal": "neutral", "high": None}
WORDS = {"0": "اعجبني", "1": "لم يعجبني", "2": "هذا", "3": "الفيلم", "4": "رائع", "5": "مقول", "6": "سيئ"}
GENDERS: Mapping[str, Gender] = {"f": "female", "m": "male"}
REPEATED_SPEAKER = "53"
"""The clips of this speaker are those of speaker 46."""


def split_of(speaker: int) -> Split:
    """Returns the split of a speaker: every fifth validates. There is no published split."""
    return Split.validation if speaker % 5 == 4 else Split.train


def load(folder: Path) -> Iterator[Utterance]:
    """Yields the recordings `0/0-m-21-0-1-105.wav` ...

    Raises:
        CorpusMissing: it is not in `folder`.
        ValueError: a file's name does not follow the corpus's scheme.
    """
    for path in find_recordings(folder, "BAVED", SOURCE):
        fields = path.stem.split("-")
        if len(fields) != 6 or not fields[0].isdecimal():
            raise ValueError(f"{path.name} is not named SPEAKER-GENDER-AGE-WORD-LEVEL-RECORD as BAVED's files are")
        speaker, sex, _, word, code, _ = fields
        if speaker == REPEATED_SPEAKER:
            continue
        level = look_up(code, LEVELS, path.name)
        yield Utterance(
            id=path.stem,
            corpus="baved",
            language="ar",
            split=split_of(int(speaker)),
            target=ekman_target([LABELS[level]]),
            valence=implied_valence([LABELS[level]]),
            group=speaker,
            label_name=level,
            text=look_up(word, WORDS, path.name),
            audio=path,
            speaker=speaker,
            gender=look_up(sex, GENDERS, path.name),
        )
