"""The address that the API listens on: checks that it is free, and returns its URL."""

import contextlib
import errno
import ipaddress
import socket

from shared.errors import SetupError

_LOOPBACK = {"0.0.0.0": "127.0.0.1", "::": "::1"}


def check_listenable(host: str, port: int) -> None:
    """Check that this machine can listen on a port of every address of a host.

    Raises:
        SetupError: the name does not resolve, an address is not one of this machine, or the port is in use or reserved.
    """
    listens = False
    for family, kind, protocol, _, address in _resolve(host, port):
        try:
            with socket.socket(family, kind, protocol) as trial:
                trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    trial.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                trial.bind(address)
            listens = True
        except OSError as error:
            # The event loop also skips an address family that the kernel lacks.
            if error.errno != errno.EAFNOSUPPORT:
                raise SetupError(f"cannot listen on {_netloc(host, port)}: {_reason(error, host, port)}") from None
    if not listens:
        raise SetupError(f"cannot listen on {_netloc(host, port)}: this machine lacks the address family of {host}")


def local_url(host: str, port: int) -> str:
    """Return the URL at which this machine reaches a server that listens on `host`.

    For the unspecified address, which stands for all addresses of the machine, it is that of the loopback address.
    """
    with contextlib.suppress(ValueError):  # a host name
        host = str(ipaddress.ip_address(host))
    return f"http://{_netloc(_LOOPBACK.get(host, host), port)}"


def is_unspecified(host: str) -> bool:
    """Return whether `host` stands for all addresses of this machine."""
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False


def _resolve(host: str, port: int) -> "list[tuple[int, int, int, str, tuple[str | int, ...]]]":
    try:
        # The same call as in the event loop.
        return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)  # pyright: ignore[reportReturnType]
    except (socket.gaierror, UnicodeError):
        raise SetupError(
            f"cannot listen on {_netloc(host, port)}: the name {host!r} does not resolve: choose another --host"
        ) from None


def _reason(error: OSError, host: str, port: int) -> str:
    if error.errno == errno.EADDRINUSE:
        return "another process listens there: stop it, or choose another --port"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"{host} is not an address of this machine: choose another --host"
    if error.errno == errno.EACCES and port < 1024:
        return "this user may not listen on a port below 1024: choose another --port"
    return f"{error.strerror}: choose another --host or --port"


def _netloc(host: str, port: int) -> str:
    return f"[{host.replace('%', '%25')}]:{port}" if ":" in host else f"{host}:{port}"
