"""Idempotency keys: the answers to requests with an `Idempotency-Key`, kept for when such a request is sent again.

The transaction that carries a request out also writes its answer, and locks the request's key until it ends. So a
process that dies before the commit leaves neither an effect nor an answer, and Postgres releases the lock with the
connection. A request that has an answer needs no lock, so it may be repeated many times at once.
"""

import hashlib
from collections.abc import Sequence
from datetime import timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    Connection,
    Row,
    bindparam,
    delete,
    func,
    insert,
    select,
    tuple_,
)
from sqlalchemy.dialects.postgresql import ARRAY

from shared.domain.idempotency import Answer, IdempotentRequest
from shared.errors import IdempotencyKeyInProgress, IdempotencyKeyReused, TenorError
from shared.store.tables import idempotency_keys

_IDLE_LIMIT = "60s"
"""How long a transaction with a locked key may be idle, so that a machine that vanished does not lock it for hours."""

_LOCKS = func.unnest(bindparam("locks", type_=ARRAY(BigInteger))).column_valued("lock")
_LOCK = select(
    _LOCKS,
    func.pg_try_advisory_xact_lock(_LOCKS).label("taken"),
    func.set_config("idle_in_transaction_session_timeout", _IDLE_LIMIT, True),
)


class IdempotencyKeys:
    """Reads and writes the answers to requests."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def find(self, request: IdempotentRequest | None) -> Answer | None:
        """Return the answer that a request got before; or None for a new one, whose key is locked until the commit.

        Raises:
            IdempotencyKeyReused: another request was sent with the key.
            IdempotencyKeyInProgress: a request with the key is being carried out.
        """
        (found,) = self.find_all([request])
        if isinstance(found, TenorError):
            raise found
        return found

    def find_all(self, requests: Sequence[IdempotentRequest | None]) -> list[Answer | TenorError | None]:
        """Return the answer that each request got before, in order, and lock the keys of the new requests.

        Returns:
            For each request its answer; None for a new request and for one without a key; and the error that `find`
            would raise. Of several new requests with one key, all but the first are in progress.
        """
        keyed = [request for request in requests if request is not None]
        known = self._read(keyed)
        first: dict[int, IdempotentRequest] = {}
        for request in keyed:
            if (request.tenant_id, request.key) not in known:
                first.setdefault(_lock(request), request)
        locked: set[int] = set()
        if first:
            locked = {row.lock for row in self._connection.execute(_LOCK, {"locks": list(first)}) if row.taken}
            # Read again: a new statement sees what another transaction committed before it released its lock.
            known |= self._read(list(first.values()))

        def found(request: IdempotentRequest | None) -> Answer | TenorError | None:
            if request is None:
                return None
            row = known.get((request.tenant_id, request.key))
            if row is not None:
                return _answer(request, row)
            lock = _lock(request)
            if lock not in locked or first[lock] is not request:
                return IdempotencyKeyInProgress("a request with this Idempotency-Key is being carried out")
            return None

        return [found(request) for request in requests]

    def _read(self, requests: Sequence[IdempotentRequest]) -> dict[tuple[UUID, str], Row[Any]]:
        """The rows of the requests that were answered, by tenant and key."""
        if not requests:
            return {}
        tenant_and_key = tuple_(idempotency_keys.c.tenant_id, idempotency_keys.c.key)
        wanted = {(request.tenant_id, request.key) for request in requests}
        rows = self._connection.execute(select(idempotency_keys).where(tenant_and_key.in_(wanted)))
        return {(row.tenant_id, row.key): row for row in rows}

    def save(self, *answered: tuple[IdempotentRequest | None, Answer]) -> None:
        """Store the answers to requests whose keys this transaction has locked; requests without a key are skipped."""
        rows = [
            {
                "tenant_id": request.tenant_id,
                "key": request.key,
                "fingerprint": request.fingerprint,
                "status": answer.status,
                "body": answer.body,
                "location": answer.location,
                "session_id": answer.session_id,
                "webhook_id": answer.webhook_id,
            }
            for request, answer in answered
            if request is not None
        ]
        if rows:
            self._connection.execute(insert(idempotency_keys), rows)

    def expire(self, kept_for: timedelta, limit: int = 1000) -> None:
        """Delete the answers that are older than `kept_for`, up to `limit` of them."""
        old = (
            select(idempotency_keys.c.tenant_id, idempotency_keys.c.key)
            .where(idempotency_keys.c.created_at <= func.now() - kept_for)
            .with_for_update(skip_locked=True)
            .limit(limit)
        )
        tenant_and_key = tuple_(idempotency_keys.c.tenant_id, idempotency_keys.c.key)
        self._connection.execute(delete(idempotency_keys).where(tenant_and_key.in_(old)))


def _lock(request: IdempotentRequest) -> int:
    """The number of the advisory lock for a tenant's key."""
    digest = hashlib.sha256(request.tenant_id.bytes + request.key.encode()).digest()
    return int.from_bytes(digest[:8], "big", signed=True)


def _answer(request: IdempotentRequest, row: Row[Any]) -> Answer | TenorError:
    if row.fingerprint != request.fingerprint:
        return IdempotencyKeyReused(
            "another request was sent with this Idempotency-Key: send each new request with a key of its own"
        )
    return Answer(row.status, row.body, row.location, row.session_id, row.webhook_id, replayed=True)
