"""`TextCorpus`, a corpus of texts or dialogues in tables, and `Line`, a text with its labels as a table has it."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from training.data.corpora.tables import SUFFIXES
from training.data.utterance import (
    CorpusMissing,
    Gender,
    Split,
    Utterance,
    ekman_target,
    implied_valence,
    look_up,
    split_by_digest,
    vote_target,
)

Commercial = Literal["yes", "no", "unclear"]
"""Whether the publisher permits commercial use; unclear where no licence is stated, or none for the data."""


@dataclass(frozen=True)
class Line:
    """A text with its labels.

    Attributes:
        labels: the corpus's own labels.
        votes: the label that each annotator chose; empty if the corpus does not publish votes.
        language: a code of BCP 47; None if the corpus has one language only.
        dialogue: the dialogue's name in its file; the lines of a dialogue are in their order.
        speaker: who says it.
        show: the programme that the dialogue is from.
    """

    text: str
    labels: tuple[str, ...]
    votes: tuple[str, ...] = ()
    language: str | None = None
    dialogue: str | None = None
    speaker: str | None = None
    gender: Gender | None = None
    show: str | None = None


@dataclass(frozen=True)
class TextCorpus:
    """A corpus of texts or dialogues: what is known of it, and how its files are read.

    Attributes:
        name: the name in the registry and of the folder.
        title: the name that the publisher gives it.
        source: where to get it.
        licence: the licence, as published.
        commercial: whether the publisher permits commercial use.
        languages: codes of BCP 47.
        files: patterns of the files of each published part, relative to the folder.
        labels: the category in `EKMAN7` of every label, or None.
        read: yields the lines of a file.
    """

    name: str
    title: str
    source: str
    licence: str
    commercial: Commercial
    languages: tuple[str, ...]
    files: Mapping[Split, tuple[str, ...]]
    labels: Mapping[str, str | None]
    read: Callable[[Path], Iterator[Line]]

    def load(self, folder: Path) -> Iterator[Utterance]:
        """Yields the texts of all parts that are in the folder, in the publisher's splits.

        Where the training or the validation part is missing, a tenth of the dialogues, or else of the texts, of the
        other part validates. With votes, each category's share of them is the target.

        Raises:
            CorpusMissing: neither a training nor a validation part is in `folder`.
            ValueError: a table lacks a column, or has a label that is not the corpus's.
        """
        parts = {split: self._paths(folder, split) for split in self.files}
        trains, validates = bool(parts.get(Split.train)), bool(parts.get(Split.validation))
        if not trains and not validates:
            patterns = ", ".join(self.files.get(Split.train) or self.files[Split.validation])
            raise CorpusMissing(f"{self.title} has no texts at {folder / patterns}: get it from {self.source}")
        for split, paths in parts.items():
            published = split is Split.test or (trains and validates)
            for path in paths:
                yield from self._utterances(folder, path, split if published else None)

    def _paths(self, folder: Path, split: Split) -> list[Path]:
        found = {path for pattern in self.files[split] for path in folder.glob(pattern)}
        return sorted(path for path in found if path.suffix in SUFFIXES and not path.name.startswith("."))

    def _utterances(self, folder: Path, path: Path, split: Split | None) -> Iterator[Utterance]:
        part = path.relative_to(folder).with_suffix("").as_posix()
        turns: Counter[str] = Counter()
        for number, line in enumerate(self.read(path), start=1):
            text = " ".join(line.text.split())
            if not text:
                continue
            place = f"{path.name}, {number}"
            categories = [look_up(label, self.labels, place) for label in line.labels]
            votes = [look_up(label, self.labels, place) for label in line.votes]
            dialogue = None if line.dialogue is None else f"{part} {line.dialogue}"
            if dialogue is not None:
                turns[dialogue] += 1
            yield Utterance(
                id=f"{part} {number}",
                corpus=self.name,
                language=line.language or self.languages[0],
                split=split or split_by_digest(line.dialogue or text),
                target=self._target(categories, votes),
                valence=implied_valence(votes or categories),
                group=dialogue or f"{part} {number}",
                label_name=", ".join(line.labels),
                text=text,
                speaker=line.speaker,
                gender=line.gender,
                dialogue=dialogue,
                position=None if dialogue is None else turns[dialogue] - 1,
                show=line.show,
            )

    @staticmethod
    def _target(categories: list[str | None], votes: list[str | None]) -> tuple[float, ...] | None:
        known = ekman_target(categories)
        return vote_target(votes) if votes and known is not None else known
