"""Request bodies: how much is read, and what a turn may be sent as."""

import re
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TypeVar
from uuid import UUID

from fastapi import Request
from fastapi.datastructures import Headers
from pydantic import BaseModel, ValidationError
from python_multipart.multipart import parse_options_header
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.api.dependencies import authenticate
from services.api.problems import ProblemResponse, describe
from services.api.refusals import refusals
from services.api.schemas import TurnIn
from shared.domain.access import ApiKey
from shared.errors import BodyTooLarge, Busy, InvalidRequest, StorageFull, TenorError, UnsupportedMediaType

_SOUND = ("audio/", "video/", "application/octet-stream", "application/ogg")
_MEDIA_TYPE = re.compile(r"[a-z0-9!#$&^_.+-]+/[a-z0-9!#$&^_.+-]+( *;[ -~]*)?")
_MAX_MEDIA_TYPE = 100
Fields = TypeVar("Fields", bound=BaseModel)
_MAX_JSON_BYTES = 2 * 2**20
"""Parsed, JSON takes up to twenty times its size, and nothing but a recording is longer."""
_RESERVED_BYTES = 2**20
"""The most of a form's declared length that counts before it is received."""


class BodyLimit:
    """ASGI middleware that refuses bodies: of callers without a valid key, too large ones, and too many at once.

    The key is checked before the first byte of a body is read, whatever the route does. A body that declares its length
    is refused at once, another one as it comes; the application's own answer is discarded.

    Args:
        limit: bytes of a form. Anything else may have 2 MiB at most.
        in_flight_limit: bytes of the forms of all requests that are not yet answered; a tenant may use half of it. One
            form alone may exceed it. Other bodies do not count: the limit of connections bounds them.
    """

    def __init__(self, app: ASGIApp, limit: int, in_flight_limit: int) -> None:
        self._app = app
        self._limit = limit
        self._in_flight_limit = in_flight_limit
        self._in_flight = 0
        self._in_flight_by_tenant: Counter[UUID] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope) if scope["type"] == "http" else Headers()
        if not _has_body(headers):
            await self._app(scope, receive, send)
            return
        is_form = headers.get("content-type", "").lower().startswith("multipart/form-data")
        limit = self._limit if is_form else min(self._limit, _MAX_JSON_BYTES)
        body = _Body(self, Request(scope, receive), limit, counts=is_form)
        if body.is_too_large:
            await ProblemResponse(body.too_large())(scope, receive, send)
            return

        async def send_unless_refused(message: Message) -> None:
            if body.refusal is None:
                await send(message)

        try:
            await self._app(scope, body.receive, send_unless_refused)
        except TenorError:
            if body.refusal is None:
                raise
        finally:
            self._release(body)
        if body.refusal is not None:
            await ProblemResponse(body.refusal)(scope, receive, send)

    def reserve(self, body: "_Body", tenant_id: UUID, count: int) -> None:
        """Count more bytes of a tenant's body. Raises Busy where other bodies leave too little room."""
        for counted, allowed, whose in (
            (self._in_flight, self._in_flight_limit, "all tenants"),
            (self._in_flight_by_tenant[tenant_id], self._in_flight_limit // 2, "one tenant"),
        ):
            if counted > body.reserved and counted + count > allowed:
                refusals.count("uploads")
                raise Busy(f"{whose} may upload {allowed} bytes at once: try again when other uploads are done")
        body.tenant_id = tenant_id
        body.reserved += count
        self._in_flight += count
        self._in_flight_by_tenant[tenant_id] += count

    def _release(self, body: "_Body") -> None:
        self._in_flight -= body.reserved
        if body.tenant_id is not None:
            self._in_flight_by_tenant[body.tenant_id] -= body.reserved
            self._in_flight_by_tenant += Counter()  # deletes what is zero


class _Body:
    """The body of one request, while the application reads it.

    Args:
        counts: whether its bytes are counted as in flight.

    Attributes:
        reserved: how many of its bytes are counted as in flight.
        tenant_id: whose bytes they are; None where none are counted.
        refusal: why it is not read on.
    """

    def __init__(self, limits: BodyLimit, request: Request, limit: int, *, counts: bool) -> None:
        self._limits = limits
        self._counts = counts
        self._request = request
        self._limit = limit
        declared = request.headers.get("content-length", "")
        self._declared = int(declared) if declared.isdecimal() else 0
        self._received = 0
        self.reserved = 0
        self.tenant_id: UUID | None = None
        self._key: ApiKey | None = None
        self.refusal: TenorError | None = None

    @property
    def is_too_large(self) -> bool:
        """Whether more was declared, or has come, than is allowed."""
        return max(self._declared, self._received) > self._limit

    def too_large(self) -> BodyTooLarge:
        """The refusal of a body that is."""
        return BodyTooLarge(f"the request body is larger than the {self._limit} bytes allowed")

    async def receive(self) -> Message:
        """Returns the next part, or raises the TenorError that is now `refusal`."""
        try:
            return await self._receive()
        except TenorError as error:
            self.refusal = error
            raise

    async def _receive(self) -> Message:
        if self._key is None:
            self._key = await authenticate(self._request)
            self._reserve(self._key, min(self._declared, _RESERVED_BYTES))
        message = await self._request.receive()
        self._received += len(message.get("body", b""))
        if self.is_too_large:
            raise self.too_large()
        self._reserve(self._key, self._received)
        return message

    def _reserve(self, key: ApiKey, whole: int) -> None:
        if self._counts and whole > self.reserved:
            self._limits.reserve(self, key.tenant_id, whole - self.reserved)


def _has_body(headers: Headers) -> bool:
    """Whether a request announces a body, as HTTP/1.1 requires."""
    return "transfer-encoding" in headers or headers.get("content-length", "0") != "0"


async def parse_json_turn(request: Request) -> TurnIn | None:
    """The turn that was sent as JSON; None where it comes as a form, and `parse_audio_form` reads it.

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
async def parse_audio_form(request: Request, model: type[Fields]) -> AsyncIterator[tuple[Fields, UploadFile]]:
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
        raise InvalidRequest(describe(error.errors(include_url=False, include_input=False), model)) from None


def _sound(audio: UploadFile) -> UploadFile:
    declared = (audio.content_type or "application/octet-stream").lower()
    well_formed = len(declared) <= _MAX_MEDIA_TYPE and _MEDIA_TYPE.fullmatch(declared)
    if not well_formed or not declared.startswith(_SOUND):
        raise UnsupportedMediaType(f"the audio field holds {declared[:50]!r}: send a recording, such as audio/wav")
    return audio


class _FormParser(MultiPartParser):
    """A parser that tells whether the form was complete, as Starlette's takes one that is cut off."""

    is_complete = False

    def on_end(self) -> None:
        self.is_complete = True


async def _form(request: Request, boundary: bytes) -> tuple[dict[str, str], UploadFile]:
    # Latin-1 keeps a field's bytes as they came, where the parser would otherwise guess at what is not UTF-8.
    headers = Headers(
        {"content-type": f'multipart/form-data; boundary="{boundary.decode("latin-1")}"; charset=latin-1'}
    )
    parser = _FormParser(headers, request.stream(), max_files=1, max_fields=16)
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise InvalidRequest(f"the form cannot be read: {error.message}") from None
    except OSError as error:  # of the file that a long recording is kept in while it comes
        raise StorageFull(f"the recording cannot be taken in: {error.strerror}") from error
    try:
        if not parser.is_complete:
            raise InvalidRequest("the form is cut off: its closing boundary is missing")
        for name, count in Counter(name for name, _ in form.multi_items()).items():
            if count > 1:
                raise InvalidRequest(f"{name[:50]}: a form may hold each field once, not {count} times")
        audio = form.get("audio")
        if not isinstance(audio, UploadFile):
            raise InvalidRequest("audio: a form must hold the recording as a file in its field 'audio'")
    except InvalidRequest:
        await form.close()
        raise
    return {name: _utf8(name, value) for name, value in form.items() if isinstance(value, str)}, audio


def _utf8(name: str, value: str) -> str:
    try:
        return value.encode("latin-1").decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"{name}: the text is not valid UTF-8 at byte {error.start}") from None
