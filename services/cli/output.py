"""The output of commands: tables or JSON on stdout, errors and progress bars on stderr, and exit statuses."""

import json
import re
import sys
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from typing import Annotated, TypeVar

import typer
from pydantic import BaseModel
from rich.console import Console, RenderableType
from rich.measure import Measurement
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from shared.errors import EX_CONFIG, SetupError, TenorError

Item = TypeVar("Item")

EXIT_FAILURE = 1

stdout = Console()
stderr = Console(stderr=True)

_ANY_WIDTH = 10_000
_MAX_NAME_WIDTH = 30
TERMINAL_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


class Format(StrEnum):
    table = "table"
    json = "json"


Output = Annotated[Format, typer.Option("--format", help="`table` for people, `json` for programs.")]


@contextmanager
def exit_on_error() -> Generator[None]:
    """Turn an error of Tenor into one line on stderr and an exit status: 78 for a SetupError, 1 for all others."""
    try:
        yield
    except TenorError as error:
        print_error(f"{error.title}: {error.detail}")
        raise typer.Exit(EX_CONFIG if isinstance(error, SetupError) else EXIT_FAILURE) from None


def print_error(message: str) -> None:
    """Print one line on stderr as it is: not wrapped, without markup. Control characters are escaped."""
    stderr.print(escape_controls(message), markup=False, highlight=False, soft_wrap=True)


def escape_controls(text: str) -> str:
    """Return a text in which the characters that a terminal obeys are escapes such as `\\x1b`, except tab and newline.

    Those are the control characters, the marks that reverse the direction of the text around them, and lone surrogates.
    """
    return TERMINAL_CONTROLS.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def print_json(value: object) -> None:
    """Print a value as one line of JSON, in which models are objects."""
    sys.stdout.write(json.dumps(value, default=_to_json) + "\n")


def print_table(table: Table, console: Console = stdout) -> None:
    """Print a table, or each row as lines of a name and a value where the terminal is too narrow for the table.

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


def track(description: str, items: Iterable[Item], total: int) -> Iterator[Item]:
    """Yield the items, with a progress bar on stderr where it is a terminal and there is more than one item."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    disable = total < 2 or not stderr.is_terminal
    # Programs read stdout: the progress bar must not capture it.
    with Progress(*columns, console=stderr, disable=disable, transient=True, redirect_stdout=False) as progress:
        yield from progress.track(items, total, description=description)


@contextmanager
def progress_bar(description: str, show: bool) -> Generator[Callable[[str, float], None]]:
    """Context manager that shows a progress bar on stderr, and gives the function that updates it.

    The function takes the name of the item in work and the share of the work that is done.

    The share is in [0, 1]; 0 means that it is unknown. There is no bar where stderr is no terminal.
    """
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    disable = not (show and stderr.is_terminal)
    with Progress(*columns, console=stderr, disable=disable, transient=True, redirect_stdout=False) as progress:
        task = progress.add_task(description, total=None)

        def update(name: str, done: float) -> None:
            shown = f"{description} {escape_controls(name)[-_MAX_NAME_WIDTH:]}"
            progress.update(task, description=shown, completed=done, total=1.0 if done else None)

        yield update


def _to_json(value: object) -> object:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    raise TypeError(f"{type(value).__name__} has no JSON form")


def _records(table: Table) -> Iterator[Table]:
    """Yield a two-column table for each row. A table without a header has two such columns already."""
    columns = [list(column.cells) for column in table.columns]
    if not table.show_header:
        yield _record(*columns)
        return
    for values in zip(*columns, strict=True):
        yield _record([column.header for column in table.columns], values)


def _record(names: Sequence[RenderableType], values: Sequence[RenderableType]) -> Table:
    record = Table.grid(padding=(0, 2))
    record.add_column(style="bold", no_wrap=True)
    record.add_column(overflow="fold")
    for name, value in zip(names, values, strict=True):
        record.add_row(name, value)
    return record
