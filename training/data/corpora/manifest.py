"""A manifest: any other corpus, as a table in a CSV file with a header or in JSON lines.

The columns are `label` and at least one of `path` and `text`; `id`, `speaker`, `gender`, `language`, `dialogue`, `show`
and `split` are optional. Paths are relative to the manifest's folder. Several labels are separated by a comma and a
space. The turns of a dialogue are in their order.
"""

import csv
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from shared.domain.emotion import EKMAN7
from training.data.utterance import CorpusMissing, Gender, Split, Utterance, ekman_target, implied_valence, look_up

LICENCE = "its own"
SUFFIXES = (".csv", ".jsonl")
SPLITS = {split.value: split for split in Split}
GENDERS: Mapping[str, Gender] = {"female": "female", "male": "male"}
UNKNOWN_LANGUAGE = "und"
"""The code of BCP 47 for an undetermined language."""

Row = Mapping[str, str]


def load(path: Path, name: str) -> Iterator[Utterance]:
    """Yields the rows in their order, as the corpus `name`. A row without a split trains.

    A label that is not a category of `EKMAN7` has no target until a label scheme maps it. The group is the speaker, or
    the dialogue if the row names no speaker, or else the row itself.

    Raises:
        CorpusMissing: the manifest or a recording that it names does not exist.
        ValueError: a row has no label, neither recording nor text, or an unknown split or gender.
    """
    if not path.exists():
        raise CorpusMissing(f"there is no manifest at {path}")
    turns: Counter[str] = Counter()
    with path.open(encoding="utf-8-sig", newline="") as file:
        for number, row in enumerate(_rows(file, path.suffix), start=1):
            yield _utterance(path, name, number, row, turns)


def _rows(lines: Iterable[str], suffix: str) -> Iterator[Row]:
    """Yields the rows without their empty cells."""
    rows = csv.DictReader(lines) if suffix == ".csv" else (json.loads(line) for line in lines if line.strip())
    for row in rows:
        yield {column: f"{value}" for column, value in row.items() if value not in (None, "")}


def _utterance(path: Path, name: str, number: int, row: Row, turns: Counter[str]) -> Utterance:
    place = f"{path.name}, row {number}"
    if "label" not in row or not row.keys() & {"path", "text"}:
        raise ValueError(f"{place} has {', '.join(row) or 'nothing'}: a row has a label, and a path or a text")
    dialogue = row.get("dialogue")
    if dialogue is not None:
        turns[dialogue] += 1
    categories = [label for label in row["label"].split(", ") if label in EKMAN7.categories]
    return Utterance(
        id=row.get("id", f"{number}"),
        corpus=name,
        language=row.get("language", UNKNOWN_LANGUAGE),
        split=look_up(row.get("split", Split.train), SPLITS, place),
        target=ekman_target(categories),
        valence=implied_valence(categories),
        group=row.get("speaker") or dialogue or f"row {number}",
        label_name=row["label"],
        text=row.get("text"),
        audio=_recording(path.parent, row, place),
        speaker=row.get("speaker"),
        gender=look_up(row["gender"], GENDERS, place) if "gender" in row else None,
        dialogue=dialogue,
        position=turns[dialogue] - 1 if dialogue is not None else None,
        show=row.get("show"),
    )


def _recording(folder: Path, row: Row, place: str) -> Path | None:
    if "path" not in row:
        return None
    if not (folder / row["path"]).exists():
        raise CorpusMissing(f"{place}: there is no recording at {folder / row['path']}")
    return folder / row["path"]
