"""Publishes the messages of the outbox to the broker, and removes those that the broker has accepted.

A message is inserted into the outbox in the transaction that stores its job, so a crash before the publishing loses
nothing: the sweeper publishes what is left in the outbox.
"""

import logging
from collections.abc import Sequence
from datetime import timedelta

from shared.domain.job import Message
from shared.messaging.broker import Broker
from shared.observability.logging import type_and_traceback
from shared.store.database import Database

_log = logging.getLogger(__name__)


def publish_messages(messages: Sequence[Message], database: Database, broker: Broker) -> None:
    """Publish messages whose transaction is committed, and remove them from the outbox.

    It raises nothing, because the jobs are stored and the sweeper publishes whatever is left in the outbox. A message
    that was published but not removed is published twice; its job runs once.
    """
    if not messages:
        return
    try:
        if broker.publish(messages):
            with database.transaction() as transaction:
                transaction.outbox.remove(messages)
    except Exception as error:
        _log.warning("messages are left to the sweeper: %s", type_and_traceback(error))


def publish_outbox(database: Database, broker: Broker, older_than: timedelta = timedelta(0)) -> None:
    """Publish the oldest messages of the outbox, and remove them if the broker has accepted them.

    Args:
        older_than: younger messages are left out, as the process that inserted them is about to publish them itself.

    Raises:
        Unavailable: the database cannot be reached.
    """
    with database.transaction() as transaction:
        messages = transaction.outbox.unsent(older_than)
        if messages and broker.publish(messages):
            transaction.outbox.remove(messages)
