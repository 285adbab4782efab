"""Turns are read, and waited for, by many at once."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from uuid import UUID

from services.api.request_batcher import RequestBatcher
from shared.domain.access import ApiKey
from shared.domain.turn import AnalyzedTurn
from shared.errors import TenorError
from shared.store.database import Database

_FIRST_LOOK_S = 0.02
_LONGEST_PAUSE_S = 0.2


class TurnReader:
    """Reads turns, for the requests of one event loop. All who wait look at the database together."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._first = RequestBatcher(self._read_and_audit)
        self._again = RequestBatcher(self._read)
        self._open = RequestBatcher(self._look)

    async def turn(self, key: ApiKey, turn_id: UUID) -> AnalyzedTurn:
        """A turn, and a line in the audit trail. Raises TurnNotFound where the key's tenant has no such turn."""
        return await self._first.do((key, turn_id))

    async def turn_again(self, key: ApiKey, turn_id: UUID) -> AnalyzedTurn:
        """As it is by now, for a request that read it before."""
        return await self._again.do((key.tenant_id, turn_id))

    async def wait(self, turn_id: UUID, deadline: float, gone: Callable[[], Awaitable[bool]]) -> None:
        """Wait until a turn has ended or is no more.

        Args:
            deadline: until when at most, by the monotonic clock.
            gone: whether nobody waits any more.
        """
        pause = _FIRST_LOOK_S
        while time.monotonic() < deadline and not await gone():
            await asyncio.sleep(pause)
            pause = min(pause * 1.3, _LONGEST_PAUSE_S)
            if not await self._open.do(turn_id):
                return

    def _read_and_audit(self, asked: Sequence[tuple[ApiKey, UUID]]) -> list[AnalyzedTurn | TenorError]:
        with self._database.transaction() as transaction:
            found = transaction.turns.get_all([(key.tenant_id, turn_id) for key, turn_id in asked])
            read = [
                (key, its.turn.session_id)
                for (key, _), its in zip(asked, found, strict=True)
                if not isinstance(its, TenorError)
            ]
            transaction.accounts.audit("turn.read", *read)
        return found

    def _read(self, wanted: Sequence[tuple[UUID, UUID]]) -> list[AnalyzedTurn | TenorError]:
        with self._database.transaction() as transaction:
            return transaction.turns.get_all(wanted)

    def _look(self, turn_ids: Sequence[UUID]) -> list[bool]:
        with self._database.transaction() as transaction:
            still = transaction.jobs.unfinished(turn_ids)
        return [turn_id in still for turn_id in turn_ids]
