"""Request bodies: how much is read, and what a turn may be sent as."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import TypeVar

from fastapi import Request
from fastapi.datastructures import Headers
from pydantic import BaseModel, ValidationError
from python_multipart.multipart import parse_options_header
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.api.errors import ProblemResponse, describe
from services.api.schemas import TurnIn
from shared.errors import BodyTooLarge, InvalidRequest, StorageFull, UnsupportedMediaType

_SOUND = ("audio/", "video/", "application/octet-stream", "application/ogg")
_MAX_MEDIA_TYPE = 100
Fields = TypeVar("Fields", bound=BaseModel)
_MAX_JSON_BYTES = 2 * 2**20
"""Parsed, JSON takes up to twenty times its size, and nothing but a recording is longer."""


class BodyLimit:
    """ASGI middleware that refuses a form over `limit` bytes, and anything else over 2 MiB.

    At once if the length is declared, else as it comes; what the application makes of it then is not sent.
    """

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self._app = app
        self._limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        is_form = headers.get("content-type", "").lower().startswith("multipart/form-data")
        limit = self._limit if is_form else min(self._limit, _MAX_JSON_BYTES)
        refusal = BodyTooLarge(f"the request body is larger than the {limit} bytes allowed")
        declared = headers.get("content-length", "")
        if declared.isdecimal() and int(declared) > limit:
            await ProblemResponse(refusal)(scope, receive, send)
            return
        taken = 0

        async def counted() -> Message:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > limit:
                raise refusal
            return message

        async def held_back(message: Message) -> None:
            if taken <= limit:
                await send(message)

        with suppress(BodyTooLarge):
            await self._app(scope, counted, held_back)
        if taken > limit:
            await ProblemResponse(refusal)(scope, receive, send)


async def written_turn(request: Request) -> TurnIn | None:
    """The turn that was sent as JSON; None where it comes as a form, and `with_sound` reads it.

    Raises:
        UnsupportedMediaType: neither.
        InvalidRequest: a field is missing or wrong, or its text is not UTF-8.
    """
    media_type, _ = parse_options_header(request.headers.get("content-type", ""))
    if media_type == b"application/json":
        return _valid(TurnIn, await request.body())
    if media_type == b"multipart/form-data":
        return None
    raise UnsupportedMediaType(
        f"a turn is sent as application/json or multipart/form-data, not as {media_type.decode('latin-1')!r}"
    )


@asynccontextmanager
async def with_sound(request: Request, model: type[Fields]) -> AsyncIterator[tuple[Fields, UploadFile]]:
    """What was sent as a form: its fields, and its recording, which is closed on leaving.

    Raises:
        UnsupportedMediaType: it is no form, or the file is declared to be something else than sound.
        InvalidRequest: a field is missing or wrong, or its text is not UTF-8.
        StorageFull: there is no room to take the recording in.
    """
    media_type, parameters = parse_options_header(request.headers.get("content-type", ""))
    if media_type != b"multipart/form-data":
        raise UnsupportedMediaType(
            f"a recording is sent as multipart/form-data, not as {media_type.decode('latin-1')!r}"
        )
    fields, audio = await _form(request, parameters.get(b"boundary", b""))
    try:
        yield _valid(model, fields), _sound(audio)
    finally:
        await audio.close()


def _valid(model: type[Fields], body: bytes | dict[str, str]) -> Fields:
    try:
        return model.model_validate_json(body) if isinstance(body, bytes) else model.model_validate(body)
    except ValidationError as error:
        raise InvalidRequest(describe(list(error.errors(include_url=False, include_input=False)))) from None


def _sound(audio: UploadFile) -> UploadFile:
    declared = (audio.content_type or "application/octet-stream").lower()
    if not declared.startswith(_SOUND) or len(declared) > _MAX_MEDIA_TYPE:
        raise UnsupportedMediaType(f"the audio field holds {declared[:50]}: send a recording, such as audio/wav")
    return audio


async def _form(request: Request, boundary: bytes) -> tuple[dict[str, str], UploadFile]:
    # Latin-1 keeps a field's bytes as they came, where the parser would otherwise guess at what is not UTF-8.
    headers = Headers(
        {"content-type": f'multipart/form-data; boundary="{boundary.decode("latin-1")}"; charset=latin-1'}
    )
    parser = MultiPartParser(headers, request.stream(), max_files=1, max_fields=16)
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise InvalidRequest(f"the form cannot be read: {error.message}") from None
    except OSError as error:  # of the file that a long recording is kept in while it comes
        raise StorageFull(f"the recording cannot be taken in: {error.strerror}") from error
    audio = form.get("audio")
    if not isinstance(audio, UploadFile):
        raise InvalidRequest("audio: a form must hold the recording as a file in its field 'audio'")
    return {name: _utf8(name, value) for name, value in form.items() if isinstance(value, str)}, audio


def _utf8(name: str, value: str) -> str:
    try:
        return value.encode("latin-1").decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"{name}: the text is not valid UTF-8 at byte {error.start}") from None
