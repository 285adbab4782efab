"""`tenor analyze`: predictions for audio files or a text, without a server."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from services.cli.extras import require_extras
from services.cli.output import EXIT_FAILURE, exit_on_error, print_error, print_table, track
from shared.domain.language import normalize_tag
from shared.errors import TenorError
from shared.settings import get_settings

if TYPE_CHECKING:
    from services.analyzer import Analyzer, Row

app = typer.Typer()


class AnalyzeFormat(StrEnum):
    table = "table"
    jsonl = "jsonl"


def _parse_language(tag: str) -> str:
    try:
        return normalize_tag(tag)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


@app.command(
    epilog="Examples: `tenor analyze *.mp3 --format jsonl`, `tenor analyze --conversation monday.wav tuesday.wav`, "
    "`tenor analyze --text 'Leave me alone!'`"
)
def analyze(
    files: Annotated[list[Path] | None, typer.Argument(metavar="FILE...", help="Audio files of any format.")] = None,
    text: Annotated[str | None, typer.Option(help="Analyse this text instead of audio files.")] = None,
    language: Annotated[
        str | None,
        typer.Option(
            help="The spoken language as a BCP 47 tag, such as en or pt-BR. It is detected if this is unset, or "
            "unknown to Whisper.",
            parser=_parse_language,
        ),
    ] = None,
    speaker: Annotated[str, typer.Option(help="The name of the speaker.")] = "speaker",
    conversation: Annotated[
        bool,
        typer.Option("--conversation", help="The files are the turns of one speaker in one conversation, in order."),
    ] = False,
    context: Annotated[
        bool,
        typer.Option("--context/--no-context", help="In a conversation, read the texts of the turns before too."),
    ] = True,
    output: Annotated[
        AnalyzeFormat, typer.Option("--format", help="`table` for people, `jsonl` for programs.")
    ] = AnalyzeFormat.table,
) -> None:
    """Transcribe audio files and predict their emotions, without a server.

    A file of up to 30 s is one turn; a longer one is split into turns at its pauses. With `--conversation`, the
    prediction of a turn uses the speaker's earlier turns as the baseline and, if the bundle does so, the texts of the
    turns before as context, as in a session of the service. Without it, every turn stands alone.
    """
    if bool(files) == (text is not None):
        raise typer.BadParameter("give either FILE... or --text", param_hint="FILE...")
    if conversation and not files:
        raise typer.BadParameter("a conversation needs audio files: give FILE...", param_hint="--conversation")
    failed = False
    rows: list[Row] = []
    with exit_on_error():
        require_extras("models")
        from services.analyzer import Analyzer
        from shared.modeling.model_selection import load_pipeline

        with closing(Analyzer(load_pipeline(get_settings()), speaker, language, conversation, context)) as analyzer:
            for source, result in _results(analyzer, files or [], text):
                if isinstance(result, TenorError):
                    failed = True
                    print_error(f"{source}: {result.code}: {result.detail}")
                elif output is AnalyzeFormat.jsonl:
                    _write_lines(result)
                else:
                    rows += result
    if rows:
        print_table(results_table(rows, conversation))
    raise typer.Exit(EXIT_FAILURE if failed else 0)


def results_table(rows: "Sequence[Row]", conversation: bool = False) -> Table:
    """Return the table of `tenor analyze`; of a conversation, also with the number of earlier turns in the baseline."""
    baseline = ["baseline"] if conversation else []
    table = Table("file", "time", "emotion", "valence", "incongruence", *baseline)
    table.add_column("text", min_width=24)
    for row in rows:
        table.add_row(
            "" if row.file is None else Path(row.file).name,
            "" if row.start is None or row.end is None else f"{row.start:.1f}-{row.end:.1f} s",
            f"{row.emotion} {row.confidence:.0%}" if row.emotion else f"[dim]{_abstained(row)}[/]",
            "" if row.valence is None else f"{row.valence:+.2f}",
            "" if row.incongruence is None else f"{row.incongruence:.2f}",
            *([str(row.baseline_turns)] if conversation else []),
            Text(row.text),
        )
    return table


def _abstained(row: "Row") -> str:
    return "abstained" if row.reason is None else f"abstained: {row.reason.replace('_', ' ')}"


def _results(
    analyzer: "Analyzer", files: Sequence[Path], text: str | None
) -> "Iterator[tuple[str, list[Row] | TenorError]]":
    """Yield the source and the result of each file or of the text, with a progress bar."""
    if text is not None:
        yield "--text", analyzer.text(text)
        return
    for file, result in track("Analysing", analyzer.files(files), len(files)):
        yield str(file), result


def _write_lines(rows: "Sequence[Row]") -> None:
    for row in rows:
        sys.stdout.write(row.model_dump_json() + "\n")
    sys.stdout.flush()
