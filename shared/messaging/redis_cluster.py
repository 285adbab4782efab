"""Kombu's Redis transport for a Redis Cluster, with all keys in one hash slot and so on one master at a time.

A cluster does not spread a list over its nodes, so several slots would not make a queue faster. And kombu reads several
keys in one command, which must be in one slot. What the cluster offers is failover: each new connection asks a node for
the master of the slot, and the error of a node that no longer has the slot counts as a lost connection.
"""

# Celery, kombu and redis-py have no complete types.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import random
from typing import Any

import redis
from kombu.transport import redis as kombu_redis
from redis import exceptions
from redis.crc import key_slot

Address = tuple[str, int]

_NOT_SERVED = (exceptions.AskError, exceptions.TryAgainError, exceptions.ClusterDownError, exceptions.ReadOnlyError)
"""The errors of a node that does not serve a slot, or not now. The first includes MOVED."""


class MasterConnection(redis.Connection):
    """A connection to the master of one slot. Each connect looks for the master again.

    Args:
        seeds: nodes of the cluster that may be asked for the master.
        key: the prefix of all keys, which holds their hash tag.

    Raises:
        ConnectionError: no seed knows the master, or the master does not serve the slot.
    """

    def __init__(self, *, seeds: list[Address], key: str, **options: Any) -> None:  # noqa: ANN401 - redis-py's
        super().__init__(**options)
        self._seeds = seeds
        self._key = key

    def connect_check_health(self, check_health: bool = True, retry_socket_connect: bool = True) -> None:
        if self.is_connected:
            return
        read_timeout, self.socket_timeout = self.socket_timeout, self.socket_connect_timeout
        try:
            self.host, self.port = self._master()
        finally:
            self.socket_timeout = read_timeout
        super().connect_check_health(check_health, retry_socket_connect)
        # Without this, a node that lost the slot would count as connected, and kombu would reconnect without a pause.
        self._ask("EXISTS", self._key)

    def _master(self) -> Address:
        """Return the slot's master as the first seed that answers knows it.

        The order is random, because a seed that is cut off from the others names an old master.
        """
        last_error: exceptions.RedisError | None = None
        for seed in random.sample(self._seeds, len(self._seeds)):
            self.host, self.port = seed
            try:
                super().connect_check_health()
                return self._master_of(key_slot(self._key.encode()))
            except exceptions.RedisError as error:
                last_error = error
            finally:
                super().disconnect()
        raise exceptions.ConnectionError(f"no node of the Redis Cluster knows the master: {last_error}") from last_error

    def _master_of(self, slot: int) -> Address:
        for first, last, (host, port, *_), *_ in self._ask("CLUSTER", "SLOTS"):
            if first <= slot <= last:
                # A node that does not know its own name is reached by the name in the URL.
                return self.host if host in (None, b"", b"?") else host.decode(), port
        raise exceptions.ConnectionError(f"no node serves slot {slot}")

    def _ask(self, *command: str) -> Any:  # noqa: ANN401 - the reply's type depends on the command
        self.send_command(*command)
        return self.read_response()

    def read_response(self, *args: Any, **options: Any) -> Any:  # noqa: ANN401 - redis-py's
        try:
            return super().read_response(*args, **options)
        except _NOT_SERVED as error:
            self.disconnect()
            raise exceptions.ConnectionError(f"{self.host}:{self.port} does not serve the slot now: {error}") from error


class MasterSSLConnection(MasterConnection, redis.SSLConnection):
    """The same over TLS."""


class Channel(kombu_redis.Channel):
    """A channel with the transport options `seeds`, and `global_keyprefix` with a hash tag such as `{tenor}.`."""

    from_transport_options = (*kombu_redis.Channel.from_transport_options, "seeds")
    connection_class = MasterConnection
    connection_class_ssl = MasterSSLConnection
    seeds: list[Address]

    def _connparams(self, asynchronous: bool = False) -> dict[str, Any]:
        return {**super()._connparams(asynchronous), "seeds": self.seeds, "key": self.global_keyprefix}


class Transport(kombu_redis.Transport):
    """The transport that Celery's setting `broker_transport` names."""

    Channel = Channel
