"""Idempotency: POST requests with an `Idempotency-Key`, and their stored answers."""

from dataclasses import dataclass
from uuid import UUID


@dataclass(frozen=True)
class IdempotentRequest:
    """A POST with an `Idempotency-Key`.

    Attributes:
        fingerprint: SHA-256 in hex of method, path and body; equal for two sendings of one request.
    """

    tenant_id: UUID
    key: str
    fingerprint: str


@dataclass(frozen=True)
class Answer:
    """The answer to a POST that succeeded.

    Attributes:
        body: JSON.
        location: the path of the created resource, without the prefix of a reverse proxy.
        session_id: the session that the answer is about; the answer is deleted with it.
        webhook_id: the webhook that the answer is about; the answer is deleted with it.
        replayed: whether an earlier request was given this answer first.
    """

    status: int
    body: str
    location: str | None = None
    session_id: UUID | None = None
    webhook_id: UUID | None = None
    replayed: bool = False
