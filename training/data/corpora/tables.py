"""Reading the tables of corpora: tab-separated, comma-separated, JSON and Excel files, by their suffix."""

import csv
import json
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain, zip_longest
from pathlib import Path
from typing import cast

from openpyxl import load_workbook

SUFFIXES = (".tsv", ".txt", ".csv", ".json", ".xlsx")
"""Tabs without quoting in `.tsv` and `.txt`, quoted cells in `.csv`, a list of objects in `.json`."""

Row = Mapping[str, str]


def read_rows(path: Path, *columns: str) -> Iterator[Row]:
    """Yields the rows of a table with a header, as cells by column; missing cells are empty.

    Args:
        path: the table.
        columns: the columns that it must have.

    Raises:
        ValueError: a column is missing.
    """
    cells = read_cells(path)
    header = [name.strip() for name in next(cells, list[str]())]
    if missing := [column for column in columns if column not in header]:
        raise ValueError(f"{path} has no column {' or '.join(map(repr, missing))}: it has {', '.join(header)}")
    for values in cells:
        yield dict(zip_longest(header, values[: len(header)], fillvalue=""))


def read_cells(path: Path) -> Iterator[list[str]]:
    """Yields the cells of each row, and first those of the header if the table has one."""
    if path.suffix == ".xlsx":
        yield from _sheet(path)
        return
    with path.open(encoding="utf-8-sig", newline="") as file:
        first = file.readline()
        if first.lstrip().startswith("["):
            yield from _objects(json.loads(first + file.read()))
        elif path.suffix == ".csv":
            # ISEAR is published with bars between its cells.
            yield from csv.reader(chain([first], file), delimiter="|" if "|" in first else ",")
        else:
            yield from csv.reader(chain([first], file), delimiter="\t", quoting=csv.QUOTE_NONE)


def rows_by_file(table: Path, column: str) -> dict[str, Row]:
    """Returns the rows of a table by the stem of the file that each names in `column`; none if there is no table."""
    if not table.exists():
        return {}
    return {Path(row[column]).stem: row for row in read_rows(table, column)}


def _objects(objects: Iterable[Mapping[str, object]]) -> Iterator[list[str]]:
    header: list[str] = []
    for each in objects:
        if not header:
            header = list(each)
            yield header
        yield [f"{each.get(name, '')}" for name in header]


def _sheet(path: Path) -> Iterator[list[str]]:
    sheet = load_workbook(path, read_only=True).worksheets[0]
    for cells in sheet.iter_rows(values_only=True):
        yield ["" if cell is None else f"{cell}" for cell in cast("tuple[object, ...]", cells)]
