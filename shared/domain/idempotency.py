"""POST requests that may be sent again, and the answers that they get."""

from dataclasses import dataclass
from uuid import UUID


@dataclass(frozen=True)
class IdempotentRequest:
    """A POST with an `Idempotency-Key`. Two with one fingerprint, the SHA-256 in hex of what they ask, are the same."""

    tenant_id: UUID
    key: str
    fingerprint: str


@dataclass(frozen=True)
class Answer:
    """The answer to a POST that succeeded.

    Attributes:
        body: JSON.
        location: the path of what was created, without the prefix of a reverse proxy.
        session_id: the session that this answer tells of; the answer is deleted with it.
        webhook_id: likewise the webhook.
        replayed: whether an earlier request got this answer first.
    """

    status: int
    body: str
    location: str | None = None
    session_id: UUID | None = None
    webhook_id: UUID | None = None
    replayed: bool = False
