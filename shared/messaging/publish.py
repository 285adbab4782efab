"""Messages are sent: once what they are about is stored."""

import logging
from collections.abc import Sequence
from datetime import timedelta

from shared.domain.job import Message
from shared.messaging.broker import Broker
from shared.observability.logging import type_and_traceback
from shared.store.database import Database

_log = logging.getLogger(__name__)


def send(messages: Sequence[Message], database: Database, queue: Broker) -> None:
    """Send messages whose transaction is committed, and strike them off.

    What is stored is not undone, whatever happens here. Messages that cannot be sent are left to the sweeper, and those
    that could not be struck off are sent twice, and done once.
    """
    if not messages:
        return
    try:
        if queue.send(messages):
            with database.transaction() as transaction:
                transaction.outbox.remove(messages)
    except Exception as error:
        _log.warning("messages are left to the sweeper: %s", type_and_traceback(error))


def flush(database: Database, queue: Broker, older_than: timedelta = timedelta(0)) -> None:
    """Send the oldest messages of the outbox, and strike them off where the broker took them.

    Args:
        older_than: younger messages are left to the process that wrote them, which is about to send them itself.

    Raises:
        Unavailable: the database cannot be reached.
    """
    with database.transaction() as transaction:
        messages = transaction.outbox.unsent(older_than)
        if messages and queue.send(messages):
            transaction.outbox.remove(messages)
