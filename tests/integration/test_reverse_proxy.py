"""The API behind a reverse proxy, which gives it a path prefix: what it names leads back through the proxy."""

import logging
import re
import shutil
import socket
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urljoin

import httpx2 as httpx
import pytest
import trustme
from fastapi.testclient import TestClient
from starlette.types import ASGIApp, Receive, Scope, Send

from services.api.app import create_app
from services.embedded.servers import free_port
from shared.domain.access import KeyRole
from shared.settings import Settings
from tests.audio_clips import tone, wav
from tests.conftest import wait_for
from tests.integration.conftest import MakeKey, serving
from tests.integration.test_api import problem

NGINX_CONF = Path(__file__).parents[2] / "docker" / "nginx.conf"
"""The example of the documentation."""


def assert_all_addresses_lead_back(client: httpx.Client, prefix: str) -> None:
    """Follow what the API names, from the outside: `client` knows the host alone."""
    sessions = f"{prefix}/v1/sessions"
    created = client.post(sessions, json={}, headers={"Idempotency-Key": "one"})
    again = client.post(sessions, json={}, headers={"Idempotency-Key": "one"})
    session = created.headers["Location"]
    assert session == again.headers["Location"] == f"{sessions}/{created.json()['id']}"
    assert client.get(session).json() == created.json()
    turn = client.post(f"{session}/turns", json={"text": "hello"}).headers["Location"]
    assert turn.startswith(f"{prefix}/v1/turns/")
    assert client.get(turn, params={"wait": 0.1}).json()["status"] == "queued"
    sound = {"audio": ("a.wav", wav(tone(60)), "audio/wav")}
    recording = client.post(f"{session}/recordings", files=sound).headers["Location"]
    assert client.get(recording).json()["status"] == "queued"

    document = client.get(f"{prefix}/openapi.json").json()
    assert document["servers"] == [{"url": prefix}]
    for page in ("docs", "redoc"):
        text = client.get(f"{prefix}/{page}").text
        sources = re.findall(r'(?:src|href)="([^"]+)"', text)
        assert sources
        assert {client.get(source).status_code for source in sources} == {200}
        assert f"{prefix}/openapi.json" in text

    moved = client.get(f"{session}/", follow_redirects=False)
    assert moved.headers["Location"] == urljoin(str(client.base_url), session)


