"""The addresses that the API can listen on, and their URLs."""

import errno
import socket
from collections.abc import Iterator

import pytest

from services.listen_address import check_listenable, is_unspecified, local_url
from shared.errors import SetupError


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:8000"),
        ("localhost", "http://localhost:8000"),
        ("0.0.0.0", "http://127.0.0.1:8000"),
        ("::1", "http://[::1]:8000"),
        ("::", "http://[::1]:8000"),
        ("0:0:0:0:0:0:0:0", "http://[::1]:8000"),
        ("fe80::1%eth0", "http://[fe80::1%25eth0]:8000"),
    ],
)
def test_the_url_is_that_of_the_listening_address(host: str, url: str) -> None:
    assert local_url(host, 8000) == url


@pytest.mark.parametrize(("host", "every"), [("0.0.0.0", True), ("::", True), ("::1", False), ("localhost", False)])
def test_only_the_unspecified_address_stands_for_all(host: str, every: bool) -> None:
    assert is_unspecified(host) is every


@pytest.fixture(params=["127.0.0.1", "::1"])
def listener(request: pytest.FixtureRequest) -> Iterator[tuple[str, int]]:
    """The address of a socket that is listening."""
    host = request.param
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as taken:
        try:
            taken.bind((host, 0))
        except OSError:
            pytest.skip("this machine has no IPv6")
        taken.listen()
        yield host, taken.getsockname()[1]


def test_a_free_port_is_accepted_and_a_used_one_is_not(listener: tuple[str, int], unused_port: int) -> None:
    host, port = listener
    check_listenable(host, unused_port)
    with pytest.raises(SetupError, match="another --port"):
        check_listenable(host, port)


@pytest.fixture
def unused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]


@pytest.mark.parametrize(
    ("host", "reason"),
    [
        ("192.0.2.1", "192.0.2.1 is not an address of this machine"),
        ("nonesuch.invalid", "the name 'nonesuch.invalid' does not resolve"),
        ("x" * 64 + ".invalid", "does not resolve"),
    ],
)
def test_an_unusable_host_is_refused_with_the_reason(host: str, reason: str, unused_port: int) -> None:
    with pytest.raises(SetupError, match=reason) as caught:
        check_listenable(host, unused_port)
    assert "--host" in caught.value.detail
    assert "\n" not in caught.value.detail


def test_an_address_family_that_the_machine_lacks_is_skipped_if_the_name_has_another_address(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class WithoutIpv6(socket.socket):
        def __init__(self, family: int, *arguments: int) -> None:
            if family == socket.AF_INET6:
                raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")
            super().__init__(family, *arguments)

    resolved = socket.getaddrinfo("127.0.0.1", 0, type=socket.SOCK_STREAM)
    lacking = (socket.AF_INET6, socket.SOCK_STREAM, 0, "", ("::1", 0, 0, 0))
    monkeypatch.setattr(socket, "socket", WithoutIpv6)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [lacking, *resolved])
    check_listenable("localhost", 0)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [lacking])
    with pytest.raises(SetupError, match="lacks the address family of localhost"):
        check_listenable("localhost", 0)
