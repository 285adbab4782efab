"""Access: API keys, their roles and permissions, and audit events."""

import hashlib
import secrets
from datetime import datetime
from enum import StrEnum
from uuid import UUID

from pydantic import BaseModel, ConfigDict


class Permission(StrEnum):
    """What a request needs its key to allow."""

    read = "read"
    write = "write"
    delete = "delete"
    manage = "manage"


class KeyRole(StrEnum):
    """The role of a key: `reader` reads sessions, `writer` also adds to them, `admin` also deletes and manages."""

    reader = "reader"
    writer = "writer"
    admin = "admin"

    @property
    def permissions(self) -> frozenset[Permission]:
        return _PERMISSIONS[self]


_PERMISSIONS = {
    KeyRole.reader: frozenset({Permission.read}),
    KeyRole.writer: frozenset({Permission.read, Permission.write}),
    KeyRole.admin: frozenset(Permission),
}


class ApiKey(BaseModel):
    """An API key as stored, without the key itself."""

    model_config = ConfigDict(frozen=True, from_attributes=True)

    id: UUID
    tenant_id: UUID
    name: str
    role: KeyRole
    created_at: datetime
    revoked_at: datetime | None


class AuditEvent(BaseModel):
    """An action on a session and the key that did it. It is kept after the session is deleted."""

    model_config = ConfigDict(frozen=True, from_attributes=True)

    at: datetime
    action: str
    tenant: str
    key_id: UUID
    session_id: UUID


def new_key() -> str:
    """Return a new key with 256 random bits. Secret scanners recognise the prefix."""
    return f"tnr_{secrets.token_urlsafe(32)}"


def key_hash(key: str) -> str:
    """Return the hash of a key, to be stored. Plain SHA-256 is enough, because random keys cannot be guessed."""
    return hashlib.sha256(key.encode()).hexdigest()
