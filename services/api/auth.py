"""Finds the API key of a request, and remembers valid keys for a moment."""

import time
from collections.abc import Sequence

from services.api.request_batcher import RequestBatcher
from shared.domain.access import ApiKey, key_hash
from shared.errors import TenorError, Unauthenticated
from shared.store.database import Database

CACHE_S = 1.0
"""How long a valid key is cached, and so how long a revoked key may go on working."""


class ApiKeyCache:
    """Looks up API keys for the requests of one event loop, and caches the valid ones."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._lookups = RequestBatcher(self._look_up)
        # Keyed by hash, as the database stores them: no clear text stays in memory after its request.
        self._cached: dict[str, tuple[ApiKey, float]] = {}

    async def find(self, clear_text: str) -> ApiKey:
        """Return the key with this clear text. Raises Unauthenticated if it is unknown or was revoked."""
        hashed = key_hash(clear_text)
        key, until = self._cached.get(hashed, (None, 0.0))
        now = time.monotonic()
        if key is None or now >= until:
            key = await self._lookups.submit(hashed)
            self._cached[hashed] = key, now + CACHE_S
        return key

    def _look_up(self, hashes: Sequence[str]) -> list[ApiKey | TenorError]:
        with self._database.transaction() as transaction:
            found = transaction.accounts.keys(hashes)
        return [key or Unauthenticated("the API key is unknown or was revoked") for key in found]
