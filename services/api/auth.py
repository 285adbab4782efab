"""API keys: whose a request is."""

import time
from collections.abc import Sequence

from services.api.request_batcher import RequestBatcher
from shared.domain.access import ApiKey, key_hash
from shared.errors import TenorError, Unauthenticated
from shared.store.database import Database

TRUST_S = 1.0
"""For so long a key that was found valid counts as valid, and a key that is revoked goes on working."""


class Keys:
    """Finds valid keys, for the requests of one event loop."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._read = RequestBatcher(self._look_up)
        # By hash, as the database has them: no clear text outlives its request.
        self._trusted: dict[str, tuple[ApiKey, float]] = {}

    async def find(self, clear_text: str) -> ApiKey:
        """Raises Unauthenticated where it is no valid key."""
        its = key_hash(clear_text)
        key, until = self._trusted.get(its, (None, 0.0))
        now = time.monotonic()
        if key is None or now >= until:
            key = await self._read.do(its)
            self._trusted[its] = key, now + TRUST_S
        return key

    def _look_up(self, hashes: Sequence[str]) -> list[ApiKey | TenorError]:
        with self._database.transaction() as transaction:
            found = transaction.accounts.keys(hashes)
        return [key or Unauthenticated("the API key is unknown or was revoked") for key in found]
