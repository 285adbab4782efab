"""A server process whose limits are small, and clients that do their worst, over raw sockets."""

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from uuid import UUID

import httpx2 as httpx
import psutil
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from services.embedded.servers import EmbeddedServers, free_port
from shared.domain.access import KeyRole
from shared.store.database import Database
from tests.conftest import PATIENCE, fresh_settings, wait_for

MAX_HEADER_BYTES = 4096
TIMEOUT_S = 0.5
"""Of the headers, the pauses in a body, the answer, and idle connections."""
MIN_BODY_RATE = 10_000
MAX_CONNECTIONS = 24
MAX_CONNECTIONS_PER_CLIENT = 12
MAX_UPLOAD_BYTES = 100_000
SECRET = "s3cret-header-value"
GET = b"GET /healthz HTTP/1.1\r\nhost: tenor\r\n"
HTTP = httpx.Client(timeout=60, verify=False, trust_env=False, headers={"Connection": "close"})
"""An ordinary client."""


@dataclass(frozen=True)
class Server:
    port: int
    metrics_port: int
    process: "subprocess.Popen[bytes]"
    log: Path
    key: str
    other_key: str
    """Of another tenant."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}"}

    @property
    def memory(self) -> int:
        """Bytes of its resident memory."""
        return psutil.Process(self.process.pid).memory_info().rss

    def refused(self, reason: str) -> float:
        """What the metric counts."""
        told = HTTP.get(f"http://127.0.0.1:{self.metrics_port}/metrics").text
        found = re.search(rf'^tenor_http_refused_total{{reason="{reason}"}} (\S+)', told, re.MULTILINE)
        return float(found[1]) if found else 0.0

    def post(self, path: str, headers: str, key: str | None = None) -> bytes:
        """The head of a POST, by default with a valid key."""
        return (
            f"POST {path} HTTP/1.1\r\nhost: tenor\r\nauthorization: Bearer {key or self.key}\r\n{headers}\r\n\r\n"
        ).encode()

    @contextlib.contextmanager
    def stays_responsive(self) -> Iterator[None]:
        """Asks for its health all the while, and fails if an answer takes over a second."""
        done, longest = threading.Event(), [0.0]

        def ask() -> None:
            while not done.is_set():
                started = time.monotonic()
                with contextlib.suppress(httpx.RemoteProtocolError):  # closed before its request, as an idle one
                    HTTP.get(f"{self.url}/healthz").raise_for_status()
                longest.append(time.monotonic() - started)
                done.wait(0.02)

        prober = threading.Thread(target=ask)
        prober.start()
        try:
            yield
        finally:
            done.set()
            prober.join()
        assert max(longest) < PATIENCE
        assert len(longest) > 1


class Client:
    """One raw connection. Sending into a connection that the server closed is no error."""

    def __init__(self, server: Server, source: str = "127.0.0.1", receive_buffer: int | None = None) -> None:
        self.socket = socket.socket()
        if receive_buffer is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(10 * PATIENCE)
        self.socket.bind((source, 0))
        self.socket.connect(("127.0.0.1", server.port))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> bool:
        """Whether the connection was still open."""
        try:
            self.socket.sendall(data)
        except OSError:
            return False
        return True

    def read_to_end(self) -> bytes:
        """What the server sends until it closes the connection. Raises TimeoutError if it does not."""
        received = b""
        with contextlib.suppress(ConnectionError):
            while data := self.socket.recv(65536):
                received += data
        return received

    def read_answer(self) -> httpx.Response:
        """One answer with a declared length."""
        received = b""
        while b"\r\n\r\n" not in received:
            received += self._receive()
        head, _, body = received.partition(b"\r\n\r\n")
        answer = parse(head + b"\r\n\r\n")
        while len(body) < int(answer.headers.get("content-length", 0)):
            body += self._receive()
        return parse(head + b"\r\n\r\n" + body)

    def _receive(self) -> bytes:
        data = self.socket.recv(65536)
        assert data, "closed without an answer"
        return data


def parse(answer: bytes) -> httpx.Response:
    head, _, body = answer.partition(b"\r\n\r\n")
    status, *headers = head.decode().split("\r\n")
    pairs = [tuple(line.split(": ", 1)) for line in headers]
    return httpx.Response(int(status.split()[1]), headers=pairs, content=body)  # type: ignore[arg-type]


def problem(answer: bytes | httpx.Response) -> tuple[int, str]:
    """Status and code of a problem document."""
    response = parse(answer) if isinstance(answer, bytes) else answer
    assert response.headers["content-type"] == "application/problem+json"
    return response.status_code, response.json()["code"]


@pytest.fixture(scope="module")
def server(
    servers: EmbeddedServers, template_database: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("limits")
    settings = fresh_settings(servers, template_database, folder / "data")
    database = Database(settings.database.url, pool_size=1)
    with database.transaction() as transaction:
        key, other_key = (
            transaction.accounts.create_key(transaction.accounts.ensure_tenant(tenant), "test", KeyRole.admin)
            for tenant in ("acme", "globex")
        )
    database.close()
    limits: dict[str, Any] = {
        "API_MAX_HEADER_BYTES": MAX_HEADER_BYTES,
        "API_HEADER_TIMEOUT_S": TIMEOUT_S,
        "API_BODY_TIMEOUT_S": TIMEOUT_S,
        "API_MIN_BODY_RATE": MIN_BODY_RATE,
        "API_SEND_TIMEOUT_S": TIMEOUT_S,
        "API_KEEP_ALIVE_S": TIMEOUT_S,
        "API_MAX_CONNECTIONS": MAX_CONNECTIONS,
        "API_MAX_CONNECTIONS_PER_CLIENT": MAX_CONNECTIONS_PER_CLIENT,
        "API_MAX_UPLOAD_BYTES": MAX_UPLOAD_BYTES,
        "DATABASE_URL": settings.database.url.get_secret_value(),
        "BROKER_URL": settings.broker.url.get_secret_value(),
        "DATA_DIR": settings.data_dir,
        "OBSERVABILITY_METRICS_PORT": free_port(),
    }
    port, log = free_port(), folder / "log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "services.cli", "serve", "--port", str(port)],
            env=os.environ | {f"TENOR_{name}": str(value) for name, value in limits.items()},
            stderr=file,
        )
    server = Server(port, limits["OBSERVABILITY_METRICS_PORT"], process, log, key, other_key)

    def answers() -> bool:
        assert process.poll() is None, log.read_text()
        try:
            return HTTP.get(f"{server.url}/readyz").is_success
        except httpx.TransportError:
            return False

    try:
        wait_for(answers, 60)
        yield server
    finally:
        process.terminate()
        process.wait(60)


@pytest.fixture
def turns(server: Server) -> str:
    """The path of a new session's turns."""
    answer = HTTP.post(f"{server.url}/v1/sessions", json={}, headers=server.headers).raise_for_status()
    return f"{answer.headers['Location']}/turns"


