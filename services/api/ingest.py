"""Turns are accepted: stored for good, then sent for."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

from services.api.publisher import Publisher
from services.api.schemas import TurnOut
from shared.domain.idempotency import Answer, IdempotentRequest
from shared.domain.job import Job, Lane, Message, NewJob
from shared.domain.turn import AnalyzedTurn, NewTurn, Turn
from shared.errors import TenorError
from shared.store.database import Database, Transaction


@dataclass(frozen=True)
class TurnRequest:
    """A turn, its lane, and the request that brings it; `idempotent` where that has an `Idempotency-Key`."""

    turn: NewTurn
    lane: Lane
    idempotent: IdempotentRequest | None = None
    correlation_id: str | None = None
    traceparent: str | None = None

    def job(self, turn: Turn) -> NewJob:
        """The job of the turn as it is stored."""
        return NewJob(turn_id=turn.id, lane=self.lane, correlation_id=self.correlation_id, traceparent=self.traceparent)


class Ingest:
    """The way of a turn into the store and the queue.

    Args:
        lease: for how long its message counts as under way.
    """

    def __init__(self, database: Database, sending: Publisher, lease: timedelta) -> None:
        self._database = database
        self._sending = sending
        self._lease = lease

    def accept(self, arrivals: Sequence[TurnRequest]) -> list[Answer | TenorError]:
        """Store turns in one transaction, publish their jobs, and return each one's answer or why it is refused.

        The answer to a request that was sent before is the one that it got then. All of them wait while somebody
        deletes the session of one.
        """
        with self._database.transaction() as transaction:
            earlier = transaction.idempotency.find_all([arrival.idempotent for arrival in arrivals])
            new = [arrival for arrival, answer in zip(arrivals, earlier, strict=True) if answer is None]
            answers, messages = self.store(transaction, new)
            pairs = zip(new, answers, strict=True)
            answered = [(arrival.idempotent, answer) for arrival, answer in pairs if isinstance(answer, Answer)]
            transaction.idempotency.save(*answered)
        self._sending.send(messages)
        first = iter(answers)
        return [next(first) if answer is None else answer for answer in earlier]

    def store(
        self, transaction: Transaction, arrivals: Sequence[TurnRequest]
    ) -> tuple[list[Answer | TenorError], list[Message]]:
        """Store turns with their jobs; their answers, and the messages to send once the transaction is committed."""
        if not arrivals:
            return [], []
        turns = transaction.turns.add_all([arrival.turn for arrival in arrivals])
        new = [
            arrival.job(turn) for arrival, turn in zip(arrivals, turns, strict=True) if not isinstance(turn, TenorError)
        ]
        queued = transaction.jobs.enqueue(new, lease=self._lease)
        jobs = {job.turn_id: job for job, _ in queued}
        answers = [turn if isinstance(turn, TenorError) else _answer(turn, jobs[turn.id]) for turn in turns]
        return answers, [message for _, message in queued if message]


def _answer(turn: Turn, job: Job) -> Answer:
    accepted = TurnOut.of(AnalyzedTurn(turn=turn, job=job, transcript=None, prediction=None))
    return Answer(202, accepted.model_dump_json(), f"/v1/turns/{turn.id}", session_id=turn.session_id)
