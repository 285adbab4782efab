"""Sessions: created, read, locked and deleted, always through the tenant that they belong to."""

from collections.abc import Sequence
from uuid import UUID

from sqlalchemy import Connection, delete, func, insert, select, update
from sqlalchemy.dialects.postgresql import insert as upsert

from shared.domain.job import JobStatus
from shared.domain.session import Consent, LockedSession, Session
from shared.errors import SessionClosed, SessionNotFound, TenorError
from shared.store.pending_deletions import insert_due
from shared.store.tables import jobs, pending_deletions, recordings, sessions, subjects, turns


class Sessions:
    """Reads and writes sessions and their subjects."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def create(
        self,
        tenant_id: UUID,
        consent: Consent,
        subject_ref: str | None = None,
        external_ref: str | None = None,
        language_hint: str | None = None,
        *,
        context: bool = True,
    ) -> Session:
        """Create a session and return it.

        Args:
            subject_ref: the tenant's own name for the person, the same in every session of theirs.
            context: whether the text of its turns is read with the turns before.
        """
        row = self._connection.execute(
            insert(sessions)
            .values(
                tenant_id=tenant_id,
                subject_id=None if subject_ref is None else self._ensure_subject(tenant_id, subject_ref),
                external_ref=external_ref,
                language_hint=language_hint,
                consent=consent.model_dump(),
                context=context,
            )
            .returning(sessions)
        ).one()
        return Session.model_validate(row)

    def get(self, tenant_id: UUID, session_id: UUID) -> Session:
        """Return a session of the tenant.

        Raises:
            SessionNotFound: the tenant has no such session.
        """
        row = self._connection.execute(
            select(sessions).where(sessions.c.id == session_id, sessions.c.tenant_id == tenant_id)
        ).one_or_none()
        if row is None:
            raise SessionNotFound(f"there is no session {session_id}")
        return Session.model_validate(row)

    def lock_session(self, tenant_id: UUID, session_id: UUID) -> None:
        """Lock a session until this transaction ends, so that nobody deletes it or adds to it.

        Raises:
            SessionNotFound: the tenant has no such session.
        """
        wanted = select(sessions.c.id).where(sessions.c.id == session_id, sessions.c.tenant_id == tenant_id)
        if self._connection.execute(wanted.with_for_update()).one_or_none() is None:
            raise SessionNotFound(f"there is no session {session_id}")

    def lock_open(self, wanted: Sequence[tuple[UUID, UUID]]) -> list[LockedSession | TenorError]:
        """Lock the sessions with these tenant and session ids against transactions that add or end turns.

        Returns:
            The sessions, in order, with SessionNotFound where the tenant has no such session, and SessionClosed where
            the session takes no more turns.
        """
        # Locked in the order of their ids, so that two transactions with the same sessions cannot deadlock.
        ids = {session_id for _, session_id in wanted}
        rows = select(sessions, func.now().label("now")).where(sessions.c.id.in_(ids)).order_by(sessions.c.id)
        locked = map(LockedSession.model_validate, self._connection.execute(rows.with_for_update(key_share=True)))
        found = {session.id: session for session in locked}
        return [_open_session(*pair, found.get(pair[1])) for pair in wanted]

    def delete(self, tenant_id: UUID, session_id: UUID) -> Sequence[str]:
        """Delete a session with all its rows, and its subject if the subject has no other session.

        The blobs of its recordings become pending deletions in the same transaction.

        Returns:
            The URIs of these blobs, for the caller to delete after the commit. If the caller dies before that, the
            next maintenance job deletes them.

        Raises:
            SessionNotFound: the tenant has no such session.
        """
        # Locked before the recordings are read, so that a recording which is being added is deleted with the others.
        self.lock_session(tenant_id, session_id)
        subject_id = self.get(tenant_id, session_id).subject_id
        if subject_id is not None:
            self._lock_subject(subject_id)
            self._expire_queued_leases(subject_id)
        stored = (recordings.c.session_id == session_id, recordings.c.uri.is_not(None))
        pending = insert_due(select(recordings.c.uri).where(*stored)).returning(pending_deletions.c.uri)
        uris = self._connection.execute(pending).scalars().all()
        self._connection.execute(delete(sessions).where(sessions.c.id == session_id))
        if subject_id is not None:
            self._delete_subject_without_sessions(subject_id)
        return uris

    def _lock_subject(self, subject_id: UUID) -> None:
        """Wait for transactions that add a session to this subject or end one of its turns, and block new ones."""
        self._connection.execute(select(subjects.c.id).where(subjects.c.id == subject_id).with_for_update())

    def _expire_queued_leases(self, subject_id: UUID) -> None:
        """Let the next sweep look at the subject's queued turns: they may have waited for a turn that is deleted."""
        of_subject = select(turns.c.id).where(turns.c.scope_id == subject_id)
        self._connection.execute(
            update(jobs)
            .where(jobs.c.turn_id.in_(of_subject), jobs.c.status == JobStatus.queued.value)
            .values(lease_until=func.now())
        )

    def _delete_subject_without_sessions(self, subject_id: UUID) -> None:
        others = select(sessions.c.id).where(sessions.c.subject_id == subject_id).exists()
        self._connection.execute(delete(subjects).where(subjects.c.id == subject_id, ~others))

    def _ensure_subject(self, tenant_id: UUID, external_ref: str) -> UUID:
        # The update changes nothing but locks the row, so that a deletion of the subject's last session waits.
        return self._connection.execute(
            upsert(subjects)
            .values(tenant_id=tenant_id, external_ref=external_ref)
            .on_conflict_do_update(index_elements=["tenant_id", "external_ref"], set_={"external_ref": external_ref})
            .returning(subjects.c.id)
        ).scalar_one()


def _open_session(tenant_id: UUID, session_id: UUID, session: LockedSession | None) -> LockedSession | TenorError:
    if session is None or session.tenant_id != tenant_id:
        return SessionNotFound(f"there is no session {session_id}")
    if session.closed_at is not None:
        return SessionClosed(f"session {session_id} was closed at {session.closed_at.isoformat()}")
    return session
