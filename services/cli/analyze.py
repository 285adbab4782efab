"""`tenor analyze`: predictions for audio files or texts, without a server."""

import csv
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from pydantic import TypeAdapter, ValidationError
from rich import box
from rich.table import Table
from rich.text import Text

from services.cli.extras import require_extras
from services.cli.output import (
    EXIT_FAILURE,
    TERMINAL_CONTROLS,
    escape_controls,
    exit_on_error,
    print_error,
    print_table,
    progress_bar,
    stdout,
)
from shared.domain.language import normalize_tag
from shared.domain.text import Name, is_blank
from shared.errors import SetupError, TenorError
from shared.settings import get_settings

if TYPE_CHECKING:
    from services.analyzer import Analyzer, Row
    from services.turn_sources import SourceItem
    from shared.audio.sandbox import AudioSandbox

app = typer.Typer()

_EPILOG = """Examples:

- `tenor analyze *.mp3 --format jsonl` writes one line of JSON for each turn
- `tenor analyze calls/ --recursive --channels agent,customer --format csv > calls.csv`
- `tenor analyze --conversation monday.wav tuesday.wav` compares the turns of one speaker
- `ffmpeg -i talk.mkv -f wav - | tenor analyze -` reads a recording from a pipe
- `tenor analyze --text 'Leave me alone!'`
- `tenor analyze --jsonl chats.jsonl --conversation` reads lines such as
  `{"text": "Leave me alone!", "speaker": "Ada", "session": "chat-17"}`

Exit status: 0 all was analysed; 1 something failed, and stderr says what; 2 wrong command line; 78 Tenor is not set up
correctly.
"""
_SCORES = ("scores", "text_only", "audio_only")


class AnalyzeFormat(StrEnum):
    table = "table"
    jsonl = "jsonl"
    csv = "csv"


def _parse_language(tag: str) -> str:
    try:
        return normalize_tag(tag)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def _parse_name(name: str) -> str:
    try:
        return TypeAdapter[str](Name).validate_python(name)
    except ValidationError as error:
        raise typer.BadParameter(f"{name!r}: {error.errors()[0]['msg'].removeprefix('Value error, ')}") from None


def _parse_channels(names: str) -> list[str]:
    try:
        return [_parse_name(name.strip()) for name in names.split(",")]
    except typer.BadParameter as error:
        error.param_hint = "--channels"
        raise


def _parse_text(text: str) -> str:
    if is_blank(text):
        raise typer.BadParameter(f"{text!r} has no visible character: write the words of the turn")
    return text