# headers


@pytest.mark.parametrize(
    "head",
    [
        GET + b"x: " + b"a" * MAX_HEADER_BYTES + b"\r\n\r\n",
        GET + b"".join(b"h%d: a\r\n" % number for number in range(MAX_HEADER_BYTES // 32)) + b"\r\n",
        b"GET /" + b"a" * MAX_HEADER_BYTES + b" HTTP/1.1\r\n\r\n",
        GET + b"a" * 3 * MAX_HEADER_BYTES,
        b"\r\n" * 3 * MAX_HEADER_BYTES,
    ],
    ids=["long", "many", "url", "unfinished", "line breaks"],
)
def test_large_headers_are_refused(server: Server, head: bytes) -> None:
    with Client(server) as client:
        client.send(head)
        assert problem(client.read_to_end()) == (431, "headers_too_large")


def test_headers_below_the_limit_are_taken_on_every_request_of_a_connection(server: Server) -> None:
    with Client(server) as client:
        for _ in range(3):
            for part in (GET, b"x: ", *[b"a" * 100] * (MAX_HEADER_BYTES // 200), b"\r\n\r\n"):
                client.send(part)
            assert client.read_answer().status_code == 200


def test_endless_headers_take_neither_memory_nor_time(server: Server) -> None:
    before = server.memory
    with server.stays_responsive(), contextlib.ExitStack() as stack:
        clients = [stack.enter_context(Client(server)) for _ in range(8)]
        for client in clients:
            client.send(GET + b"x-secret: " + SECRET.encode())
        for _ in range(64):
            for client in clients:
                client.send(b"a" * 2**17)
        assert server.memory - before < 40 * 2**20  # of 64 MiB


@pytest.mark.parametrize("rest", [b"", b"x", b"x: y\r\n"])
def test_headers_must_be_complete_within_the_timeout(server: Server, rest: bytes) -> None:
    with Client(server) as client:
        client.send(GET + rest)
        assert problem(client.read_to_end()) == (408, "request_timeout")


def test_slowly_sent_header_bytes_do_not_extend_the_header_timeout(server: Server) -> None:
    with Client(server) as client:
        client.send(GET)
        started = time.monotonic()
        while client.send(b"x: y\r\n"):
            assert time.monotonic() - started < 10 * TIMEOUT_S * PATIENCE
            time.sleep(0.05)


@pytest.mark.parametrize("sent", [b"", GET + b"\r\n", b"\r\n"], ids=["nothing", "one request", "a line break"])
def test_idle_connections_are_closed(server: Server, sent: bytes) -> None:
    with Client(server) as client:
        client.send(sent)
        assert b"HTTP/1.1 4" not in client.read_to_end() or sent == b"\r\n"


# bodies


UNKNOWN = f"/v1/sessions/{UUID(int=1)}"
POSTS = ["/v1/sessions", "/v1/webhooks", f"{UNKNOWN}/turns", f"{UNKNOWN}/recordings"]


@pytest.mark.parametrize("path", POSTS)
@pytest.mark.parametrize("media_type", ["application/json", "multipart/form-data; boundary=x"])
@pytest.mark.parametrize("extra", ["x: y", "expect: 100-continue", "idempotency-key: retried"])
def test_a_wrong_key_is_refused_before_the_body_is_read(server: Server, path: str, media_type: str, extra: str) -> None:
    with Client(server) as client:
        client.send(server.post(path, f"content-type: {media_type}\r\ncontent-length: 9999\r\n{extra}", key="tnr_no"))
        assert problem(client.read_answer()) == (401, "unauthenticated")


def test_100_continue_is_sent_only_after_the_key_is_checked(server: Server) -> None:
    with Client(server) as client:
        head = "content-type: application/json\r\ncontent-length: 2\r\nexpect: 100-continue"
        client.send(server.post("/v1/sessions", head))
        assert client.read_answer().status_code == 100
        client.send(b"{}")
        assert client.read_answer().status_code == 201


def test_reading_a_refused_body_stops_after_a_limit(server: Server) -> None:
    with Client(server) as client, server.stays_responsive():
        client.send(server.post("/v1/sessions", "content-length: 1000000", key="tnr_no"))
        assert problem(client.read_answer()) == (401, "unauthenticated")
        started = time.monotonic()
        while client.send(b"a" * 10):
            assert time.monotonic() - started < 10 * PATIENCE
            time.sleep(0.05)


def test_a_connection_goes_on_after_a_refused_body_that_was_sent(server: Server) -> None:
    with Client(server) as client:
        for following in (GET + b"\r\n", b""):
            client.send(server.post("/v1/sessions", "content-length: 10", key="tnr_no"))
            assert client.read_answer().status_code == 401
            client.send(b"0123456789" + following)
            if following:
                assert client.read_answer().status_code == 200
        assert client.read_to_end() == b""  # and then it is idle


@pytest.mark.parametrize(
    ("framing", "part"),
    [("content-length: 50000", b"--x\r\n"), ("transfer-encoding: chunked", b"5\r\n--x\r\n\r\n")],
    ids=["length", "chunked"],
)
def test_a_body_that_stalls_is_refused(server: Server, turns: str, framing: str, part: bytes) -> None:
    with Client(server) as client, server.stays_responsive():
        client.send(server.post(turns, f"content-type: multipart/form-data; boundary=x\r\n{framing}") + part)
        assert problem(client.read_to_end()) == (408, "request_timeout")


def test_a_body_sent_too_slowly_is_refused(server: Server, turns: str) -> None:
    with Client(server) as client:
        client.send(server.post(turns, "content-type: multipart/form-data; boundary=x\r\ncontent-length: 50000"))
        started = time.monotonic()
        while client.send(b"a"):
            assert time.monotonic() - started < 10 * TIMEOUT_S * PATIENCE
            time.sleep(0.05)


def test_a_body_that_comes_steadily_may_take_longer_than_the_timeout(server: Server) -> None:
    body = json.dumps({"external_ref": "x"}) + " " * 40_000
    with Client(server) as client:
        client.send(server.post("/v1/sessions", f"content-type: application/json\r\ncontent-length: {len(body)}"))
        for start in range(0, len(body), 2000):
            client.send(body[start : start + 2000].encode())
            time.sleep(0.06)
        assert client.read_answer().status_code == 201


@pytest.mark.parametrize(
    "body",
    [b"5;" + b"a" * 3 * MAX_HEADER_BYTES, b"0\r\n" + b"x: y\r\n" * MAX_HEADER_BYTES, b"0\r\nx: " + b"a" * 20_000],
    ids=["chunk extension", "many trailers", "long trailer"],
)
def test_chunk_extensions_and_trailers_count_as_headers(server: Server, turns: str, body: bytes) -> None:
    with Client(server) as client:
        head = "content-type: multipart/form-data; boundary=x\r\ntransfer-encoding: chunked"
        client.send(server.post(turns, head) + body)
        assert problem(client.read_to_end()) == (431, "headers_too_large")


def test_trailers_are_not_taken_for_headers(server: Server) -> None:
    with Client(server) as client:
        head = b"POST /v1/sessions HTTP/1.1\r\nhost: tenor\r\ntransfer-encoding: chunked\r\n\r\n"
        client.send(head + b"2\r\n{}\r\n0\r\nauthorization: Bearer " + server.key.encode() + b"\r\n\r\n")
        assert problem(client.read_answer()) == (401, "unauthenticated")


def test_uploads_beyond_the_limit_of_all_together_are_refused(server: Server, turns: str) -> None:
    form = "content-type: multipart/form-data; boundary=x\r\nexpect: 100-continue\r\n"
    half = f"{form}content-length: {MAX_UPLOAD_BYTES // 2 + 1}"

    def begin(headers: str, key: str | None = None) -> tuple[Client, httpx.Response]:
        client = Client(server)
        client.send(server.post(turns, headers, key))
        return client, client.read_answer()

    first, answer = begin(half)
    with first:
        assert answer.status_code == 100
        second, answer = begin(half)
        second.socket.close()
        assert problem(answer) == (503, "busy")
        assert int(answer.headers["retry-after"]) > 0
        chunked, answer = begin(f"{form}transfer-encoding: chunked")
        with chunked:
            assert answer.status_code == 100
            part = b"%x\r\n" % MAX_UPLOAD_BYTES + b"a" * MAX_UPLOAD_BYTES
            chunked.send(part)
            assert problem(chunked.read_answer()) == (503, "busy")
    # What is given up makes room, and whoever has no key takes none.
    begin(f"{form}content-length: {MAX_UPLOAD_BYTES}", key="tnr_no")[0].socket.close()

    def takes_another() -> bool:
        client, answer = begin(half)
        client.socket.close()
        return answer.status_code == 100

    wait_for(takes_another)
    assert server.refused("uploads") >= 2


def test_one_tenant_s_uploads_keep_out_neither_another_tenant_s_nor_json(server: Server, turns: str) -> None:
    headers = {"Authorization": f"Bearer {server.other_key}"}
    session = HTTP.post(f"{server.url}/v1/sessions", json={}, headers=headers).raise_for_status().headers["Location"]

    with contextlib.ExitStack() as stack:

        def begin(path: str, key: str, size: int) -> httpx.Response:
            client = stack.enter_context(Client(server))
            form = "content-type: multipart/form-data; boundary=x\r\nexpect: 100-continue\r\n"
            client.send(server.post(path, f"{form}content-length: {size}", key))
            return client.read_answer()

        def takes_half(path: str, key: str) -> bool:
            return begin(path, key, MAX_UPLOAD_BYTES // 2).status_code == 100

        wait_for(lambda: takes_half(turns, server.key))  # others may be under way still
        assert problem(begin(turns, server.key, 1)) == (503, "busy")
        assert takes_half(f"{session}/turns", server.other_key)
        assert problem(begin(f"{session}/turns", server.other_key, 1)) == (503, "busy")
        answer = HTTP.post(f"{server.url}{turns}", json={"text": "hello"}, headers=server.headers)
        assert answer.status_code == 202


def test_one_upload_may_exceed_the_limit_of_all_together(server: Server, turns: str) -> None:
    sound = {"audio": ("a.wav", b"a" * 2 * MAX_UPLOAD_BYTES, "audio/wav")}

    def answer() -> str:
        return HTTP.post(f"{server.url}{turns}", files=sound, headers=server.headers).json()["code"]

    wait_for(lambda: answer() == "audio_undecodable")  # others may be under way still


# connections


@pytest.mark.parametrize("sent", [b"", GET + b"x", GET + b"\r\n"], ids=["nothing", "half a head", "a request"])
def test_idle_connections_are_closed_in_favour_of_new_ones(server: Server, sent: bytes) -> None:
    with server.stays_responsive(), contextlib.ExitStack() as stack:
        for _ in range(10 * MAX_CONNECTIONS):
            stack.enter_context(Client(server)).send(sent)
        assert psutil.Process(server.process.pid).num_fds() < 200


def test_a_client_with_too_many_busy_connections_is_refused_and_others_are_not(server: Server, turns: str) -> None:
    turn = HTTP.post(f"{server.url}{turns}", json={"text": "hello"}, headers=server.headers).headers["Location"]
    poll = f"GET {turn}?wait=30 HTTP/1.1\r\nhost: tenor\r\nauthorization: Bearer {server.key}\r\n\r\n".encode()

    def read_health(source: str) -> httpx.Response:
        with Client(server, source) as client:
            client.send(GET + b"\r\n")
            return client.read_answer()

    def is_refused(source: str) -> bool:
        with contextlib.suppress(ConnectionError):  # its request may come after the answer
            return problem(read_health(source)) == (503, "connections_too_many")
        return True

    with contextlib.ExitStack() as stack:
        busy = [stack.enter_context(Client(server)) for _ in range(MAX_CONNECTIONS_PER_CLIENT)]
        for client in busy:
            client.send(poll)
        time.sleep(0.3 * PATIENCE)
        assert is_refused("127.0.0.1")
        assert server.refused("connections") >= 1
        if sys.platform == "linux":  # elsewhere 127.0.0.1 is the only address of its kind
            assert read_health("127.0.0.2").status_code == 200
    wait_for(lambda: read_health("127.0.0.1").status_code == 200)


def test_a_client_that_does_not_read_is_dropped(server: Server) -> None:
    before = server.memory
    page = b"GET /static-offline-docs/swagger-ui-bundle.js HTTP/1.1\r\nhost: tenor\r\n\r\n"
    with server.stays_responsive(), contextlib.ExitStack() as stack:
        for _ in range(8):
            stack.enter_context(Client(server, receive_buffer=4096)).send(page * 20)
        wait_for(lambda: server.refused("send_timeout") >= 8)
    assert server.memory - before < 40 * 2**20


@pytest.mark.parametrize("count", [5, 20_000])
def test_pipelined_requests_are_answered_in_turn_or_dropped(server: Server, count: int) -> None:
    with Client(server) as client, server.stays_responsive():
        client.send((GET + b"\r\n") * count)
        answers = client.read_to_end().count(b"HTTP/1.1 200 OK")
    assert answers == count if count == 5 else answers < count


def test_a_client_that_leaves_before_its_answers_is_no_error(server: Server) -> None:
    for _ in range(20):
        with Client(server) as client:
            client.send((GET + b"\r\n") * 20)
    assert HTTP.get(f"{server.url}/healthz").is_success
    assert " ERROR " not in server.log.read_text()


# what is no request


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 500,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\n\r\n",
        b"POST /v1/sessions HTTP/1.1\r\ncontent-length: -1\r\n\r\n",
        b"POST /v1/sessions HTTP/1.1\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n",
        b"CONNECT example.com:443 HTTP/1.1\r\nhost: example.com\r\n\r\n",
    ],
    ids=["TLS", "HTTP/2", "version", "path", "length", "smuggled", "CONNECT"],
)
def test_protocols_other_than_http_1_are_refused(server: Server, sent: bytes) -> None:
    with Client(server) as client:
        client.send(sent)
        assert problem(client.read_to_end()) == (400, "request_malformed")


def test_http_1_0_is_answered_and_closed(server: Server) -> None:
    with Client(server) as client:
        client.send(b"GET /healthz HTTP/1.0\r\n\r\n")
        assert parse(client.read_to_end()).json() == {"status": "ok"}


@pytest.mark.parametrize("protocol", ["websocket", "h2c"])
def test_upgrades_are_ignored(server: Server, protocol: str) -> None:
    with Client(server) as client:
        upgrade = f"connection: upgrade\r\nupgrade: {protocol}\r\nsec-websocket-key: eA==\r\n\r\n"
        client.send(GET + upgrade.encode())
        assert client.read_answer().status_code == 200
        assert b"HTTP/1.1 101" not in client.read_to_end()


PIECES = [b"GET ", b"POST ", b"/healthz", b"/v1/sessions", b" HTTP/1.1\r\n", b" HTTP/1.0\r\n", b"\r\n", b"\r\n\r\n"]
PIECES += [b"content-length: 5\r\n", b"transfer-encoding: chunked\r\n", b"connection: upgrade\r\nupgrade: h2c\r\n"]
PIECES += [b"5\r\nhello\r\n", b"0\r\n\r\n", b"expect: 100-continue\r\n", b"x: y\r\n", b"hello"]


@hypothesis_settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from(PIECES) | st.binary(max_size=20), max_size=12))
def test_random_bytes_close_the_connection_and_the_server_keeps_running(server: Server, sent: list[bytes]) -> None:
    with Client(server) as client:
        for piece in sent:
            client.send(piece)
        with contextlib.suppress(OSError):
            client.socket.shutdown(socket.SHUT_WR)
        answer = client.read_to_end()
    assert not answer or answer.startswith(b"HTTP/1.1 ")
    assert b"HTTP/1.1 500" not in answer
    assert HTTP.get(f"{server.url}/healthz").is_success


# what an operator sees


def test_refusals_are_counted_and_logged_without_their_content(server: Server) -> None:
    def count_of(send: Callable[[Client], object], reason: str) -> float:
        before = server.refused(reason)
        with Client(server) as client:
            send(client)
            client.read_to_end()
        return server.refused(reason) - before

    assert count_of(lambda client: client.send(GET + b"a" * 3 * MAX_HEADER_BYTES), "headers_too_large") >= 1
    assert count_of(lambda client: client.send(GET + SECRET.encode()), "header_timeout") >= 1
    assert count_of(lambda client: client.send(b"garbage\r\n\r\n"), "malformed") >= 1
    wait_for(lambda: "refused at a limit: " in server.log.read_text())
    log = server.log.read_text()
    assert log.count("refused at a limit: ") < 10
    assert SECRET not in log
    assert " ERROR " not in log
