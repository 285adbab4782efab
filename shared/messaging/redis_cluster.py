"""Kombu's Redis transport for a Redis Cluster: the whole queue in one hash slot, so on one master at a time.

A cluster does not spread a list over its nodes, so one queue gains nothing from several slots, and kombu reads several
keys at once, which must be in one. What the cluster gives is failover: whoever connects asks it anew for the slot's
master, and what a node says that has lost the slot is taken for a lost connection.
"""

import random
from typing import Any

import redis
from kombu.transport import redis as kombu_redis
from redis import exceptions
from redis.crc import key_slot

Address = tuple[str, int]

_ELSEWHERE = (exceptions.AskError, exceptions.TryAgainError, exceptions.ClusterDownError, exceptions.ReadOnlyError)
"""What a node says that does not serve a slot, or not now; the first includes MOVED."""


class MasterConnection(redis.Connection):
    """A connection to the master of one slot, which is looked for each time it is made.

    Args:
        seeds: nodes of the cluster, any of which may be asked.
        key: what begins all keys, and holds their hash tag.

    Raises:
        ConnectionError: no seed knows a master, or it does not serve the slot.
    """

    def __init__(self, *, seeds: list[Address], key: str, **options: Any) -> None:  # noqa: ANN401 - redis-py's
        super().__init__(**options)
        self._seeds = seeds
        self._key = key

    def connect_check_health(self, check_health: bool = True, retry_socket_connect: bool = True) -> None:
        if self.is_connected:
            return
        patience, self.socket_timeout = self.socket_timeout, self.socket_connect_timeout
        try:
            self.host, self.port = self._master()
        finally:
            self.socket_timeout = patience
        super().connect_check_health(check_health, retry_socket_connect)
        # Else a node that has lost the slot would count as connected, and be left and connected to again without pause.
        self._ask("EXISTS", self._key)

    def _master(self) -> Address:
        """The slot's master by the first seed that answers. In any order, as one that is cut off knows an old one."""
        trouble: exceptions.RedisError | None = None
        for seed in random.sample(self._seeds, len(self._seeds)):
            self.host, self.port = seed
            try:
                super().connect_check_health()
                return self._master_of(key_slot(self._key.encode()))
            except exceptions.RedisError as error:
                trouble = error
            finally:
                super().disconnect()
        raise exceptions.ConnectionError(
            f"no node of the Redis Cluster says where the queue is: {trouble}"
        ) from trouble

    def _master_of(self, slot: int) -> Address:
        for first, last, (host, port, *_), *_ in self._ask("CLUSTER", "SLOTS"):
            if first <= slot <= last:
                # Nodes without a name of their own go by the one that they were asked under.
                return self.host if host in (None, b"", b"?") else host.decode(), port
        raise exceptions.ConnectionError(f"no node serves slot {slot}")

    def _ask(self, *command: str) -> Any:  # noqa: ANN401 - whatever is asked for
        self.send_command(*command)
        return self.read_response()

    def read_response(self, *args: Any, **options: Any) -> Any:  # noqa: ANN401 - redis-py's
        try:
            return super().read_response(*args, **options)
        except _ELSEWHERE as error:
            self.disconnect()
            raise exceptions.ConnectionError(
                f"{self.host}:{self.port} does not serve the queue now: {error}"
            ) from error


class MasterSSLConnection(MasterConnection, redis.SSLConnection):
    """The same behind TLS."""


class Channel(kombu_redis.Channel):
    """Takes `seeds` as a transport option, and `global_keyprefix` with a hash tag, such as `{tenor}.`."""

    from_transport_options = (*kombu_redis.Channel.from_transport_options, "seeds")
    connection_class = MasterConnection
    connection_class_ssl = MasterSSLConnection
    seeds: list[Address]

    def _connparams(self, asynchronous: bool = False) -> dict[str, Any]:
        return {**super()._connparams(asynchronous), "seeds": self.seeds, "key": self.global_keyprefix}


class Transport(kombu_redis.Transport):
    """The transport; Celery takes it as `broker_transport`."""

    Channel = Channel
