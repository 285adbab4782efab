"""What every corpus becomes: utterances with a label, and splits that do not leak."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from hashlib import sha256
from pathlib import Path
from typing import Literal, TypeVar

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

Gender = Literal["female", "male"]
Value = TypeVar("Value")


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
        target: the share of each category, summing to 1, several where the corpus gives several: of `EKMAN7`, until
            `relabel` makes it those of another scheme; None where the label has no place among them. A run with a
            multi-label loss makes each of several 1.
        valence: from -1 to 1, None where nothing says.
        group: what must not be in two splits: the speaker, or the dialogue where there is no speaker's voice.
        label_name: the corpus's own name of the label, several parted by a comma and a space.
        dialogue: the conversation that it is a turn of.
        position: where it stands in its dialogue; the numbers grow, but some may be missing.
        show: the programme or recording that it was cut from.
    """

    id: str
    corpus: str
    language: str
    split: Split
    target: tuple[float, ...] | None
    valence: float | None
    group: str
    label_name: str
    text: str | None = None
    audio: Path | None = None
    speaker: str | None = None
    gender: Gender | None = None
    dialogue: str | None = None
    position: int | None = None
    show: str | None = None

    @property
    def label(self) -> int:
        """Index of the strongest category.

        Raises:
            ValueError: there is no target.
        """
        if self.target is None:
            raise ValueError(f"{self.corpus}, {self.id}: {self.label_name!r} has no place among the categories")
        return max(range(len(self.target)), key=self.target.__getitem__)

    @property
    def label_names(self) -> tuple[str, ...]:
        """The corpus's own labels, one by one."""
        return tuple(self.label_name.split(", "))


def target(categories: Iterable[str | None]) -> tuple[float, ...] | None:
    """Equal shares for the categories named, None where there are none."""
    indexes = {EKMAN7.index(category) for category in categories if category is not None}
    if not indexes:
        return None
    return tuple(1 / len(indexes) if i in indexes else 0.0 for i in range(len(EKMAN7.categories)))


def valence(categories: Iterable[str | None]) -> float | None:
    """The mean polarity of the categories that have one."""
    polarities = [POLARITY[category] for category in categories if category is not None]
    known = [polarity for polarity in polarities if polarity is not None]
    return sum(known) / len(known) if known else None


def mapped(label: str, labels: Mapping[str, Value], place: str) -> Value:
    """What a corpus's own label stands for.

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


def recordings(folder: Path, name: str, source: str, pattern: str = "**/*") -> list[Path]:
    """The WAV and FLAC files below a folder that match, in order.

    Raises:
        CorpusMissing: the folder is not there, or none of them is.
    """
    existing(folder, name, source)
    found = sorted(
        path
        for path in folder.glob(pattern)
        # macOS leaves hidden companions of the files in its archives.
        if path.suffix.lower() in (".wav", ".flac") and not path.name.startswith(".")
    )
    if not found:
        raise CorpusMissing(f"{name} has no recordings at {folder / pattern}: get it from {source}")
    return found


def split_by_digest(text: str) -> Split:
    """For what has neither a published split nor named speakers: a tenth, chosen by its digest, validates."""
    return Split.validation if int(sha256(text.encode()).hexdigest(), 16) % 10 == 0 else Split.train


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


def check_leakage(utterances: Iterable[Utterance], kinds: Sequence[str] = ("group",)) -> None:
    """Raises Leakage where an utterance stands in two splits, or what it has in common with others.

    Args:
        utterances: with their splits.
        kinds: the attributes that utterances of two splits must not have in common; None is nothing in common.
    """
    seen: dict[str, Split] = {}
    for utterance in utterances:
        named = {"utterance": utterance.id, **{kind: getattr(utterance, kind) for kind in kinds}}
        for key in (f"{utterance.corpus}: {kind} {value}" for kind, value in named.items() if value is not None):
            if seen.setdefault(key, utterance.split) is not utterance.split:
                raise Leakage(f"{key} is in {seen[key]} and in {utterance.split}")
