"""What each request leaves behind: a correlation id, a line in the log, two metrics and a span. And what waits, for
Prometheus."""

import collections
import logging
import re
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from uuid import uuid4

from prometheus_client import Counter, Histogram
from prometheus_client.metrics_core import GaugeMetricFamily
from prometheus_client.registry import Collector
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from shared.errors import Unavailable
from shared.store.database import Database
from shared.telemetry import SECONDS, about
from shared.tracing import Span, span

REQUESTS = Counter("tenor_http_requests_total", "Requests that were answered.", ["method", "route", "status"])
REFUSED = Counter(
    "tenor_http_refused_total", "Requests and connections that were refused or dropped at a limit.", ["reason"]
)
REFUSAL_REASONS = (
    "headers_too_large",
    "header_timeout",
    "body_timeout",
    "send_timeout",
    "connections",
    "connection_replaced",
    "uploads",
    "malformed",
)
for _reason in REFUSAL_REASONS:
    REFUSED.labels(_reason)  # each begins at 0, so that Prometheus sees the first one
REQUEST_SECONDS = Histogram(
    "tenor_http_request_seconds",
    "A request, until its answer is sent, with what it was told to wait.",
    ["method", "route"],
    buckets=SECONDS,
)

_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
_PROBES = ("/healthz", "/readyz")
"""Asked every few seconds for ever, so they are not traced, and logged for debugging alone."""
_REPORT_INTERVAL_S = 60.0
_LEFT = 499
"""The status of a request whose client left before there was an answer, as nginx has it."""

_log = logging.getLogger(__name__)


class Telemetry:
    """ASGI middleware around all others.

    A request is known by its `X-Request-ID`, or by the trace of its `traceparent`, where they are what such ids look
    like; else by an id that is made here. The answer names it, and so does every line that is logged meanwhile. What is
    told of a request names its route and never its path, which may hold whatever somebody typed.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        request_id = correlation_id(headers.get("x-request-id"), headers.get("traceparent"))
        with about(correlation_id=request_id), _traced(scope, headers.get("traceparent")) as told:
            started = time.perf_counter()
            status = await self._answer(scope, receive, send, request_id)
            _tell(scope, status, time.perf_counter() - started, told)

    async def _answer(self, scope: Scope, receive: Receive, send: Send, request_id: str) -> int:
        status = _LEFT

        async def named(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-ID"] = request_id
            await send(message)

        await self._app(scope, receive, named)
        return status


class Refusals:
    """Counts what is refused at a limit, and logs the counts once a minute at most, as there may be very many."""

    def __init__(self) -> None:
        self._counts: collections.Counter[str] = collections.Counter()
        self._next_report = 0.0

    @property
    def pending(self) -> bool:
        """Whether there is something to report."""
        return bool(self._counts)

    def count(self, reason: str) -> None:
        """Count one refusal; `reason` is one of `REFUSAL_REASONS`."""
        REFUSED.labels(reason).inc()
        self._counts[reason] += 1

    def report(self) -> None:
        """Log what was refused since the last report, if that was a minute ago."""
        now = time.monotonic()
        if not self._counts or now < self._next_report:
            return
        told = ", ".join(f"{reason} {count}" for reason, count in self._counts.most_common())
        _log.warning("refused at a limit: %s (the metric tenor_http_refused_total counts them all)", told)
        self._counts.clear()
        self._next_report = now + _REPORT_INTERVAL_S


refusals = Refusals()
"""Of this process."""


class Lanes(Collector):
    """What waits in each lane, as the database has it whenever Prometheus asks; nothing while it is away."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def describe(self) -> list[GaugeMetricFamily]:
        return [
            GaugeMetricFamily("tenor_queue_depth", "Turns that wait, counted up to a million.", labels=["lane"]),
            GaugeMetricFamily("tenor_queue_oldest_seconds", "How long the oldest of them has waited.", labels=["lane"]),
        ]

    def collect(self) -> Iterator[GaugeMetricFamily]:
        depth, oldest = self.describe()
        try:
            with self._database.transaction() as transaction:
                lanes = transaction.jobs.waiting()
        except Unavailable as error:
            _log.warning("what waits is not known: %s", error.detail)
            return
        for waiting in lanes:
            depth.add_metric([waiting.lane.value], waiting.jobs)
            oldest.add_metric([waiting.lane.value], waiting.oldest_s)
        yield depth
        yield oldest


def correlation_id(request_id: str | None, traceparent: str | None) -> str:
    """What the client calls its request, where it does so in a form that may be logged; else a new id."""
    if request_id and re.fullmatch(r"[A-Za-z0-9._:=+/-]{1,128}", request_id):
        return request_id
    trace = re.fullmatch(r"[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}", traceparent or "")
    return trace.group(1) if trace else uuid4().hex


def _is_probe(scope: Scope) -> bool:
    return scope["path"].removeprefix(scope.get("root_path", "")) in _PROBES


def _traced(scope: Scope, parent: str | None) -> AbstractContextManager[Span]:
    if _is_probe(scope):
        return nullcontext(Span("probe"))
    return span(_method(scope), "SERVER", parent)


def _tell(scope: Scope, status: int, seconds: float, told: Span) -> None:
    method, route = _method(scope), getattr(scope.get("route"), "path", "unmatched")
    REQUESTS.labels(method, route, status).inc()
    REQUEST_SECONDS.labels(method, route).observe(seconds)
    told.name = f"{method} {route}"
    told.attributes |= {"http.request.method": method, "http.route": route, "http.response.status_code": status}
    fields = {"method": method, "route": route, "status": status, "ms": round(seconds * 1000, 1)}
    level = logging.DEBUG if _is_probe(scope) else logging.INFO
    _log.log(level, "%s %s %d %.1f ms", *fields.values(), extra=fields)


def _method(scope: Scope) -> str:
    return scope["method"] if scope["method"] in _METHODS else "other"
