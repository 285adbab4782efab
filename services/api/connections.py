"""Limits on HTTP connections: how many are open, how much one may send, and how slowly.

uvicorn limits none of these. `Connection` counts the bytes that its parser receives, `Connections` counts the open
connections and closes the late ones, and `run_server` starts uvicorn with both. A request beyond a limit gets a problem
document, if one can be sent, and its connection is closed.
"""

import asyncio
import logging
import resource
from collections import Counter
from enum import Enum, auto
from functools import partial
from ipaddress import IPv6Address
from typing import TYPE_CHECKING, Any, cast

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from services.api.problems import ProblemResponse
from services.api.refusals import refusals
from shared.errors import HeadersTooLarge, MalformedRequest, RequestTimeout, TenorError, TooManyConnections
from shared.settings import Settings

if TYPE_CHECKING:
    from uvicorn._types import ASGI3Application

HEADER_OVERHEAD_BYTES = 32
"""Bytes that each header field counts in addition to its name and value, as in HTTP/2 (RFC 9113, section 6.5.2)."""

_LINGER_S = 2.0
"""How long a refused client may go on sending, which is discarded. If the connection were closed at once, the client's
kernel might discard the response."""
_MAX_LINGERING = 64
_MAX_PIPELINED = 32
_MAX_UNREAD_BODY_BYTES = 2**20
"""uvicorn pauses reading at 64 KiB. Only a client that sends the body of its next request too early exceeds this."""
_OTHER_FILES = 256
"""Open files that are not connections of clients: database, broker, recordings."""

_log = logging.getLogger(__name__)


def run_server(application: FastAPI, settings: Settings, host: str, port: int) -> None:
    """Serve `application` with the limits of the settings, until SIGINT or SIGTERM."""
    connections = Connections(settings, allowed_connections(settings.api.max_connections))
    uvicorn.run(
        application,
        host=host,
        port=port,
        http=cast("type[asyncio.Protocol]", partial(Connection, connections)),
        ws="none",
        timeout_graceful_shutdown=max(1, round(settings.worker.drain_s)),  # without it uvicorn waits for ever
        proxy_headers=False,  # `ForwardedHeaders` reads them, and those of the host and the prefix
        access_log=False,
        # uvicorn warns of each malformed request, and a client may send very many; `refusals` counts them instead.
        log_level="error",
        log_config=None,
    )


