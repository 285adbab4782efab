"""Reads the forwarding headers of reverse proxies: client address, scheme, host and path prefix."""

import re
from collections.abc import Sequence
from functools import lru_cache, partial
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Receive, Scope, Send

from shared.settings import ROOT_PATH

# The quantifiers are possessive, so that a hostile header takes linear time: the patterns never backtrack.
_ELEMENT = re.compile(r'(?:[^,"]|"(?:\\.?|[^"\\])*+"?)++')
"""The element that one proxy added to `Forwarded` (RFC 7239)."""
_PAIR = re.compile(r'(?<!\w)(\w++)=("(?:\\.?|[^"\\])*+"?|[^;,\s]*+)')
"""A parameter of an element with its value, which may be quoted."""
_ADDRESS = re.compile(r"\[([^]]+)](?::\w+)?|([^:]+)(?::\w+)?|(.*)")
"""An address with an optional port: IPv6 in brackets, IPv4, or IPv6 without brackets and port."""


class ForwardedHeaders:
    """ASGI middleware that gives the application a request as its client sent it to a reverse proxy.

    It reads `X-Forwarded-For`, `-Proto`, `-Host` and `-Prefix`, or `Forwarded` if there is none of these, and only from
    trusted addresses. Of several values it takes the one that the last proxy added. The path of the request then begins
    with the prefix, whether or not the proxy removed it.

    Args:
        root_path: the prefix of a request for which no proxy names one.
        trusted: the networks of the proxies.
    """

    def __init__(self, app: ASGIApp, root_path: str, trusted: Sequence[IPv4Network | IPv6Network]) -> None:
        self._app = app
        self._root_path = root_path
        self._trusts = lru_cache(maxsize=1024)(partial(_is_in, networks=trusted))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            root_path = self._root_path
            client = scope.get("client")
            if client and self._trusts(client[0]):
                root_path = self._restore(scope) or root_path
            if root_path:
                _prefix(scope, root_path)
        await self._app(scope, receive, send)

    def _restore(self, scope: Scope) -> str | None:
        """Set the client's address, scheme and host in the scope; return the prefix that the proxy names, or None."""
        headers = Headers(scope=scope)
        values = {
            name: _values(headers, f"x-forwarded-{name}")
            for name in ("for", "proto", "host", "prefix")
            if f"x-forwarded-{name}" in headers
        } or _forwarded(headers)
        if not values:
            return None
        for address in map(_address, reversed(list(filter(None, values.get("for", ()))))):
            scope["client"] = (address, 0)
            if not self._trusts(address):
                break
        scheme = _last(values, "proto").lower()
        if scheme in ("http", "https"):
            scope["scheme"] = scheme
        if host := _last(values, "host"):
            scope["headers"] = list(scope["headers"])
            MutableHeaders(scope=scope)["host"] = host
        prefix = _last(values, "prefix").rstrip("/")
        return prefix if re.fullmatch(ROOT_PATH, prefix) else None


def _prefix(scope: Scope, root_path: str) -> None:
    scope["root_path"] = root_path
    path = scope["path"]
    if path != root_path and not path.startswith(f"{root_path}/"):
        scope["path"] = root_path + path


def _is_in(host: str, networks: Sequence[IPv4Network | IPv6Network]) -> bool:
    try:
        address = ip_address(host)
    except ValueError:
        return False
    if isinstance(address, IPv6Address) and address.ipv4_mapped:  # such as those of a server that listens on ::
        address = address.ipv4_mapped
    return any(address in network for network in networks)


def _values(headers: Headers, name: str) -> list[str]:
    return [value.strip() for line in headers.getlist(name) for value in line.split(",")]


def _forwarded(headers: Headers) -> dict[str, list[str]]:
    """Return the values of each parameter of `Forwarded`, one for each proxy."""
    values: dict[str, list[str]] = {}
    for element in _ELEMENT.findall(",".join(headers.getlist("forwarded"))):
        for name, value in _PAIR.findall(element):
            values.setdefault(name.lower(), []).append(re.sub(r"\\(.)", r"\1", value.strip('"')))
    return values


def _last(values: dict[str, list[str]], name: str) -> str:
    return values.get(name, [""])[-1]


def _address(value: str) -> str:
    found = _ADDRESS.fullmatch(value)
    return next(filter(None, found.groups()), value) if found else value
