"""Prints tables as on a terminal, and checks that they can be read there."""

import io

from rich.console import Console
from rich.table import Table

from services.cli.output import print_table


def printed(table: Table, width: int = 80) -> str:
    out = io.StringIO()
    print_table(table, Console(file=out, width=width))
    return out.getvalue()


def assert_readable(table: Table) -> None:
    shown = printed(table)
    assert max(map(len, shown.splitlines())) <= 80
    cells = [str(cell) for column in table.columns for cell in column.cells]
    assert [word for cell in cells for word in cell.split() if word not in shown] == []
    assert "…" not in shown
