"""Reads the turns of audio files, text files and JSONL files for `tenor analyze`."""

import mimetypes
import os
import stat
import sys
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Annotated, NamedTuple

from pydantic import AfterValidator, BaseModel, ConfigDict

from services.analyzer import InputTurn
from services.validation import check_text_length, parse_json, validate
from shared.audio.crosstalk import CrosstalkFilter
from shared.audio.decoder import SAMPLE_RATE, Samples, Source
from shared.audio.sandbox import AudioSandbox
from shared.domain.text import Name, Text, is_blank
from shared.errors import AudioTooLong, InvalidRequest, NotFound, SetupError, TenorError, TextTooLong
from shared.modeling.segmentation import MAX_UTTERANCE_S, find_utterances
from shared.modeling.vad import TimeSpan

STDIN = Path("-")

_MAX_PIPED_BYTES = 4 * 2**30
_MAX_LINE_BYTES = 8 * 2**20
_CHUNK_BYTES = 2**20
_OTHER_AUDIO_TYPES = ("application/octet-stream", "application/ogg", "application/mp4")


class SourceItem(NamedTuple):
    """A turn of a source, or the error at its place.

    Attributes:
        place: the name of the file, with the line if it is a text.
        turn: the turn, or the error that took its place.
        done: the share of all sources that is read once this turn is analysed, in [0, 1]; 0 if it is unknown.
    """

    place: str
    turn: InputTurn | TenorError
    done: float


class TextLine(BaseModel):
    """One line of a JSONL file."""

    model_config = ConfigDict(extra="forbid")

    text: Annotated[Text, AfterValidator(lambda text: _check_visible(text))]
    speaker: Name | None = None
    session: Name | None = None


def _check_visible(text: str) -> str:
    if is_blank(text):
        raise ValueError("it has no visible character: write the words of the turn")
    return text


def read_texts(file: Path, speaker: str, max_chars: int, *, jsonl: bool) -> Iterator[SourceItem]:
    """Yield the turns of a text file, one on each line that is not empty, or of a JSONL file.

    Args:
        file: the file; `-` is stdin.
        speaker: who speaks where a line does not say it.
        max_chars: length of the longest text.
        jsonl: whether each line is a JSON object with the fields of `TextLine`, or a text.
    """
    name = printable_name(file)
    try:
        for number, line, done in _read_lines(file):
            place = f"{name}:{number}"
            try:
                fields = _parse_line(line, max_chars, jsonl=jsonl)
                turn = InputTurn(fields.speaker or speaker, fields.text, session=fields.session, file=name, line=number)
                yield SourceItem(place, turn, done)
            except TenorError as error:
                yield SourceItem(place, error, done)
    except TenorError as error:
        yield SourceItem(name, error, 1.0)


def read_recordings(files: Sequence[Path], speakers: Sequence[str], audio: AudioSandbox) -> Iterator[SourceItem]:
    """Yield the turns of audio files. A file that cannot be read yields its error.

    Args:
        files: regular files, pipes, and `-` for stdin.
        speakers: who speaks on each channel, or one speaker for all channels together. In a file with one speaker, up
            to 30 s are one turn. Any longer file, and each of several channels, is split into turns at its pauses.
        audio: decodes the files.
    """
    for number, file in enumerate(files):
        name = printable_name(file)
        try:
            for turn, done in _read_recording(file, name, speakers, audio):
                yield SourceItem(name, turn, (number + done) / len(files))
        except SetupError:
            raise  # every file would cause it
        except TenorError as error:
            yield SourceItem(name, error, (number + 1) / len(files))


def find_recordings(folder: Path) -> tuple[list[Path], int]:
    """Return the files of a folder and its subfolders that may be recordings, and how many other files there are.

    Hidden files are left out, and those whose names end as those of other kinds of files do, such as `.txt`.

    Raises:
        NotFound: a folder cannot be read, or there is no recording.
    """
    found = [path for path in _files_below(folder) if not path.name.startswith(".")]
    recordings = [path for path in found if _may_be_recording(path)]
    if not recordings:
        raise NotFound("there is no recording in this folder")
    return recordings, len(found) - len(recordings)


def printable_name(file: Path) -> str:
    """Return the name of a file in Unicode: JSON and terminals have no other bytes."""
    return str(file).encode(errors="surrogateescape").decode(errors="backslashreplace")


def _read_lines(file: Path) -> Iterator[tuple[int, bytes, float]]:
    """Yield the number, the content and the share of the file up to its end, of each line that is not empty."""
    with _open_stream(file) as stream:
        size = 0 if file == STDIN else os.fstat(stream.fileno()).st_size
        read, number = 0, 0
        while line := stream.readline(_MAX_LINE_BYTES):
            read, number = read + len(line), number + 1
            if len(line) == _MAX_LINE_BYTES:
                raise TextTooLong(f"line {number} has more than {_MAX_LINE_BYTES} bytes; write one text on a line")
            content = line.removeprefix(b"\xef\xbb\xbf" if number == 1 else b"").strip()
            if content:
                yield number, content, read / size if size else 0.0