def allowed_connections(wanted: int) -> int:
    """Raise the limit of open files of this process to what `wanted` connections need; return how many then fit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    reserved = _MAX_LINGERING + _OTHER_FILES
    if soft == resource.RLIM_INFINITY or soft >= wanted + reserved:
        return wanted
    files = wanted + reserved if hard == resource.RLIM_INFINITY else min(wanted + reserved, hard)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, hard))
    except (OSError, ValueError):
        files = soft
    if files < wanted + reserved:
        allowed = max(1, files - reserved)
        _log.warning(
            "TENOR_API_MAX_CONNECTIONS is lowered from %d to %d, as this process may open no more than %d files: "
            "raise its limit (ulimit -n)",
            wanted,
            allowed,
            files,
        )
        return allowed
    return wanted


class _Phase(Enum):
    """What a connection is doing."""

    idle = auto()
    """It waits for the first byte of a request."""
    head = auto()
    """It receives the request line and the headers."""
    body = auto()
    """It receives the body."""
    answer = auto()
    """The whole request was received, and the response is not sent yet."""
    discard = auto()
    """The response was sent before the body was received; the rest of the body is discarded."""
    refused = auto()
    """The connection is about to be closed; everything that is received is discarded."""


class Connections:
    """The open connections of one server.

    If there are too many, a new connection replaces the one that has waited longest without a complete request: it is
    idle, sends its headers slowly, or has its response. So waiting connections never keep new ones out. If every
    connection is in the middle of a request, the new one is refused.

    Args:
        settings: the limits of each connection, and of all connections of one client.
        limit: how many connections may be open.
    """

    def __init__(self, settings: Settings, limit: int) -> None:
        self.settings = settings
        self._limit = limit
        self._open: set[Connection] = set()
        self._by_client: Counter[str] = Counter()
        self._waiting: dict[Connection, None] = {}  # in the order in which they began to wait
        self._lingering: dict[Connection, None] = {}
        timeouts = (
            settings.api.header_timeout_s,
            settings.api.body_timeout_s,
            settings.api.send_timeout_s,
            settings.api.keep_alive_s,
        )
        self._interval_s = min(1.0, min(timeouts) / 4)
        self._checked_at: float | None = None

    def add(self, connection: "Connection") -> None:
        """Count a new connection, and close a waiting one if there are too many.

        Raises:
            TooManyConnections: there are too many, and none waits; if one client has too many, none of that client.
        """
        self._start_checks(connection.loop)
        client_limit = self.settings.api.max_connections_per_client
        client_is_full = 0 < client_limit <= self._by_client[connection.client_network]
        if client_is_full or len(self._open) >= self._limit:
            waiting = (
                other
                for other in self._waiting
                if not client_is_full or other.client_network == connection.client_network
            )
            longest = next(waiting, None)
            if longest is None:
                limit, whose = (client_limit, "from this address") if client_is_full else (self._limit, "in all")
                raise TooManyConnections(f"{limit} connections {whose} are open and busy: use fewer, or wait")
            refusals.count("connection_replaced")
            longest.drop()
        self._open.add(connection)
        self._by_client[connection.client_network] += 1
        self._waiting[connection] = None

    def remove(self, connection: "Connection") -> None:
        """Stop counting a connection that is closed."""
        self._waiting.pop(connection, None)
        self._lingering.pop(connection, None)
        if connection in self._open:
            self._open.remove(connection)
            self._by_client[connection.client_network] -= 1
            if not self._by_client[connection.client_network]:
                del self._by_client[connection.client_network]

    def set_waiting(self, connection: "Connection", waiting: bool) -> None:
        """Set whether a new connection may replace this one."""
        if not waiting:
            self._waiting.pop(connection, None)
        elif connection in self._open:
            self._waiting[connection] = None

    def linger(self, connection: "Connection") -> None:
        """Keep a refused connection open for a moment, not counted, so that its client can read the response."""
        self.remove(connection)
        self._lingering[connection] = None
        if len(self._lingering) > _MAX_LINGERING:
            next(iter(self._lingering)).drop()

    def _start_checks(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._checked_at is None:
            self._checked_at = loop.time()
            loop.call_later(self._interval_s, self._check, loop)

    def _check(self, loop: asyncio.AbstractEventLoop) -> None:
        """Close the connections that are late, and log the counts of refusals."""
        now = loop.time()
        elapsed_s, self._checked_at = now - (self._checked_at or now), None
        for connection in [*self._open, *self._lingering]:
            connection.check(now, elapsed_s)
        refusals.report()
        if self._open or self._lingering or refusals.pending:
            self._start_checks(loop)


class Connection(HttpToolsProtocol):
    """An HTTP/1.1 connection of uvicorn with the limits of `Connections`.

    Attributes:
        client_network: the network of the client, as the function `client_network` returns it.
    """

    client_network: str

    def __init__(
        self,
        connections: Connections,
        config: uvicorn.Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._connections = connections
        self._limits = connections.settings.api
        self._enter(_Phase.idle)
        self._running: RequestResponseCycle | None = None
        self._error: tuple[str, TenorError] | None = None
        self._parsed = False
        self._head_bytes = 0
        self._unparsed_bytes = 0
        self._body_bytes = 0
        self._body_bytes_checked = 0
        self._body_progress_at = 0.0
        self._unsent_since: float | None = None
        self._unsent_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.client_network = client_network(self.client[0] if self.client else "")
        try:
            self._connections.add(self)
        except TooManyConnections as error:
            self._refuse("connections", error)

    def connection_lost(self, exc: Exception | None) -> None:
        self._disconnect()
        super().connection_lost(exc)

    def drop(self) -> None:
        """Close the connection at once, and discard unsent bytes."""
        self._disconnect()
        self.transport.abort()

    def data_received(self, data: bytes) -> None:
        # In pieces of the limit: the parser takes quadratic time for a long header that it receives in many parts.
        size = self._limits.max_header_bytes
        for start in range(0, len(data), size):
            if self._phase is _Phase.refused or self.transport.is_closing():
                return
            self._feed(data if len(data) <= size else data[start : start + size])

    def _feed(self, data: bytes) -> None:
        self._parsed = False
        super().data_received(data)
        if self._parsed or self._phase is _Phase.refused:
            return
        # No callback ran: this was a part of a header, of a chunk's extension, or of line breaks before a request.
        if self._phase is _Phase.idle:
            self._enter(_Phase.head)
        self._unparsed_bytes += len(data)
        if self._head_bytes + self._unparsed_bytes > self._limits.max_header_bytes:
            self._refuse("headers_too_large", self._headers_too_large())

    def _headers_too_large(self) -> HeadersTooLarge:
        return HeadersTooLarge(
            f"the request line and the headers are larger than the {self._limits.max_header_bytes} bytes allowed"
        )

    def send_400_response(self, msg: str) -> None:
        """Refuse a request that the parser, or one of the callbacks below, has rejected. uvicorn calls this."""
        self._refuse(*(self._error or ("malformed", MalformedRequest("this is not a valid HTTP/1.1 request"))))

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._parsed = True
        self._head_bytes = self._unparsed_bytes = 0
        self._enter(_Phase.head)
        if len(self.pipeline) >= _MAX_PIPELINED:
            self._fail("malformed", MalformedRequest("too many requests were sent before the response to the first"))

    def on_url(self, url: bytes) -> None:
        self._count_head_bytes(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count_head_bytes(len(name) + len(value) + HEADER_OVERHEAD_BYTES)
        if self._phase is _Phase.head:  # after the body it is a trailer, which uvicorn would take for a header
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        self._parsed = True
        self._enter(_Phase.body)
        self._body_bytes = self._body_bytes_checked = 0
        self._body_progress_at = self._since
        self._connections.set_waiting(self, False)
        if self.expect_100_continue or (self.parser and self.parser.should_upgrade()):
            # The end of the body is uncertain: a refused client sends no body, and the parser skips it on an upgrade.
            self.cycle.keep_alive = False

    def on_body(self, body: bytes) -> None:
        self._parsed = True
        self._unparsed_bytes = 0
        self._body_bytes += len(body)
        super().on_body(body)
        if len(self.cycle.body) > _MAX_UNREAD_BODY_BYTES:
            self._fail("malformed", MalformedRequest("a body was sent before the response to the previous request"))

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._parsed = True
        self._unparsed_bytes = 0
        self._enter(_Phase.idle if self._phase is _Phase.discard else _Phase.answer)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._unset_keepalive_if_required()  # `check` closes idle connections instead: any byte stops uvicorn's timer
        if self.cycle.response_complete and not self.transport.is_closing():
            following = {_Phase.answer: _Phase.idle, _Phase.body: _Phase.discard}
            if self._phase in following:
                self._enter(following[self._phase])
            self._connections.set_waiting(self, True)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._unsent_since = None

    def check(self, now: float, elapsed_s: float) -> None:
        """Close the connection if it is late.

        Args:
            now: the time by the clock of the event loop.
            elapsed_s: seconds since the last check of all connections.
        """
        if self._reads_too_slowly(now):
            refusals.count("send_timeout")
            self.drop()
        elif not self.transport.is_closing():
            self._check_received(now, elapsed_s)

    def _check_received(self, now: float, elapsed_s: float) -> None:
        limits, waited_s = self._limits, now - self._since
        match self._phase:
            case _Phase.idle if waited_s > (limits.keep_alive_s if self.cycle else limits.header_timeout_s):
                self.transport.close()
            case _Phase.head if waited_s > limits.header_timeout_s and not self.flow.read_paused:
                detail = f"the headers were not complete after {limits.header_timeout_s:g} s"
                self._refuse("header_timeout", RequestTimeout(detail))
            case _Phase.body if self._sends_body_too_slowly(now, elapsed_s):
                detail = (
                    f"the body came too slowly: send some of it every {limits.body_timeout_s:g} s, "
                    f"and at least {limits.min_body_rate} bytes a second"
                )
                self._refuse("body_timeout", RequestTimeout(detail))
            case _Phase.discard if waited_s > limits.body_timeout_s:
                self.drop()
            case _Phase.refused if waited_s > _LINGER_S:
                self.drop()
            case _:
                pass

    def _sends_body_too_slowly(self, now: float, elapsed_s: float) -> bool:
        if self.flow.read_paused or self.cycle.waiting_for_100_continue:
            # The client waits for the application to read, so this time does not count against the client.
            self._since = min(now, self._since + elapsed_s)
            self._body_progress_at = now
            return False
        if self._body_bytes != self._body_bytes_checked:
            self._body_bytes_checked = self._body_bytes
            self._body_progress_at = now
        allowed_s = self._limits.body_timeout_s
        in_all_s = allowed_s + self._body_bytes / self._limits.min_body_rate
        return now - self._body_progress_at > allowed_s or now - self._since > in_all_s

    def _reads_too_slowly(self, now: float) -> bool:
        """Whether the client has read nothing of its response for too long: the unsent bytes have not become fewer."""
        unsent = self.transport.get_write_buffer_size()
        if not unsent:
            self._unsent_since = None
        elif self._unsent_since is None or unsent < self._unsent_bytes:
            self._unsent_since = now
        self._unsent_bytes = unsent
        return self._unsent_since is not None and now - self._unsent_since > self._limits.send_timeout_s

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: "ASGI3Application") -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def _disconnect_requests(self) -> None:
        """Tell the running requests that the client has disconnected.

        uvicorn only knows the last request that it received, and the application may still process an earlier one.
        """
        for cycle in (self._running, self.cycle):
            if cycle is not None and not cycle.response_complete:
                cycle.disconnected = True
                cycle.message_event.set()

    def _disconnect(self) -> None:
        self._disconnect_requests()
        self._connections.remove(self)

    def _enter(self, phase: _Phase) -> None:
        self._phase = phase
        self._since = self.loop.time()

    def _count_head_bytes(self, count: int) -> None:
        self._parsed = True
        self._unparsed_bytes = 0
        self._head_bytes += count
        if self._head_bytes > self._limits.max_header_bytes:
            self._fail("headers_too_large", self._headers_too_large())

    def _fail(self, reason: str, error: TenorError) -> None:
        """Stop the parser. uvicorn then calls `send_400_response`."""
        self._error = reason, error
        raise error

    def _refuse(self, reason: str, error: TenorError) -> None:
        """Send a problem document, unless a response is being sent, and close the connection."""
        refusals.count(reason)
        # uvicorn declares `cycle` without None, which it is before the first request.
        busy = self.cycle is not None and not self.cycle.response_complete  # pyright: ignore[reportUnnecessaryComparison]
        reads_body = self._phase is _Phase.body and busy and not self.cycle.response_started
        can_answer = not self.pipeline and (reads_body or (self._phase is not _Phase.discard and not busy))
        self._disconnect_requests()
        self._enter(_Phase.refused)
        if not can_answer:
            self.transport.close()
            return
        response = ProblemResponse(error)
        headers = [*self.server_state.default_headers, *response.raw_headers, (b"connection", b"close")]
        lines = [name + b": " + value + b"\r\n" for name, value in headers]
        self.transport.write(b"".join([STATUS_LINE[response.status_code], *lines, b"\r\n", response.body]))
        self.transport.write_eof()
        self.flow.resume_reading()
        self._connections.linger(self)


def client_network(address: str) -> str:
    """Return an IPv4 address, or the /64 network of an IPv6 address, as a whole /64 belongs to one client."""
    if ":" not in address:
        return address
    whole = IPv6Address(address.partition("%")[0])
    if whole.ipv4_mapped is not None:
        return str(whole.ipv4_mapped)
    return f"{IPv6Address(int(whole) >> 64 << 64)}/64"
