"""The queue: a hint to the workers that there is something to do. The database alone is the truth."""

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

# On the nameless exchange, whose routes are not stored in the broker: a flushed broker can be sent to at once.
QUEUES = {lane: KombuQueue(lane.value, Exchange(""), routing_key=lane.value) for lane in Lane}

_MARKER = "tenor_marker"
"""The broker's key by which Tenor notices that the broker has lost its memory, and with it the messages."""
_LONGEST_PAUSE_S = 5.0
"""Between two attempts of one connection to reach the broker."""

_log = logging.getLogger(__name__)
_BROKER_ERRORS = (
    kombu.exceptions.OperationalError,
    kombu.exceptions.BatchPublishError,
    redis.exceptions.RedisError,
    ConnectionError,
    TimeoutError,
)


class _ReconnectingConnection(Connection):
    """Tries again after a fraction of a second, then after longer and longer pauses, up to `_LONGEST_PAUSE_S`.

    The pauses are random, so that the consumers of many workers do not all connect at the same moment.
    """

    def ensure_connection(self, errback: Any = None, max_retries: int | None = None, **options: Any) -> Connection:  # noqa: ANN401 - kombu's
        pause = random.uniform(0.1, 0.4)
        pauses = {"interval_start": pause, "interval_step": pause, "interval_max": _LONGEST_PAUSE_S}
        return super().ensure_connection(errback, max_retries, **pauses | options)


class _Amqp(AMQP):
    Connection = _ReconnectingConnection


def celery_app(broker_url: SecretStr) -> Celery:
    """The Celery application that both ends of the queue share.

    Late acknowledgement and no prefetch keep messages in the broker while they wait. Redelivery is not relied upon,
    so the visibility timeout is only there to clean up.
    """
    app = Celery("tenor", amqp=_Amqp, set_as_current=False)
    app.conf.update(
        **_broker(broker_url.get_secret_value()),
        task_queues=list(QUEUES.values()),
        task_default_queue=Lane.interactive.value,
        task_acks_late=True,
        task_ignore_result=True,
        worker_prefetch_multiplier=1,
        worker_hijack_root_logger=False,
        worker_send_task_events=False,
        # Else whoever reaches the broker could command the workers, and each connection would listen for commands.
        worker_enable_remote_control=False,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        # Else a master that becomes a replica, and so refuses those who wait for messages, ends every worker.
        broker_channel_error_retry=True,
    )
    return app


def _broker(url: str) -> dict[str, Any]:
    """Celery's settings for the broker that a URL names. Its certificate is verified, unless its options say otherwise.

    Options stand behind the last `?`: `db` of a socket, `master_name` and `sentinel_password`, `tag`, and `ssl_...` as
    redis-py names them.
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
        # A broker that hangs with its connections open is left within some twice as long.
        "health_check_interval": 5,
    }
    if scheme == "sentinel":
        options |= _sentinels(query)
    if scheme.endswith("+cluster"):
        nodes = url.replace("+cluster://", "://").split(";")
        settings |= {"broker_url": nodes[0], "broker_transport": "shared.messaging.redis_cluster:Transport"}
        options |= _cluster(nodes, query)
    if scheme.startswith("rediss"):
        # Kombu alone would take any certificate.
        ssl = {name: value for name, value in query.items() if name.startswith("ssl_")}
        settings["broker_use_ssl"] = {"ssl_cert_reqs": "required", **ssl}
    return {**settings, "broker_transport_options": options}


def _sentinels(query: dict[str, str]) -> dict[str, Any]:
    asking = {"password": query.get("sentinel_password"), "socket_connect_timeout": 2, "socket_timeout": 2}
    return {"master_name": query["master_name"], "sentinel_kwargs": asking}


def _cluster(nodes: list[str], query: dict[str, str]) -> dict[str, Any]:
    # All keys carry one hash tag, so that they lie in one slot.
    seeds = [(node.hostname, node.port or 6379) for node in map(urlsplit, nodes)]
    return {"seeds": seeds, "global_keyprefix": f"{{{query.get('tag', 'tenor')}}}."}


class Broker:
    """The sending end."""

    def __init__(self, broker_url: SecretStr) -> None:
        self._app = celery_app(broker_url)
        # Else whoever sends waits for seconds while the broker is away, and what could not be sent is swept anyway.
        self._app.conf.broker_transport_options["max_retries"] = 0

    def send(self, messages: Sequence[Message]) -> bool:
        """Send messages, all in one go; whether the broker has them. Else some may have been sent, and none is sure."""
        try:
            # The spans end once the batch has left.
            with self._app.producer_or_acquire() as producer, ExitStack() as spans, producer.batch():
                for message in messages:
                    with log_context(correlation_id=message.correlation_id, job_id=message.job_id):
                        spans.enter_context(_publish_span(message))
                    self._send(message, producer)
        except _BROKER_ERRORS as error:
            _log.warning("%d messages are not surely sent: %s", len(messages), type(error).__name__)
            return False
        return True

    def _send(self, message: Message, producer: Producer) -> None:
        self._app.send_task(
            message.task,
            args=[str(message.job_id)],
            task_id=str(message.id),
            queue=message.queue,
            producer=producer,
            retry=False,
        )

    def ping(self) -> None:
        """Raises Unavailable unless the broker answers."""
        try:
            with self._app.connection_for_read() as connection:
                connection.ensure_connection(max_retries=1, timeout=2)
        except _BROKER_ERRORS as error:
            raise Unavailable("the queue cannot be reached") from error

    def mark(self) -> bool:
        """Leave a mark in the broker's memory. Returns whether there was none: then the broker has lost its messages.

        Of several processes that ask after a loss, one alone is told.

        Raises:
            Unavailable: the broker cannot be reached.
        """
        try:
            with self._app.pool.acquire(block=True) as connection:
                return bool(connection.default_channel.client.set(_MARKER, 1, nx=True))
        except _BROKER_ERRORS as error:
            raise Unavailable("the queue cannot be reached") from error


def _publish_span(message: Message) -> AbstractContextManager[Span]:
    # An empty traceparent begins a trace: the current span may be another request's.
    return start_as_current_span("publish", SpanKind.PRODUCER, message.traceparent or "", lane=message.queue)