@app.command(epilog=_EPILOG)
def analyze(
    files: Annotated[
        list[Path] | None,
        typer.Argument(metavar="FILE...", help="Audio files of any format, pipes, or `-` for stdin."),
    ] = None,
    text: Annotated[str | None, typer.Option(help="Analyse this text.", parser=_parse_text)] = None,
    text_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Analyse each line of this file as a text; `-` is stdin.")
    ] = None,
    jsonl: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Analyse the texts of this file; `-` is stdin. Each line is a JSON object with the field `text` and, "
            "optionally, `speaker` and `session`.",
        ),
    ] = None,
    recursive: Annotated[
        bool, typer.Option("--recursive", "-r", help="Analyse the recordings in folders and their subfolders.")
    ] = False,
    channels: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,...",
            help="The speaker on each channel of the recordings, such as `agent,customer`. By default the channels are "
            "one speaker's.",
        ),
    ] = None,
    language: Annotated[
        str | None,
        typer.Option(
            help="The spoken language as a BCP 47 tag, such as en or pt-BR. It is detected if this is unset, or "
            "unknown to Whisper.",
            parser=_parse_language,
        ),
    ] = None,
    speaker: Annotated[
        str | None, typer.Option(help="The name of the speaker. [default: speaker]", parser=_parse_name)
    ] = None,
    conversation: Annotated[
        bool,
        typer.Option(
            "--conversation", help="The turns are those of one conversation, in order; of JSONL, of each `session`."
        ),
    ] = False,
    context: Annotated[
        bool,
        typer.Option("--context/--no-context", help="In a conversation, read the texts of the turns before too."),
    ] = True,
    output: Annotated[
        AnalyzeFormat, typer.Option("--format", help="`table` for people; `jsonl` and `csv` for programs.")
    ] = AnalyzeFormat.table,
) -> None:
    """Transcribe audio files and predict their emotions, or predict those of texts, without a server.

    A file of up to 30 s is one turn; a longer one is split into turns at its pauses, and so is each of its channels
    with `--channels`. With `--conversation`, the prediction of a turn uses the speaker's earlier turns as the baseline
    and, if the bundle does so, the texts of the turns before as context, as in a session of the service. Without it,
    every turn stands alone.
    """
    _check_command_line(files, (text, text_file, jsonl), recursive, channels, speaker, conversation)
    speakers = _parse_channels(channels) if channels else [speaker or "speaker"]
    failed: list[str] = []
    with exit_on_error():
        require_extras("models")
        from services.analyzer import Analyzer
        from shared.audio.sandbox import AudioSandbox
        from shared.modeling.model_selection import load_pipeline

        pipeline = load_pipeline(get_settings())
        analyzer = Analyzer(pipeline, language, conversation=conversation, context=context)
        with closing(AudioSandbox()) as audio:
            if files:
                items = _recordings(files, recursive, speakers, audio)
            else:
                items = _texts(text, text_file, jsonl, speakers[0])
            rows = _analyze_all(
                analyzer, items, failed, show_progress=output is AnalyzeFormat.table or not stdout.is_terminal
            )
            if output is AnalyzeFormat.table:
                _print_table(list(rows), conversation)
            elif output is AnalyzeFormat.csv:
                write_csv(rows, pipeline.bundle.label_space.categories)
            else:
                _write_jsonl(rows)
    raise typer.Exit(EXIT_FAILURE if failed else 0)


def results_table(rows: "Sequence[Row]", conversation: bool = False) -> Table:
    """Return the table of `tenor analyze`; of a conversation, also with the number of earlier turns in the baseline.

    It fits a terminal of 80 columns: names of files and speakers are wrapped within words.
    """
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("turn", max_width=18, overflow="fold")
    for header in ("emotion", "valence", "incon-\ngruence", *(["baseline"] if conversation else [])):
        table.add_column(header)
    table.add_column("text", max_width=60, overflow="fold")
    several_speakers = len({row.speaker for row in rows}) > 1
    for row in rows:
        table.add_row(
            Text(_place(row, several_speakers)),
            f"{row.emotion} {row.confidence:.0%}" if row.emotion else f"[dim]{_abstained(row)}[/]",
            "" if row.valence is None else f"{row.valence:+.2f}",
            "" if row.incongruence is None else f"{row.incongruence:.2f}",
            *([str(row.baseline_turns)] if conversation else []),
            Text(escape_controls(row.text)),
        )
    return table


def _language(row: "Row") -> str:
    probability = "" if row.language_probability is None else f" {row.language_probability:.0%}"
    return f"{row.language or ''}{probability}"


