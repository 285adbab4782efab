"""Middleware that gives each request a correlation id, a log line, metrics and a span."""

import logging
import re
import time
from contextlib import AbstractContextManager, nullcontext
from uuid import uuid4

from opentelemetry.trace import INVALID_SPAN, Span, SpanKind
from prometheus_client import Counter, Histogram
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.api.problems import METHODS
from shared.observability.logging import log_context
from shared.observability.metrics import DURATION_BUCKETS
from shared.observability.tracing import start_as_current_span

HTTP_REQUESTS_TOTAL = Counter("tenor_http_requests_total", "Answered requests.", ["method", "route", "status"])
HTTP_REQUEST_SECONDS = Histogram(
    "tenor_http_request_seconds",
    "Time of a request until its answer was sent, including the wait that it asked for.",
    ["method", "route"],
    buckets=DURATION_BUCKETS,
)

_PROBES = ("/healthz", "/readyz")
"""Supervisors ask for these every few seconds, so they are not traced, and logged at DEBUG only."""
_CLIENT_CLOSED_REQUEST = 499
"""The status, as in nginx, of a request whose client closed the connection before the answer."""

_log = logging.getLogger(__name__)


class RequestTelemetry:
    """ASGI middleware that logs, counts, times and traces each request under a correlation id.

    The answer's `X-Request-ID` is the correlation id. Log lines, metrics and spans name the request's route and not its
    path, because a path may hold anything.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        traceparent = headers.get("traceparent")
        correlation_id = choose_correlation_id(headers.get("x-request-id"), traceparent)
        with log_context(correlation_id=correlation_id), _request_span(scope, traceparent) as span:
            started = time.perf_counter()
            status = await self._respond(scope, receive, send, correlation_id)
            _record_request(scope, status, time.perf_counter() - started, span)

    async def _respond(self, scope: Scope, receive: Receive, send: Send, correlation_id: str) -> int:
        """Return the status of the application's answer, after sending it with the header `X-Request-ID`."""
        status = _CLIENT_CLOSED_REQUEST

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-ID"] = correlation_id
            await send(message)

        await self._app(scope, receive, send_with_id)
        return status


def choose_correlation_id(request_id: str | None, traceparent: str | None) -> str:
    """Return the client's `X-Request-ID` if it is safe to log, else the trace id of `traceparent`, else a new id."""
    if request_id and re.fullmatch(r"[A-Za-z0-9._:=+/-]{1,128}", request_id):
        return request_id
    trace = re.fullmatch(r"[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}", traceparent or "")
    return trace.group(1) if trace else uuid4().hex


def _is_probe(scope: Scope) -> bool:
    return scope["path"].removeprefix(scope.get("root_path", "")) in _PROBES


def _request_span(scope: Scope, traceparent: str | None) -> AbstractContextManager[Span]:
    if _is_probe(scope):
        return nullcontext(INVALID_SPAN)
    return start_as_current_span(_method(scope), SpanKind.SERVER, traceparent)


def _record_request(scope: Scope, status: int, seconds: float, span: Span) -> None:
    method, route = _method(scope), getattr(scope.get("route"), "path", "unmatched")
    HTTP_REQUESTS_TOTAL.labels(method, route, status).inc()
    HTTP_REQUEST_SECONDS.labels(method, route).observe(seconds)
    span.update_name(f"{method} {route}")
    span.set_attributes({"http.request.method": method, "http.route": route, "http.response.status_code": status})
    fields = {"method": method, "route": route, "status": status, "ms": round(seconds * 1000, 1)}
    level = logging.DEBUG if _is_probe(scope) else logging.INFO
    _log.log(level, "%s %s %d %.1f ms", *fields.values(), extra=fields)


def _method(scope: Scope) -> str:
    return scope["method"] if scope["method"] in METHODS else "other"
