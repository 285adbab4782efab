"""Any other corpus, as a table: a CSV file with a header, or JSON lines.

The columns are `label` and one of `path` and `text` or both; and where they are known `id`, `speaker`, `gender`,
`language`, `dialogue`, `show` and `split`. Paths are taken from the manifest's folder. Several labels are parted by a
comma and a space. A dialogue's turns stand in their order.
"""

import csv
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from shared.domain.emotion import EKMAN7
from training.data.utterance import CorpusMissing, Gender, Split, Utterance, mapped, target, valence

LICENCE = "its own"
SUFFIXES = (".csv", ".jsonl")
SPLITS = {split.value: split for split in Split}
GENDERS: Mapping[str, Gender] = {"female": "female", "male": "male"}
UNKNOWN_LANGUAGE = "und"
"""Of BCP 47."""

Row = Mapping[str, str]


def load(path: Path, name: str) -> Iterator[Utterance]:
    """The rows in their order, as the corpus `name`. Where there is no split, all train.

    A label that is no category of `EKMAN7` has no target; a label scheme places it. What must not be in two splits is
    the speaker, where none is named the dialogue, and without either the row alone.

    Raises:
        CorpusMissing: there is no such file, or no recording where a row says that there is one.
        ValueError: a row has no label, neither sound nor words, or a split or a gender that is none.
    """
    if not path.exists():
        raise CorpusMissing(f"there is no manifest at {path}")
    turns: Counter[str] = Counter()
    with path.open(encoding="utf-8-sig", newline="") as file:
        for number, row in enumerate(_rows(file, path.suffix), start=1):
            yield _utterance(path, name, number, row, turns)


def _rows(lines: Iterable[str], suffix: str) -> Iterator[Row]:
    """Only what is given: no empty cells."""
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
        split=mapped(row.get("split", Split.train), SPLITS, place),
        target=target(categories),
        valence=valence(categories),
        group=row.get("speaker") or dialogue or f"row {number}",
        label_name=row["label"],
        text=row.get("text"),
        audio=_recording(path.parent, row, place),
        speaker=row.get("speaker"),
        gender=mapped(row["gender"], GENDERS, place) if "gender" in row else None,
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