def write_csv(rows: "Iterable[Row]", categories: Sequence[str]) -> None:
    """Write rows as CSV, with one column for each category of each score.

    Control characters are written as escapes such as `\\x1b`, except line breaks and tabs.
    """
    from services.analyzer import Row

    columns: list[str] = []
    for name in Row.model_fields:
        columns += [f"{name}_{category}" for category in categories] if name in _SCORES else [name]
    writer = csv.DictWriter(sys.stdout, columns, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow(_csv_fields(row))
        sys.stdout.flush()


def _check_command_line(
    files: Sequence[Path] | None,
    texts: Sequence[object],
    recursive: bool,
    channels: str | None,
    speaker: str | None,
    conversation: bool,
) -> None:
    """Raise BadParameter if the options do not go together. `texts` are the options that name a text, or None."""
    given = sum(source is not None for source in texts) + bool(files)
    if given != 1:
        raise typer.BadParameter("give one of FILE..., --text, --text-file and --jsonl", param_hint="FILE...")
    for option, value in (("--recursive", recursive), ("--channels", channels)):
        if value and not files:
            raise typer.BadParameter("it is for audio files: give FILE...", param_hint=option)
    if channels and speaker:
        raise typer.BadParameter("--channels names the speakers already", param_hint="--speaker")
    if conversation and texts[0] is not None:
        raise typer.BadParameter("give several texts by --text-file or --jsonl", param_hint="--conversation")


def _recordings(
    paths: Sequence[Path], recursive: bool, speakers: Sequence[str], audio: "AudioSandbox"
) -> "Iterator[SourceItem]":
    """Yield the turns of audio files, and with `recursive` of those in folders."""
    from services.turn_sources import SourceItem, find_recordings, printable_name, read_recordings

    files: list[Path] = []
    for path in paths:
        if not (recursive and path.is_dir()):
            files.append(path)
            continue
        try:
            found, others = find_recordings(path)
        except TenorError as error:
            yield SourceItem(printable_name(path), error, 0.0)
            continue
        files += found
        if others:
            print_error(f"{printable_name(path)}: {others} files are skipped, which are no recordings by their names")
    yield from read_recordings(files, speakers, audio)


def _texts(text: str | None, text_file: Path | None, jsonl: Path | None, speaker: str) -> "Iterator[SourceItem]":
    """Return the turns of the one source of texts that is given."""
    from services.analyzer import InputTurn
    from services.turn_sources import SourceItem, read_texts

    if text is not None:
        return iter([SourceItem("--text", InputTurn(speaker, text), 1.0)])
    file = text_file or jsonl or Path("-")
    return read_texts(file, speaker, get_settings().api.max_text_chars, jsonl=jsonl is not None)


def _analyze_all(
    analyzer: "Analyzer", items: "Iterator[SourceItem]", failed: list[str], *, show_progress: bool
) -> "Iterator[Row]":
    """Yield the row of each turn. Errors are printed, and their places are added to `failed`."""
    with progress_bar("Analysing", show_progress) as update:
        for place, turn, done in items:
            try:
                if isinstance(turn, TenorError):
                    raise turn
                yield analyzer.analyze(turn)
            except SetupError:
                raise  # every turn would cause it
            except TenorError as error:
                failed.append(place)
                print_error(f"{place}: {error.code}: {error.detail}")
            update(place, done)


def _print_table(rows: "Sequence[Row]", conversation: bool) -> None:
    if rows:
        print_table(results_table(rows, conversation))


def _write_jsonl(rows: "Iterable[Row]") -> None:
    for row in rows:
        # JSON escapes only some of the characters that a terminal obeys.
        line = TERMINAL_CONTROLS.sub(lambda char: f"\\u{ord(char[0]):04x}", row.model_dump_json())
        sys.stdout.write(line + "\n")
        sys.stdout.flush()


def _abstained(row: "Row") -> str:
    return "abstained" if row.reason is None else f"abstained: {row.reason.replace('_', ' ')}"


def _place(row: "Row", with_speaker: bool) -> str:
    """Return where a turn is and its language, on one or more lines."""
    file = "" if row.file is None else Path(row.file).name + ("" if row.line is None else f":{row.line}")
    time = "" if row.start is None or row.end is None else f"{row.start:.1f}-{row.end:.1f} s"
    parts = (file, time, row.session or "", row.speaker if with_speaker else "", _language(row))
    return "\n".join(escape_controls(part) for part in parts if part)


def _csv_fields(row: "Row") -> dict[str, object]:
    scores = {"scores": row.scores, "text_only": row.text_only, "audio_only": row.audio_only}
    fields: dict[str, object] = {}
    for name, value in row.model_dump(mode="json", exclude=set(scores)).items():
        fields[name] = escape_controls(value) if isinstance(value, str) else value
    for name, categories in scores.items():
        fields |= {f"{name}_{category}": score for category, score in (categories or {}).items()}
    fields["modalities_used"] = "+".join(row.modalities_used)
    fields["warnings"] = "; ".join(warning.message for warning in row.warnings)
    return fields
