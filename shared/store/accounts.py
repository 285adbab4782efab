"""Accounts: tenants, their API keys, and the audit trail of who read or deleted what."""

from collections.abc import Sequence
from uuid import UUID

from sqlalchemy import Connection, func, insert, select, update
from sqlalchemy.dialects.postgresql import insert as upsert

from shared.domain.access import ApiKey, AuditEvent, KeyRole, key_hash, new_key
from shared.errors import TenantNotFound
from shared.store.tables import api_keys, audit_events, tenants


class Accounts:
    """Reads and writes tenants, API keys and audit events."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def ensure_tenant(self, name: str) -> UUID:
        """Return the id of the tenant called `name`, which is created if it does not exist."""
        self._connection.execute(upsert(tenants).values(name=name).on_conflict_do_nothing())
        return self._connection.execute(select(tenants.c.id).where(tenants.c.name == name)).scalar_one()

    def require_tenant(self, name: str) -> None:
        """Check that a tenant is called `name`.

        Raises:
            TenantNotFound: no tenant is.
        """
        if self._connection.execute(select(tenants.c.id).where(tenants.c.name == name)).one_or_none() is None:
            raise TenantNotFound(f"there is no tenant {name!r}")

    def create_key(self, tenant_id: UUID, name: str, role: KeyRole) -> str:
        """Create a key and return it in clear text, which cannot be read again: only its hash is stored."""
        key = new_key()
        self._connection.execute(
            insert(api_keys).values(tenant_id=tenant_id, name=name, role=role.value, hash=key_hash(key))
        )
        return key

    def key(self, clear_text: str) -> ApiKey | None:
        """Return the valid key with this clear text, or None."""
        return self.keys([key_hash(clear_text)])[0]

    def keys(self, hashes: Sequence[str]) -> list[ApiKey | None]:
        """Return the valid key with each of the hashes, in order, or None in its place."""
        rows = self._connection.execute(
            select(api_keys).where(api_keys.c.hash.in_(set(hashes)), api_keys.c.revoked_at.is_(None))
        )
        found = {row.hash: ApiKey.model_validate(row) for row in rows}
        return [found.get(hash_) for hash_ in hashes]

    def all_keys(self) -> list[tuple[str, ApiKey]]:
        """Return every key with its tenant's name, oldest first."""
        rows = self._connection.execute(
            select(tenants.c.name.label("tenant"), api_keys)
            .join_from(api_keys, tenants)
            .order_by(api_keys.c.created_at)
        ).mappings()
        return [(row["tenant"], ApiKey.model_validate(dict(row))) for row in rows]

    def revoke_key(self, key_id: UUID) -> bool:
        """Revoke a key, and return whether there was a valid key of this id."""
        result = self._connection.execute(
            update(api_keys)
            .where(api_keys.c.id == key_id, api_keys.c.revoked_at.is_(None))
            .values(revoked_at=func.now())
            .returning(api_keys.c.id)
        )
        return result.one_or_none() is not None

    def audit(self, action: str, *done: tuple[ApiKey, UUID]) -> None:
        """Record that `action` was done with each of these keys on the session beside it."""
        if done:
            rows = [
                {"tenant_id": key.tenant_id, "key_id": key.id, "action": action, "session_id": session_id}
                for key, session_id in done
            ]
            self._connection.execute(insert(audit_events), rows)

    def audit_trail(self, session_id: UUID) -> list[AuditEvent]:
        """Return the audit events of a session, oldest first."""
        rows = self._connection.execute(
            select(audit_events, tenants.c.name.label("tenant"))
            .join_from(audit_events, tenants)
            .where(audit_events.c.session_id == session_id)
            .order_by(audit_events.c.at)
        )
        return [AuditEvent.model_validate(row) for row in rows]
