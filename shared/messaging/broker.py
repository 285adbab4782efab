"""The connection to the broker: one queue for each lane, whose messages name a job that is due.

A message is only a hint. The database says which jobs exist and what their status is, so losing a message loses no job.
"""

# Celery, kombu and redis-py have no complete types.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import logging
import random
import re
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import kombu.exceptions
import redis.exceptions
from celery import Celery
from celery.app.amqp import AMQP
from kombu.connection import Connection
from kombu.entity import Exchange
from kombu.entity import Queue as KombuQueue
from kombu.messaging import Producer
from opentelemetry.trace import Span, SpanKind
from pydantic import SecretStr

from shared.domain.job import Lane, Message
from shared.errors import Unavailable
from shared.observability.logging import log_context
from shared.observability.tracing import start_as_current_span

# On the default exchange, whose routes are not stored in the broker, so that messages reach a flushed broker at once.
QUEUES = {lane: KombuQueue(lane.value, Exchange(""), routing_key=lane.value) for lane in Lane}

_MARKER = "tenor_marker"
"""A key in the broker. If it is missing, the broker has lost its memory, and the messages with it."""
_MAX_PAUSE_S = 5.0
"""Longest pause between two attempts of one connection to reach the broker."""

_log = logging.getLogger(__name__)
_BROKER_ERRORS = (
    kombu.exceptions.OperationalError,
    kombu.exceptions.BatchPublishError,
    redis.exceptions.RedisError,
    ConnectionError,
    TimeoutError,
)


class _ReconnectingConnection(Connection):
    """Connects again after a fraction of a second, then after growing pauses, up to `_MAX_PAUSE_S`.

    The pauses are random, so that the consumers of many workers do not all connect at the same moment.
    """

    def ensure_connection(self, errback: Any = None, max_retries: int | None = None, **options: Any) -> Connection:  # noqa: ANN401 - kombu's
        pause = random.uniform(0.1, 0.4)
        pauses = {"interval_start": pause, "interval_step": pause, "interval_max": _MAX_PAUSE_S}
        return super().ensure_connection(errback, max_retries, **pauses | options)


class _Amqp(AMQP):
    Connection = _ReconnectingConnection


def celery_app(broker_url: SecretStr) -> Celery:
    """Return the Celery application that publishers and consumers share: the broker, the queues and the protocol.

    Nothing relies on the broker to deliver a message twice, as the sweeper publishes those of lost jobs again. So the
    visibility timeout is long, and only cleans up after workers that were killed.
    """
    app = Celery("tenor", amqp=_Amqp, set_as_current=False)
    app.conf.update(
        **_broker(broker_url.get_secret_value()),
        task_queues=list(QUEUES.values()),
        task_default_queue=Lane.interactive.value,
        task_ignore_result=True,
    )
    return app


def _broker(url: str) -> dict[str, Any]:
    """Return Celery's settings for the broker of a URL. Its certificate is verified unless the URL says otherwise.

    The query of the URL holds the options: `db` of a Unix socket, `master_name` and `sentinel_password`, `tag`, and
    `ssl_...` as redis-py names them.
    """
    query = dict(parse_qsl(url.rpartition("?")[2])) if "?" in url else {}
    scheme, url = url.partition("://")[0], re.sub(r"\?[^;]*", "", url)
    if scheme == "unix":
        # Kombu's name for what redis-py calls unix://.
        url = f"redis+socket{url.removeprefix('unix')}?virtual_host={query.get('db', '0')}"
    settings: dict[str, Any] = {"broker_url": url}
    options: dict[str, Any] = {
        "visibility_timeout": 3600,
        "socket_connect_timeout": 2,
        "socket_timeout": 10,
        "socket_keepalive": True,
        # A connection to a broker that hangs is closed within about twice as many seconds.
        "health_check_interval": 5,
    }
    if scheme == "sentinel":
        options |= _sentinels(query)
    if scheme.endswith("+cluster"):
        nodes = url.replace("+cluster://", "://").split(";")
        settings |= {"broker_url": nodes[0], "broker_transport": "shared.messaging.redis_cluster:Transport"}
        options |= _cluster(nodes, query)
    if scheme.startswith("rediss"):
        # Kombu by itself accepts any certificate.
        ssl = {name: value for name, value in query.items() if name.startswith("ssl_")}
        settings["broker_use_ssl"] = {"ssl_cert_reqs": "required", **ssl}
    return {**settings, "broker_transport_options": options}


def _sentinels(query: dict[str, str]) -> dict[str, Any]:
    connection = {"password": query.get("sentinel_password"), "socket_connect_timeout": 2, "socket_timeout": 2}
    return {"master_name": query["master_name"], "sentinel_kwargs": connection}


def _cluster(nodes: list[str], query: dict[str, str]) -> dict[str, Any]:
    # One hash tag in all keys puts them into one slot.
    seeds = [(node.hostname, node.port or 6379) for node in map(urlsplit, nodes)]
    return {"seeds": seeds, "global_keyprefix": f"{{{query.get('tag', 'tenor')}}}."}


class Broker:
    """Publishes messages, and tells whether the broker works."""

    def __init__(self, broker_url: SecretStr) -> None:
        self._app = celery_app(broker_url)
        # With retries, a publisher would wait for seconds while the broker is away. The sweeper publishes the rest.
        self._app.conf.broker_transport_options["max_retries"] = 0

    def publish(self, messages: Sequence[Message]) -> bool:
        """Publish messages in one batch.

        Returns:
            True if the broker has all of them. False if any of them may be missing.
        """
        try:
            # The spans end when the batch is sent, at the end of this block.
            with self._app.producer_or_acquire() as producer, ExitStack() as spans, producer.batch():
                for message in messages:
                    with log_context(correlation_id=message.correlation_id, job_id=message.job_id):
                        spans.enter_context(_publish_span(message))
                    self._publish(message, producer)
        except _BROKER_ERRORS as error:
            _log.warning("%d messages may not have been published: %s", len(messages), type(error).__name__)
            return False
        return True

    def _publish(self, message: Message, producer: Producer) -> None:
        self._app.send_task(
            message.task,
            args=[str(message.job_id)],
            task_id=str(message.id),
            queue=message.queue,
            producer=producer,
            retry=False,
        )

    def ping(self) -> None:
        """Check that the broker answers.

        Raises:
            Unavailable: it does not.
        """
        try:
            with self._app.connection_for_read() as connection:
                connection.ensure_connection(max_retries=1, timeout=2)
        except _BROKER_ERRORS as error:
            raise Unavailable("the broker cannot be reached") from error

    def has_lost_messages(self) -> bool:
        """Return whether the broker lost its messages since the last call by any process.

        A marker key is set by the first call and is gone when the memory is gone. So of several processes that ask
        after a loss, only one gets True.

        Raises:
            Unavailable: the broker cannot be reached.
        """
        try:
            with self._app.pool.acquire(block=True) as connection:
                return bool(connection.default_channel.client.set(_MARKER, 1, nx=True))
        except _BROKER_ERRORS as error:
            raise Unavailable("the broker cannot be reached") from error


def _publish_span(message: Message) -> AbstractContextManager[Span]:
    # An empty traceparent begins a trace: the current span may be another request's.
    return start_as_current_span("publish", SpanKind.PRODUCER, message.traceparent or "", lane=message.queue)