def _parse_line(line: bytes, max_chars: int, *, jsonl: bool) -> TextLine:
    if jsonl:
        fields = validate(TextLine, parse_json(line))
    else:
        try:
            fields = validate(TextLine, {"text": line.decode()})
        except UnicodeDecodeError as error:
            raise InvalidRequest(f"the text is not valid UTF-8 at byte {error.start}") from None
    check_text_length(fields.text, max_chars)
    return fields


def _read_recording(
    file: Path, name: str, speakers: Sequence[str], audio: AudioSandbox
) -> Iterator[tuple[InputTurn, float]]:
    """Yield each turn of a recording with the share of the recording up to its end."""
    with _open_recording(file) as source:
        if len(speakers) > 1:
            _check_channels(audio.probe(source).channels, speakers)
        (recording,) = audio.decode_parts(source, len(speakers), float("inf"))
    crosstalk = CrosstalkFilter()
    channels = crosstalk.filter(recording.channels)
    warnings = (*recording.warnings, *crosstalk.warnings())
    for channel, (start, end) in _find_turns(channels):
        samples = channels[channel]
        turn = InputTurn(
            speakers[channel],
            samples=samples[int(start * SAMPLE_RATE) : int(end * SAMPLE_RATE)],
            file=name,
            start=round(recording.start_s + start, 3),
            end=round(recording.start_s + end, 3),
            warnings=warnings,
        )
        yield turn, min(1.0, end * SAMPLE_RATE / samples.size)


def _check_channels(found: int, speakers: Sequence[str]) -> None:
    if found != len(speakers):
        raise InvalidRequest(
            f"the recording has {found} channels: name one speaker for each with --channels, not {len(speakers)}"
        )


def _find_turns(channels: Sequence[Samples]) -> list[tuple[int, TimeSpan]]:
    """Return the channel and the span of each turn, in order. Without speech, each channel is one turn."""
    duration = channels[0].size / SAMPLE_RATE
    whole = [(channel, (0.0, duration)) for channel in range(len(channels))]
    if len(channels) == 1 and duration <= MAX_UTTERANCE_S:
        return whole
    found = [(channel, span) for channel, samples in enumerate(channels) for span in find_utterances(samples)]
    return sorted(found, key=lambda turn: turn[1]) or whole


@contextmanager
def _open_recording(file: Path) -> Generator[Source]:
    """Give a file itself, and the content of a pipe as a temporary file, because decoders seek."""
    if file != STDIN and _mode(file) == stat.S_IFREG:
        yield file
        return
    with _open_stream(file) as stream, TemporaryFile() as copy:
        size = 0
        while chunk := stream.read(_CHUNK_BYTES):
            size += len(chunk)
            if size > _MAX_PIPED_BYTES:
                raise AudioTooLong(f"more than {_MAX_PIPED_BYTES} bytes came through the pipe: give a file")
            copy.write(chunk)
        yield copy


@contextmanager
def _open_stream(file: Path) -> Generator[IO[bytes]]:
    """Open a file or a pipe for reading; `-` is stdin, which stays open.

    Raises:
        NotFound: it is not there, is a folder, or cannot be read.
    """
    if file == STDIN:
        yield sys.stdin.buffer
        return
    if _mode(file) not in (stat.S_IFREG, stat.S_IFIFO, stat.S_IFCHR):
        raise NotFound("this is neither a file nor a pipe")
    try:
        stream = file.open("rb")
    except OSError as error:
        raise NotFound(f"the file cannot be opened: {error.strerror}") from None
    with stream:
        yield stream


def _mode(file: Path) -> int:
    """Return the kind of a file, such as `stat.S_IFREG`. Raises NotFound for a folder, or if there is no file."""
    try:
        mode = stat.S_IFMT(file.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        raise NotFound("there is no such file") from None
    except OSError as error:
        raise NotFound(f"the file cannot be read: {error.strerror}") from None
    if mode == stat.S_IFDIR:
        raise NotFound("this is a folder: name its files, or add --recursive")
    return mode


def _files_below(folder: Path) -> Iterator[Path]:
    def refuse(error: OSError) -> None:
        raise NotFound(f"the folder {error.filename} cannot be read: {error.strerror}")

    for parent, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(parent, name) for name in sorted(files))


def _may_be_recording(file: Path) -> bool:
    media_type, compression = mimetypes.guess_type(file.name)
    if compression is not None:
        return False
    return media_type is None or media_type.startswith(("audio/", "video/")) or media_type in _OTHER_AUDIO_TYPES
