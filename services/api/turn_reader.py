"""Reads turns, and waits until they have ended, with one query for all the requests that wait at the same time."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from uuid import UUID

from services.api.request_batcher import RequestBatcher
from shared.domain.access import ApiKey
from shared.domain.turn import AnalyzedTurn
from shared.errors import TenorError
from shared.store.database import Database

_FIRST_POLL_S = 0.02
_MAX_POLL_S = 0.2
_POLL_FACTOR = 1.3


class TurnReader:
    """Reads turns for the requests of one event loop. Concurrent reads and polls share their queries."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._audited_reads = RequestBatcher(self._read_and_audit)
        self._reads = RequestBatcher(self._read)
        self._polls = RequestBatcher(self._are_open)

    async def read(self, key: ApiKey, turn_id: UUID) -> AnalyzedTurn:
        """Return a turn, and write an audit entry. Raises TurnNotFound if the tenant of the key has no such turn."""
        return await self._audited_reads.submit((key, turn_id))

    async def read_again(self, key: ApiKey, turn_id: UUID) -> AnalyzedTurn:
        """Return a turn for a request that has called `read` already, without a second audit entry."""
        return await self._reads.submit((key.tenant_id, turn_id))

    async def wait(self, turn_id: UUID, deadline: float, disconnected: Callable[[], Awaitable[bool]]) -> None:
        """Poll the database until a turn has ended or was deleted.

        Args:
            deadline: when to stop polling, by the monotonic clock.
            disconnected: whether the client has closed its connection, which ends the polling too.
        """
        pause = _FIRST_POLL_S
        while time.monotonic() < deadline and not await disconnected():
            await asyncio.sleep(pause)
            pause = min(pause * _POLL_FACTOR, _MAX_POLL_S)
            if not await self._polls.submit(turn_id):
                return

    def _read_and_audit(self, wanted: Sequence[tuple[ApiKey, UUID]]) -> list[AnalyzedTurn | TenorError]:
        with self._database.transaction() as transaction:
            found = transaction.turns.get_all([(key.tenant_id, turn_id) for key, turn_id in wanted])
            read = [
                (key, result.turn.session_id)
                for (key, _), result in zip(wanted, found, strict=True)
                if not isinstance(result, TenorError)
            ]
            transaction.accounts.audit("turn.read", *read)
        return found

    def _read(self, wanted: Sequence[tuple[UUID, UUID]]) -> list[AnalyzedTurn | TenorError]:
        with self._database.transaction() as transaction:
            return transaction.turns.get_all(wanted)

    def _are_open(self, turn_ids: Sequence[UUID]) -> list[bool]:
        with self._database.transaction() as transaction:
            open_ids = transaction.jobs.unfinished(turn_ids)
        return [turn_id in open_ids for turn_id in turn_ids]
