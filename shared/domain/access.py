"""Who may do what: tenants' API keys and their roles."""

import hashlib
import secrets
from datetime import datetime
from enum import StrEnum
from uuid import UUID

from pydantic import BaseModel, ConfigDict


class Permission(StrEnum):
    read = "read"
    write = "write"
    delete = "delete"
    manage = "manage"


class KeyRole(StrEnum):
    """`reader` reads histories, `writer` also sends turns, `admin` also deletes, and manages webhooks."""

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
    """A key as stored: without the key itself."""

    model_config = ConfigDict(frozen=True, from_attributes=True)

    id: UUID
    tenant_id: UUID
    name: str
    role: KeyRole
    created_at: datetime
    revoked_at: datetime | None


class AuditEvent(BaseModel):
    """Who did what to a session. It outlives the session."""

    model_config = ConfigDict(frozen=True, from_attributes=True)

    at: datetime
    action: str
    tenant: str
    key_id: UUID
    session_id: UUID


def new_key() -> str:
    """A key with 256 random bits. The prefix lets secret scanners know it."""
    return f"tnr_{secrets.token_urlsafe(32)}"


def key_hash(key: str) -> str:
    """What is stored of a key. Plain SHA-256 is enough, as a key is random and cannot be guessed word by word."""
    return hashlib.sha256(key.encode()).hexdigest()
