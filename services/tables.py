"""Tables that stay readable on a narrow terminal."""

from collections.abc import Iterable, Iterator

from rich.console import Console, RenderableType
from rich.measure import Measurement
from rich.table import Table

_ANY_WIDTH = 10_000


def print_table(console: Console, table: Table) -> None:
    """Print a table, or each of its rows as lines of a name and a value where the terminal is too narrow for it.

    It is too narrow where some column would be narrower than its longest word. So no id is ever cut.
    """
    needed = Measurement.get(console, console.options.update(width=_ANY_WIDTH), table).minimum
    if needed <= console.width:
        console.print(table)
        return
    if table.title:
        console.print(table.title)
    for number, record in enumerate(_records(table)):
        if number:
            console.print()
        console.print(record)
    if table.caption:
        console.print(table.caption)


def _records(table: Table) -> Iterator[Table]:
    """The rows of a table, each with the names of its columns; one without a header is a record already."""
    columns = [list(column.cells) for column in table.columns]
    if not table.show_header:
        yield _record(*columns)
        return
    for values in zip(*columns, strict=True):
        yield _record([column.header for column in table.columns], values)


def _record(names: Iterable[RenderableType], values: Iterable[RenderableType]) -> Table:
    record = Table.grid(padding=(0, 2))
    record.add_column(style="bold", no_wrap=True)
    record.add_column(overflow="fold")
    for name, value in zip(names, values, strict=True):
        record.add_row(name, value)
    return record
