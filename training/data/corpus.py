"""What every corpus becomes: utterances with a target, and splits that do not leak."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from shared.domain.emotion import EKMAN7

POLARITY: Mapping[str, float | None] = {
    "anger": -1.0,
    "disgust": -1.0,
    "fear": -1.0,
    "joy": 1.0,
    "neutral": 0.0,
    "sadness": -1.0,
    "surprise": None,
}
"""The valence that a category implies; surprise implies none."""


class Split(StrEnum):
    train = "train"
    validation = "validation"
    test = "test"


class CorpusMissing(Exception):
    """A corpus is not where it was looked for; the message says where to get it."""


class Leakage(Exception):
    """The same speaker, dialogue or utterance stands in two splits."""


@dataclass(frozen=True)
class Utterance:
    """One labelled stretch of speech or text.

    Attributes:
        target: the share of each category of `EKMAN7`, summing to 1; several where the corpus gives several.
        valence: from -1 to 1, None where nothing says.
        group: what must not be in two splits: the speaker, or the dialogue where there is no speaker's voice.
    """

    id: str
    corpus: str
    language: str
    split: Split
    target: tuple[float, ...]
    valence: float | None
    group: str
    text: str | None = None
    audio: Path | None = None

    @property
    def label(self) -> int:
        """Index of the strongest category."""
        return max(range(len(self.target)), key=self.target.__getitem__)


def target(categories: Iterable[str]) -> tuple[float, ...]:
    """Equal shares for the categories named, of which there must be one at least."""
    indexes = {EKMAN7.index(category) for category in categories}
    return tuple(1 / len(indexes) if i in indexes else 0.0 for i in range(len(EKMAN7.categories)))


def valence(categories: Iterable[str]) -> float | None:
    """The mean polarity of the categories that have one."""
    known = [polarity for polarity in (POLARITY[category] for category in categories) if polarity is not None]
    return sum(known) / len(known) if known else None


def mapped(label: str, labels: Mapping[str, str], place: str) -> str:
    """A corpus's own label as a category.

    Raises:
        ValueError: the corpus does not have this label.
    """
    try:
        return labels[label]
    except KeyError:
        raise ValueError(f"{place}: {label!r} is not one of the labels {', '.join(labels)}") from None


def existing(path: Path, name: str, source: str) -> Path:
    """Raises CorpusMissing where a corpus is not."""
    if not path.exists():
        raise CorpusMissing(f"{name} is not at {path}: get it from {source}")
    return path


def views(utterances: Iterable[Utterance]) -> dict[str, tuple[str, bool, bool]]:
    """What can be validated: a name, its corpus, and whether its text and its voice are given.

    A corpus with recordings is read by voice alone, and where it has words too, by both; one without, by its text.
    """
    given: dict[str, tuple[bool, bool]] = {}
    for utterance in utterances:
        text, voice = given.get(utterance.corpus, (False, False))
        given[utterance.corpus] = text or utterance.text is not None, voice or utterance.audio is not None
    found: dict[str, tuple[str, bool, bool]] = {}
    for corpus, (text, voice) in given.items():
        if voice:
            found[f"{corpus} voice"] = corpus, False, True
        if text:
            found[f"{corpus} {'both' if voice else 'text'}"] = corpus, True, voice
    return found


def check_leakage(utterances: Sequence[Utterance]) -> None:
    """Raises Leakage where a group or an utterance stands in two splits."""
    seen: dict[str, Split] = {}
    for utterance in utterances:
        for key in (f"{utterance.corpus}: group {utterance.group}", f"{utterance.corpus}: utterance {utterance.id}"):
            if seen.setdefault(key, utterance.split) is not utterance.split:
                raise Leakage(f"{key} is in {seen[key]} and in {utterance.split}")
