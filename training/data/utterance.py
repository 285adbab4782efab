"""`Utterance`, the unit of every corpus, with its label and its split; and what all corpus loaders use."""

from collections import Counter
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
"""The valence that each category implies; surprise implies none."""

Gender = Literal["female", "male"]
Value = TypeVar("Value")


class Split(StrEnum):
    train = "train"
    validation = "validation"
    test = "test"


class CorpusMissing(Exception):
    """A corpus is not in its folder. The message says where to get it."""


class Leakage(Exception):
    """The same speaker, dialogue or utterance is in two splits."""


@dataclass(frozen=True)
class Utterance:
    """One labelled text, recording, or recording with its text.

    Attributes:
        target: the share of each category, summing to 1; several categories have a share where the corpus gives several
            labels, or the votes of several people. The categories are those of `EKMAN7` until `relabel` applies another
            label scheme. None if the label has no category. With a multi-label loss, a run sets each share above 0 to
            1.
        valence: from -1 to 1; None if it is unknown.
        group: what must not be in two splits: the speaker, or the dialogue of a text that has no recording.
        label_name: the corpus's own label; several labels are separated by a comma and a space.
        dialogue: the conversation that contains this utterance.
        position: the place in the dialogue; the numbers increase, but there may be gaps.
        show: the programme or recording that this utterance was cut from.
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
        """The index of the category with the largest share.

        Raises:
            ValueError: there is no target.
        """
        if self.target is None:
            raise ValueError(f"{self.corpus}, {self.id}: the label {self.label_name!r} has no category")
        return max(range(len(self.target)), key=self.target.__getitem__)

    @property
    def label_names(self) -> tuple[str, ...]:
        """The corpus's own labels."""
        return tuple(self.label_name.split(", "))


def ekman_target(categories: Iterable[str | None]) -> tuple[float, ...] | None:
    """Returns equal shares for the named categories of `EKMAN7`, or None if all of them are None."""
    indexes = {EKMAN7.index(category) for category in categories if category is not None}
    if not indexes:
        return None
    return tuple(1 / len(indexes) if i in indexes else 0.0 for i in range(len(EKMAN7.categories)))


def vote_target(categories: Iterable[str | None]) -> tuple[float, ...] | None:
    """Returns each category's share of the votes, over `EKMAN7`; votes for None do not count.

    None if there are no other votes.
    """
    counts = Counter(EKMAN7.index(category) for category in categories if category is not None)
    if not counts:
        return None
    return tuple(counts[i] / counts.total() for i in range(len(EKMAN7.categories)))


def implied_valence(categories: Iterable[str | None]) -> float | None:
    """Returns the mean polarity of the categories that have one, or None if none has."""
    polarities = [POLARITY[category] for category in categories if category is not None]
    known = [polarity for polarity in polarities if polarity is not None]
    return sum(known) / len(known) if known else None


def look_up(label: str, labels: Mapping[str, Value], place: str) -> Value:
    """Returns what the table `labels` has for a corpus's own label.

    Args:
        label: the label.
        labels: every label of the corpus.
        place: the file or row with the label, for the error message.

    Raises:
        ValueError: the corpus has no such label.
    """
    try:
        return labels[label]
    except KeyError:
        raise ValueError(f"{place}: {label!r} is not one of the labels {', '.join(labels)}") from None


def require_path(path: Path, name: str, source: str) -> Path:
    """Returns `path` if it exists.

    Args:
        path: a file or folder of the corpus.
        name: the corpus, for the error message.
        source: where to get the corpus, for the error message.

    Raises:
        CorpusMissing: it does not exist.
    """
    if not path.exists():
        raise CorpusMissing(f"{name} is not at {path}: get it from {source}")
    return path


def find_recordings(folder: Path, name: str, source: str, pattern: str = "**/*") -> list[Path]:
    """Returns the WAV, FLAC and Ogg files below a folder that match a glob pattern, sorted.

    Raises:
        CorpusMissing: the folder does not exist, or no file matches.
    """
    require_path(folder, name, source)
    found = sorted(
        path
        for path in folder.glob(pattern)
        # macOS puts a hidden companion of every file into its archives.
        if path.suffix.lower() in (".wav", ".flac", ".ogg") and not path.name.startswith(".")
    )
    if not found:
        raise CorpusMissing(f"{name} has no recordings at {folder / pattern}: get it from {source}")
    return found


def split_by_digest(text: str) -> Split:
    """Returns the split of a text without a published split or a named speaker: a tenth of all texts validates."""
    return Split.validation if int(sha256(text.encode()).hexdigest(), 16) % 10 == 0 else Split.train


def check_leakage(utterances: Iterable[Utterance], kinds: Sequence[str] = ("group",)) -> None:
    """Check that no utterance is in two splits, and that utterances of two splits have nothing in common.

    Args:
        utterances: with their splits.
        kinds: the attributes that must differ between splits. An attribute that is None matches nothing.

    Raises:
        Leakage: the check fails.
    """
    seen: dict[str, Split] = {}
    for utterance in utterances:
        named = {"utterance": utterance.id, **{kind: getattr(utterance, kind) for kind in kinds}}
        for key in (f"{utterance.corpus}: {kind} {value}" for kind, value in named.items() if value is not None):
            if seen.setdefault(key, utterance.split) is not utterance.split:
                raise Leakage(f"{key} is in {seen[key]} and in {utterance.split}")
