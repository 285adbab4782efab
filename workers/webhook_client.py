"""Posts events to webhooks: signed as Standard Webhooks specifies, and only to addresses on the public internet."""

import asyncio
import base64
import socket
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from ipaddress import ip_address, ip_network
from ssl import SSLContext
from types import TracebackType
from typing import Self, cast

import httpcore2 as httpcore
import httpx2 as httpx
from standardwebhooks.webhooks import Webhook

from shared.domain.webhook import Delivery
from shared.errors import ResolverBusy, Unavailable, WebhookForbidden
from shared.settings import Settings

# Site-local addresses, and those that embed an IPv4 address (6to4): Python counts them as global.
_NOT_GLOBAL = tuple(map(ip_network, ("fec0::/10", "2002::/16")))
_RESOLVER_THREADS = 64
_CONNECT_S = 3.0
"""Longest time to connect to one of several addresses before the next one is tried."""
_KEEPALIVE_S = 2.0
"""Shorter than common servers keep an idle connection open, so that few requests use one that was just closed."""
_BODY_BYTES, _BODY_S = 4096, 0.5
"""How much of a response's body is read and dropped, and for how long, so that its connection can be reused."""
_ERRORS = (httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException, TimeoutError)


class WebhookClient:
    """Posts events from one event loop. Connections are kept open for the next event to the same host.

    The pool keys connections by scheme, host name and port, and never by address. So two names with one address share
    no connection, and each certificate is verified for its own name. Because tenants choose the URLs, neither the
    proxies nor the passwords of this machine are used, and no redirect is followed.
    """

    def __init__(self, settings: Settings, tls: SSLContext) -> None:
        self._allow_private = settings.webhooks.allow_private
        self._timeout_s = settings.webhooks.timeout_s
        self._network = PublicNetwork(private=self._allow_private)
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=tls,
            # The caller limits the number of requests in flight.
            max_connections=None,
            max_keepalive_connections=settings.webhooks.in_flight,
            keepalive_expiry=_KEEPALIVE_S,
            network_backend=self._network,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._pool.aclose()
        self._network.close()

    async def post(self, delivery: Delivery) -> int:
        """Post an event, and return the status of the response.

        Raises:
            WebhookForbidden: the URL is not https, or its host has an address that is not on the public internet.
            Unavailable: the host name was not resolved, or there was no response in time.
        """
        url, body = httpx.URL(delivery.url), delivery.event.model_dump_json().encode()
        if not self._allow_private and url.scheme != "https":
            raise WebhookForbidden("the URL does not begin with https://")
        target = httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path)
        status = None
        try:
            async with asyncio.timeout(self._timeout_s) as deadline:
                async with self._pool.stream(
                    "POST", target, headers=_headers(url, delivery, body), content=body
                ) as response:
                    status = response.status
                    deadline.reschedule(asyncio.get_running_loop().time() + _BODY_S)
                    await _drop_body(response)
        except _ERRORS as error:
            if status is None:
                raise Unavailable(f"the receiver could not be reached ({type(error).__name__})") from error
        return status


class PublicNetwork(httpcore.AsyncNetworkBackend):
    """Connects to hosts whose addresses are all on the public internet.

    It connects to the addresses that it checked, so a second look-up cannot lead to another address.

    Args:
        private: whether any address is allowed.
    """

    def __init__(self, *, private: bool) -> None:
        self._allow_private = private
        self._resolver = Resolver()
        self._network = cast("httpcore.AsyncNetworkBackend", httpcore.AnyIOBackend())

    def close(self) -> None:
        self._resolver.close()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Raises WebhookForbidden, Unavailable where the name was not resolved, or httpcore's errors."""
        *others, last = await self.addresses(host, port)
        for address in others:
            try:
                return await self._network.connect_tcp(address, port, _CONNECT_S, local_address, socket_options)
            except (httpcore.NetworkError, httpcore.TimeoutException):
                continue
        return await self._network.connect_tcp(last, port, timeout, local_address, socket_options)

    async def addresses(self, host: str, port: int) -> list[str]:
        """The addresses of a host, at least one.

        Raises:
            WebhookForbidden: one of them is not on the public internet.
            Unavailable: the name was not resolved.
        """
        addresses = await self._resolver.resolve(host, port)
        if not self._allow_private and not all(map(_is_public, addresses)):
            raise WebhookForbidden("the receiver is not on the public internet")
        return addresses


class Resolver:
    """Looks up host names on threads of its own.

    The system's resolver can take half a minute for one name, and cannot be interrupted. So a caller may stop waiting
    at any time, and there is never more than one look-up of the same name: a name that hangs occupies one thread.
    """

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(_RESOLVER_THREADS, thread_name_prefix="resolver")
        self._pending: dict[tuple[str, int], asyncio.Future[list[str]]] = {}

    def close(self) -> None:
        """End the threads, without a wait for those that hang."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def resolve(self, host: str, port: int) -> list[str]:
        """Return the addresses of a host.

        Raises:
            ResolverBusy: every thread looks up another name. That says nothing about this one.
            Unavailable: the name has no address.
        """
        lookup = self._pending.get((host, port))
        if lookup is None:
            if len(self._pending) >= _RESOLVER_THREADS:
                raise ResolverBusy(f"the receiver's name was not looked up: {_RESOLVER_THREADS} other look-ups hang")
            lookup = asyncio.get_running_loop().run_in_executor(self._threads, _look_up, host, port)
            self._pending[host, port] = lookup
            lookup.add_done_callback(lambda ended: self._remove(host, port, ended))
        try:
            return await asyncio.shield(lookup)
        except (OSError, UnicodeError) as error:
            raise Unavailable("the receiver's name could not be resolved") from error

    def _remove(self, host: str, port: int, ended: "asyncio.Future[list[str]]") -> None:
        del self._pending[host, port]
        if not ended.cancelled():
            ended.exception()  # Without this, asyncio logs an exception that no caller waits for any more.


def _look_up(host: str, port: int) -> list[str]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(address[0]) for *_, address in found]


async def _drop_body(response: httpcore.Response) -> None:
    """Read a short body to its end. The connection of a longer one is closed, not read to its end."""
    size = 0
    async for part in response.aiter_stream():
        size += len(part)
        if size > _BODY_BYTES:
            break


def _headers(url: httpx.URL, delivery: Delivery, body: bytes) -> list[tuple[str, str]]:
    now, name = datetime.now(UTC), str(delivery.id)
    headers = {
        "Host": url.netloc.decode(),
        "Content-Type": "application/json",
        "User-Agent": "Tenor",
        "webhook-id": name,
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": Webhook(delivery.secret).sign(name, now, body.decode()),
    }
    if url.userinfo:
        login = base64.b64encode(f"{url.username}:{url.password}".encode()).decode()
        headers["Authorization"] = f"Basic {login}"
    return list(headers.items())


def _is_public(address: str) -> bool:
    parsed = ip_address(address)
    excluded = parsed.is_multicast or parsed.is_reserved or any(parsed in network for network in _NOT_GLOBAL)
    return parsed.is_global and not excluded
