"""Parses the body of a turn or recording: JSON, or a multipart form with an audio file."""

import re
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import TypeVar

from fastapi import Request
from fastapi.datastructures import Headers
from pydantic import BaseModel
from python_multipart.multipart import parse_options_header
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from services.api.schemas.turn import TurnIn
from services.validation import validate
from shared.errors import InvalidRequest, StorageFull, UnsupportedMediaType

_AUDIO_TYPES = ("audio/", "video/", "application/", "binary/")
"""The content of a file with such a type decides whether it is a recording. Clients declare the same MP4 file as
`audio/mp4`, `video/mp4`, `application/mp4`, `application/octet-stream` or `binary/octet-stream`."""
_MEDIA_TYPE = re.compile(r"[a-z0-9!#$&^_.+-]+/[a-z0-9!#$&^_.+-]+( *;[ -~]*)?")
_MAX_MEDIA_TYPE = 100
_MAX_FIELDS = 16
AUDIO_FIELD = {
    "type": "string",
    "format": "binary",
    "description": "WAV, FLAC, MP3, Ogg, Opus, M4A or WebM; any sample rate, mono or stereo",
}
"""The OpenAPI schema of a form's audio file."""
Fields = TypeVar("Fields", bound=BaseModel)


async def parse_json_turn(request: Request) -> TurnIn | None:
    """Return the turn of a JSON body; None for a form, which `parse_audio_form` parses.

    Raises:
        UnsupportedMediaType: the body is neither JSON nor a form.
        InvalidRequest: the JSON or a field is not valid, or there is no visible text.
    """
    media_type, _ = parse_options_header(request.headers.get("content-type", ""))
    if media_type == b"multipart/form-data":
        return None
    if media_type != b"application/json":
        raise UnsupportedMediaType(
            f"a turn is sent as application/json or multipart/form-data, not as {media_type.decode('latin-1')!r}"
        )
    turn = validate(TurnIn, await request.json())
    if turn.text is None:
        found = "this one has no visible character" if "text" in turn.model_fields_set else "this one has none"
        raise InvalidRequest(f"text: a turn without a recording needs a text; {found}")
    return turn


@asynccontextmanager
async def parse_audio_form(request: Request, model: type[Fields]) -> AsyncGenerator[tuple[Fields, UploadFile]]:
    """Yield the fields of a form and its audio file, which is closed afterwards.

    Raises:
        UnsupportedMediaType: the body is not a form, or the declared type of its file is not an audio type.
        InvalidRequest: a field is missing or not valid, or its text is not UTF-8.
        StorageFull: the disk has no room for the uploaded file.
    """
    media_type, parameters = parse_options_header(request.headers.get("content-type", ""))
    if media_type != b"multipart/form-data":
        raise UnsupportedMediaType(
            f"a recording is sent as multipart/form-data, not as {media_type.decode('latin-1')!r}"
        )
    fields, audio = await _read_form(request, parameters.get(b"boundary", b""))
    try:
        body = validate(model, fields)
        _check_media_type(audio)
        yield body, audio
    finally:
        await audio.close()


def _check_media_type(audio: UploadFile) -> None:
    declared = (audio.content_type or "application/octet-stream").lower()
    well_formed = len(declared) <= _MAX_MEDIA_TYPE and _MEDIA_TYPE.fullmatch(declared)
    if not well_formed or not declared.startswith(_AUDIO_TYPES):
        raise UnsupportedMediaType(f"the audio field holds {declared[:50]!r}: send a recording, such as audio/wav")


class _FormParser(MultiPartParser):
    """A parser that records whether the closing boundary was received: Starlette's accepts a form without it."""

    is_complete = False

    def on_end(self) -> None:
        self.is_complete = True


async def _read_form(request: Request, boundary: bytes) -> tuple[dict[str, str], UploadFile]:
    """Receive a form; return its text fields and its audio file."""
    if not boundary:
        raise InvalidRequest("the Content-Type names no boundary of the form: multipart/form-data; boundary=...")
    # Latin-1 keeps the bytes of a field as they are; the parser would replace the bytes that are not UTF-8.
    content_type = f'multipart/form-data; boundary="{boundary.decode("latin-1")}"; charset=latin-1'
    parser = _FormParser(Headers({"content-type": content_type}), request.stream(), max_files=1, max_fields=_MAX_FIELDS)
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise InvalidRequest(f"the form does not fit the boundary of its Content-Type: {error.message}") from None
    except OSError as error:  # of the temporary file that holds a large upload
        raise StorageFull(f"the recording cannot be received: {error.strerror}") from error
    try:
        _check_form(form, parser)
        audio = _audio_file(form)
        return {name: _utf8(name, value) for name, value in form.items() if isinstance(value, str)}, audio
    except InvalidRequest:
        await form.close()
        raise


def _check_form(form: FormData, parser: _FormParser) -> None:
    if not parser.is_complete:
        raise InvalidRequest("the form is cut off: its closing boundary is missing")
    for name, count in Counter(name for name, _ in form.multi_items()).items():
        if count > 1:
            raise InvalidRequest(f"{name[:50]}: a form may hold each field once, not {count} times")


def _audio_file(form: FormData) -> UploadFile:
    audio = form.get("audio")
    if not isinstance(audio, UploadFile):
        raise InvalidRequest("audio: a form must hold the recording as a file in its field 'audio'")
    return audio


def _utf8(name: str, value: str) -> str:
    try:
        return value.encode("latin-1").decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"{name}: the text is not valid UTF-8 at byte {error.start}") from None
