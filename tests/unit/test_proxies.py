"""Which headers of a proxy are believed, and what the application sees then."""

from contextlib import suppress
from ipaddress import ip_network
from time import process_time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.datastructures import Headers
from starlette.types import Receive, Scope, Send

from services.api.proxies import ForwardedHeaders
from shared.errors import SetupError
from shared.settings import ApiSettings, get_settings

PROXY, CLIENT = "10.1.2.3", "203.0.113.7"
TRUSTED = [ip_network("10.0.0.0/8"), ip_network("::1")]


def seen(*headers: tuple[str, str], client: str = PROXY, path: str = "/v1/sessions", root_path: str = "") -> Scope:
    """The scope that the application is given of a request."""
    scopes: list[Scope] = []

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        scopes.append(scope)

    middleware = ForwardedHeaders(application, root_path, TRUSTED)
    raw = [(name.lower().encode(), value.encode("latin-1")) for name, value in (("host", "api:8000"), *headers)]
    scope: dict[str, Any] = {"type": "http", "scheme": "http", "path": path, "client": (client, 5), "headers": raw}
    with suppress(StopIteration):  # nothing in it waits
        middleware(scope, None, None).send(None)  # pyright: ignore[reportArgumentType, reportAttributeAccessIssue]
    return scopes[0]


FORWARDED = [
    ("X-Forwarded-For", CLIENT),
    ("X-Forwarded-Proto", "https"),
    ("X-Forwarded-Host", "tenor.example.com"),
    ("X-Forwarded-Prefix", "/tenor/"),
]


def shown(scope: Scope) -> tuple[str, str, str, str, str]:
    host = Headers(scope=scope)["host"]
    return scope["client"][0], scope["scheme"], host, scope.get("root_path", ""), scope["path"]


def test_headers_of_a_trusted_proxy_are_applied() -> None:
    expected = (CLIENT, "https", "tenor.example.com", "/tenor", "/tenor/v1/sessions")
    assert shown(seen(*FORWARDED)) == expected
    assert shown(seen(*FORWARDED, path="/tenor/v1/sessions")) == expected
    assert shown(seen(*FORWARDED, client="::1")) == expected
    assert shown(seen(*FORWARDED, client="::ffff:10.1.2.3")) == expected


@pytest.mark.parametrize("client", [CLIENT, "::2", "testclient", ""])
def test_headers_of_untrusted_peers_are_ignored(client: str) -> None:
    assert shown(seen(*FORWARDED, client=client)) == (client, "http", "api:8000", "", "/v1/sessions")


def test_forwarded_is_used_when_there_are_no_x_forwarded_headers() -> None:
    value = 'for="[2001:db8::7]:4711";proto=http;host=a, For=203.0.113.7;Proto=https;Host="tenor.example.com:8443"'
    assert shown(seen(("Forwarded", value)))[:3] == (CLIENT, "https", "tenor.example.com:8443")
    assert shown(seen(("Forwarded", value), FORWARDED[1]))[:3] == (PROXY, "https", "api:8000")


@pytest.mark.parametrize(
    ("value", "client"),
    [
        (f"{CLIENT}, 10.9.9.9", CLIENT),
        (f"192.0.2.1, {CLIENT}", CLIENT),
        (f"{CLIENT}:4711", CLIENT),
        ("[2001:db8::7]:4711", "2001:db8::7"),
        ("2001:db8::7", "2001:db8::7"),
        ("10.9.9.9, 10.8.8.8", "10.9.9.9"),
        ("", PROXY),
    ],
)
def test_the_client_is_the_last_address_that_is_not_a_trusted_proxy(value: str, client: str) -> None:
    assert seen(("X-Forwarded-For", value))["client"][0] == client


@pytest.mark.parametrize("prefix", ["tenor", "//evil.example", "/a/../b", "/a b", "https://evil.example", "", "/"])
def test_an_invalid_prefix_is_ignored(prefix: str) -> None:
    assert seen(("X-Forwarded-Prefix", prefix)).get("root_path", "") == ""
    assert seen(("X-Forwarded-Prefix", prefix), root_path="/tenor")["root_path"] == "/tenor"


def test_the_root_path_setting_is_the_prefix_without_a_header() -> None:
    assert shown(seen(client=CLIENT, root_path="/tenor"))[3:] == ("/tenor", "/tenor/v1/sessions")
    assert shown(seen(client=CLIENT, root_path="/tenor", path="/tenors"))[3:] == ("/tenor", "/tenor/tenors")
    assert seen(FORWARDED[3], root_path="/other")["root_path"] == "/tenor"


@given(st.lists(st.tuples(st.sampled_from([name for name, _ in FORWARDED] + ["Forwarded"]), st.text(max_size=30))))
def test_no_header_makes_a_request_fail(headers: list[tuple[str, str]]) -> None:
    encodable = [(name, value.encode("latin-1", "ignore").decode("latin-1")) for name, value in headers]
    scope = seen(*encodable)
    assert scope["scheme"] in ("http", "https")
    assert scope["path"] == scope.get("root_path", "") + "/v1/sessions"


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("API_ROOT_PATH", "tenor", "TENOR_API_ROOT_PATH: .*begins with /"),
        ("API_ROOT_PATH", "https://example.com/tenor", "TENOR_API_ROOT_PATH"),
        ("API_ROOT_PATH", "/a/../b", "TENOR_API_ROOT_PATH"),
        ("API_ROOT_PATH", "/v1", "TENOR_API_ROOT_PATH: .*not be /v1"),
        ("API_TRUSTED_PROXIES", "10.0.0.0/8, proxy", "TENOR_API_TRUSTED_PROXIES: .*'proxy'"),
        ("API_TRUSTED_PROXIES", "10.0.0.1/8", "TENOR_API_TRUSTED_PROXIES: .*host bits"),
    ],
)
def test_an_invalid_proxy_setting_is_named(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, message: str
) -> None:
    monkeypatch.setenv(f"TENOR_{name}", value)
    get_settings.cache_clear()
    with pytest.raises(SetupError, match=message):
        get_settings()
    get_settings.cache_clear()


def test_proxy_networks_are_read_from_the_environment() -> None:
    settings = ApiSettings(root_path="/tenor/", trusted_proxies="10.0.0.0/8, ::1")
    assert (settings.root_path, list(settings.proxy_networks)) == ("/tenor", TRUSTED)


@pytest.mark.parametrize("value", ['"\\' * 15_500, "a" * 31_000, '"' * 31_000, 'a="' * 10_000, "a=" * 15_500])
def test_a_hostile_forwarded_header_is_read_quickly(value: str) -> None:
    began = process_time()
    seen(("Forwarded", value))
    assert process_time() - began < 1
