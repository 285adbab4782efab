"""Turns are accepted: stored for good, then sent for."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

from services.api.sending import Sending
from shared.domain.conversation import NewTurn, Turn
from shared.domain.history import AnalyzedTurn
from shared.domain.job import Lane, Message, NewJob
from shared.errors import TenorError
from shared.store.database import Database, Transaction


@dataclass(frozen=True)
class Arrival:
    """A turn, its lane, and the request that brings it."""

    turn: NewTurn
    lane: Lane
    correlation_id: str | None = None
    traceparent: str | None = None

    def job(self, turn: Turn) -> NewJob:
        """The job of the turn as it is stored."""
        return NewJob(turn_id=turn.id, lane=self.lane, correlation_id=self.correlation_id, traceparent=self.traceparent)


class Accepting:
    """The way of a turn into the store and the queue.

    Args:
        lease: for how long its message counts as under way.
    """

    def __init__(self, database: Database, sending: Sending, lease: timedelta) -> None:
        self._database = database
        self._sending = sending
        self._lease = lease

    def accept(self, arrivals: Sequence[Arrival]) -> list[AnalyzedTurn | TenorError]:
        """Store turns in one transaction and send for them; each one as it was stored, or why it cannot be.

        All of them wait while somebody deletes the session of one.
        """
        with self._database.transaction() as transaction:
            stored, messages = self.store(transaction, arrivals)
        self._sending.send(messages)
        return stored

    def store(
        self, transaction: Transaction, arrivals: Sequence[Arrival]
    ) -> tuple[list[AnalyzedTurn | TenorError], list[Message]]:
        """Store turns with their jobs, and give the messages to send once the transaction is committed."""
        turns = transaction.conversations.add_turns([arrival.turn for arrival in arrivals])
        new = [
            arrival.job(turn) for arrival, turn in zip(arrivals, turns, strict=True) if not isinstance(turn, TenorError)
        ]
        queued = transaction.jobs.enqueue(new, lease=self._lease)
        jobs = {job.turn_id: job for job, _ in queued}
        stored = [
            turn
            if isinstance(turn, TenorError)
            else AnalyzedTurn(turn=turn, job=jobs[turn.id], transcript=None, prediction=None)
            for turn in turns
        ]
        return stored, [message for _, message in queued if message]
