"""ASGI middleware that limits request bodies: who may send one, how large it is, and how many are received at once.

A body with `Content-Encoding: gzip` is decompressed here, because the limits apply to the decompressed body.
"""

import asyncio
from collections import Counter
from uuid import UUID

from fastapi import Request
from fastapi.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.api.dependencies import authenticate
from services.api.gzip_body import Gunzip, gunzip_for
from services.api.problems import ProblemResponse
from services.api.refusals import refusals
from shared.domain.access import ApiKey
from shared.errors import BodyTooLarge, Busy, RequestError, TenorError

_MAX_JSON_BYTES = 2 * 2**20
"""Parsed JSON takes up to twenty times the memory of its text, and no JSON body needs more than this."""
_RESERVED_BYTES = 2**20
"""The part of a form's declared length that is reserved before the form is received."""


class BodyLimit:
    """ASGI middleware that refuses a body without a valid API key, one that is too large, and too many at once.

    The key is checked before the first byte of a body is read, whatever the route does. A body that declares too great
    a length is refused at once; one without a declared length is refused as soon as too much was received. The response
    of the application to a refused body is discarded.

    Args:
        limit: the most bytes of a form. Any other body may have 2 MiB at most.
        in_flight_limit: the most bytes of the forms of all unanswered requests; one tenant may use half of them. A
            single form may exceed it. Other bodies do not count, as the limit of connections bounds them.
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
        try:
            body = _Body(self, Request(scope, receive), limit, counts=is_form)
        except RequestError as error:
            await ProblemResponse(error)(scope, receive, send)
            return
        await self._run_application(body, scope, send)
        if body.refusal is not None:
            await ProblemResponse(body.refusal)(scope, receive, send)

    async def _run_application(self, body: "_Body", scope: Scope, send: Send) -> None:
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

    def reserve(self, body: "_Body", tenant_id: UUID, count: int) -> None:
        """Count `count` more bytes of a tenant's body.

        Raises:
            Busy: the other bodies in flight leave too little room.
        """
        for counted, allowed, whose in (
            (self._in_flight, self._in_flight_limit, "all tenants"),
            (self._in_flight_by_tenant[tenant_id], self._in_flight_limit // 2, "one tenant"),
        ):
            # A form that is alone may exceed the limit: otherwise one larger than the limit could never be sent.
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
            self._in_flight_by_tenant += Counter()  # removes tenants whose count is zero


class _Body:
    """The body of one request, while the application reads it.

    Args:
        counts: whether its bytes count as in flight.

    Raises:
        BodyTooLarge: it declares too great a length.
        UnsupportedEncoding: it is encoded in another way than gzip.

    Attributes:
        reserved: the number of its bytes that count as in flight.
        tenant_id: the tenant who sends it; None while no bytes are reserved.
        refusal: the error that ended the reading of the body; None while it is read.
    """

    def __init__(self, limits: BodyLimit, request: Request, limit: int, *, counts: bool) -> None:
        self._limits = limits
        self._counts = counts
        self._request = request
        self._limit = limit
        declared = request.headers.get("content-length", "")
        self._declared = int(declared) if declared.isdecimal() else 0
        self._check_size(self._declared)
        self._gunzip = gunzip_for(request.headers)
        self._last: Message = {"type": "http.request", "body": b"", "more_body": True}
        self._sent = 0
        self._received = 0
        self.reserved = 0
        self.tenant_id: UUID | None = None
        self._key: ApiKey | None = None
        self.refusal: TenorError | None = None

    async def receive(self) -> Message:
        """Return the next ASGI message, or raise the TenorError that `refusal` then holds."""
        try:
            return await self._receive()
        except TenorError as error:
            self.refusal = error
            raise

    async def _receive(self) -> Message:
        if self._key is None:
            self._key = await authenticate(self._request)
            self._reserve(self._key, min(self._declared, _RESERVED_BYTES))
        message = await (self._receive_raw() if self._gunzip is None else self._receive_gunzipped(self._gunzip))
        self._received += len(message.get("body", b""))
        self._check_size(self._received)
        self._reserve(self._key, self._received)
        return message

    async def _receive_raw(self) -> Message:
        message = await self._request.receive()
        self._sent += len(message.get("body", b""))
        self._check_size(self._sent)  # a gzip body may expand to less
        return message

    async def _receive_gunzipped(self, gunzip: Gunzip) -> Message:
        """Return the next ASGI message, with a piece of the decompressed body in place of the compressed one."""
        if not gunzip.has_more:
            self._last = await self._receive_raw()
            if self._last["type"] != "http.request":  # the client has disconnected
                return self._last
            gunzip.feed(self._last.get("body", b""))
        else:
            await asyncio.sleep(0)  # other requests go on while a large body is decompressed
        body = gunzip.read() if gunzip.has_more else b""
        more = gunzip.has_more or self._last.get("more_body", False)
        if not more:
            gunzip.finish()
        return {**self._last, "body": body, "more_body": more}

    def _check_size(self, size: int) -> None:
        if size > self._limit:
            raise BodyTooLarge(f"the request body is larger than the {self._limit} bytes allowed")

    def _reserve(self, key: ApiKey, total: int) -> None:
        if self._counts and total > self.reserved:
            self._limits.reserve(self, key.tenant_id, total - self.reserved)


def _has_body(headers: Headers) -> bool:
    """Whether a request has a body: HTTP/1.1 requires one of these headers for it."""
    return "transfer-encoding" in headers or headers.get("content-length", "0") != "0"