def proxied(app: ASGIApp, *, removes_prefix: bool, names_prefix: bool) -> ASGIApp:
    """An application as a proxy shows it at https://tenor.example.com/tenor/."""
    forwarded = {b"x-forwarded-proto": b"https", b"x-forwarded-host": b"tenor.example.com"}
    forwarded |= {b"x-forwarded-prefix": b"/tenor"} if names_prefix else {}

    async def proxy(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            path = scope["path"]
            assert path.startswith("/tenor/"), f"{path} does not lead to Tenor"
            headers = [header for header in scope["headers"] if header[0] != b"host"]
            scope["headers"] = [*headers, (b"host", b"api:8000"), *forwarded.items()]
            scope["scheme"] = "http"
            scope["path"] = path.removeprefix("/tenor") if removes_prefix else path
        await app(scope, receive, send)

    return proxy


@pytest.mark.parametrize("removes_prefix", [True, False])
@pytest.mark.parametrize("names_prefix", [True, False])
def test_every_address_has_the_prefix(
    settings: Settings, make_key: MakeKey, removes_prefix: bool, names_prefix: bool
) -> None:
    own = settings if names_prefix else settings.updated(api={"root_path": "/tenor"})
    app = proxied(create_app(own), removes_prefix=removes_prefix, names_prefix=names_prefix)
    headers = {"Authorization": f"Bearer {make_key('acme', KeyRole.admin)}"}
    with TestClient(app, "https://tenor.example.com", client=("127.0.0.1", 1), headers=headers) as client:
        assert_all_addresses_lead_back(client, "/tenor")


def test_probes_below_the_prefix_are_not_logged_either(settings: Settings, caplog: pytest.LogCaptureFixture) -> None:
    app = proxied(create_app(settings), removes_prefix=False, names_prefix=True)
    caplog.set_level(logging.INFO, "services.api.middleware")
    with TestClient(app, "https://tenor.example.com", client=("127.0.0.1", 1)) as client:
        assert client.get("/tenor/healthz").status_code == 200
        assert client.get("/tenor/v1/nothing").status_code == 404
    assert "unmatched" in caplog.text
    assert "/healthz" not in caplog.text


def test_who_is_no_proxy_changes_no_address(settings: Settings, make_key: MakeKey) -> None:
    headers = {"Authorization": f"Bearer {make_key('acme', KeyRole.admin)}", "X-Forwarded-Prefix": "/evil"}
    with TestClient(create_app(settings), client=("203.0.113.7", 1), headers=headers) as client:
        assert client.post("/v1/sessions", json={}).headers["Location"].startswith("/v1/sessions/")
        assert "servers" not in client.get("/openapi.json").json()


def test_the_server_leaves_the_headers_of_proxies_to_the_application(settings: Settings, make_key: MakeKey) -> None:
    """Uvicorn would put the client's address in the place of the proxy's, and nobody would be trusted any more."""
    forwarded = {"X-Forwarded-For": "203.0.113.7", "X-Forwarded-Prefix": "/tenor"}
    headers = forwarded | {"Authorization": f"Bearer {make_key('acme', KeyRole.admin)}"}
    with serving(settings) as (url, _):
        created = httpx.post(f"{url}/v1/sessions", json={}, headers=headers, trust_env=False)
    assert created.headers["Location"].startswith("/tenor/v1/sessions/")


@contextmanager
def nginx(folder: Path, api: str, *, removes_prefix: bool) -> Iterator[httpx.Client]:
    """nginx with the example's configuration, but for addresses, before an API; a client that trusts it."""
    authority, port, plain_port = trustme.CA(), free_port(), free_port()
    (folder / "tls").mkdir(parents=True)
    certificate = authority.issue_cert("localhost")
    certificate.cert_chain_pems[0].write_to_path(folder / "tls" / "tenor.pem")
    certificate.private_key_pem.write_to_path(folder / "tls" / "tenor.key")
    example = NGINX_CONF.read_text()
    changes = {
        "server 127.0.0.1:8000;": f"server {api.removeprefix('http://')};",
        "listen 80;": f"listen 127.0.0.1:{plain_port};",
        "listen 443 ssl;": f"listen 127.0.0.1:{port} ssl;",
        "/etc/nginx/tls/": f"{folder}/tls/",
    }
    if removes_prefix:
        changes["proxy_pass http://tenor;"] = "proxy_pass http://tenor/;"
    for old, new in changes.items():
        assert old in example
        example = example.replace(old, new)
    paths = "".join(
        f"{kind}_temp_path {folder}/{kind}; " for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    whole = f"daemon off; master_process off; pid {folder}/pid; error_log stderr; events {{}}\n"
    (folder / "nginx.conf").write_text(f"{whole}http {{ access_log off; {paths}\n{example} }}")
    process = subprocess.Popen(["nginx", "-p", str(folder), "-c", str(folder / "nginx.conf"), "-e", "stderr"])
    try:
        wait_for(lambda: process.poll() is not None or listens(plain_port))
        assert process.poll() is None
        context = ssl.create_default_context()
        authority.configure_trust(context)
        base_url = f"https://localhost:{port}"
        with httpx.Client(base_url=base_url, verify=context, trust_env=False, timeout=30) as client:
            moved = httpx.get(f"http://127.0.0.1:{plain_port}/tenor/healthz", trust_env=False)
            assert moved.headers["Location"] == "https://127.0.0.1/tenor/healthz", "to the port of HTTPS"
            yield client
    finally:
        process.terminate()
        process.wait()


def test_the_documentation_shows_the_example_for_nginx() -> None:
    assert NGINX_CONF.read_text() in (NGINX_CONF.parents[1] / "docs" / "deployment.md").read_text()


def listens(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port)):
        return True
    return False


@pytest.mark.skipif(shutil.which("nginx") is None, reason="nginx is not installed")
def test_the_example_for_nginx_works(settings: Settings, make_key: MakeKey, tmp_path: Path) -> None:
    headers = {"Authorization": f"Bearer {make_key('acme', KeyRole.admin)}"}
    with serving(settings, api_max_body_bytes=str(2 * 2**20)) as (api, _):
        for removes_prefix in (False, True):
            with nginx(tmp_path / str(removes_prefix), api, removes_prefix=removes_prefix) as client:
                client.headers |= headers | {"X-Forwarded-Prefix": "/evil", "Forwarded": "host=evil.example"}
                assert_all_addresses_lead_back(client, "/tenor")
                large = {"audio": ("a.wav", bytes(3 * 2**20), "audio/wav")}
                session = client.post("/tenor/v1/sessions", json={}).headers["Location"]
                assert problem(client.post(f"{session}/turns", files=large)) == (413, "body_too_large")
                assert not [path for path in (tmp_path / str(removes_prefix)).rglob("*/0*") if path.is_file()]
