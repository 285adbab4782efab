"""Sessions and their turns, always read through the tenant they belong to."""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Row, RowMapping, Select, bindparam, delete, func, insert, select, tuple_, update
from sqlalchemy.dialects.postgresql import insert as upsert

from shared.domain.job import Job, JobStatus
from shared.domain.prediction import StoredPrediction
from shared.domain.session import Consent, Session
from shared.domain.speaker import SpeakerRole
from shared.domain.transcript import Transcript
from shared.domain.turn import AnalyzedTurn, NewTurn, Turn
from shared.errors import SessionClosed, SessionNotFound, TenorError, TurnNotFound
from shared.store.tables import doomed_blobs, jobs, predictions, recordings, sessions, subjects, transcripts, turns


class Conversations:
    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def create_session(
        self,
        tenant_id: UUID,
        consent: Consent,
        subject_ref: str | None = None,
        external_ref: str | None = None,
        language_hint: str | None = None,
    ) -> Session:
        """A new session; `subject_ref` names the person across sessions in the tenant's own words."""
        row = self._connection.execute(
            insert(sessions)
            .values(
                tenant_id=tenant_id,
                subject_id=None if subject_ref is None else self._ensure_subject(tenant_id, subject_ref),
                external_ref=external_ref,
                language_hint=language_hint,
                consent=consent.model_dump(),
            )
            .returning(sessions)
        ).one()
        return Session.model_validate(row)

    def session(self, tenant_id: UUID, session_id: UUID) -> Session:
        """Raises SessionNotFound where the tenant has no such session."""
        row = self._connection.execute(
            select(sessions).where(sessions.c.id == session_id, sessions.c.tenant_id == tenant_id)
        ).one_or_none()
        if row is None:
            raise SessionNotFound(f"there is no session {session_id}")
        return Session.model_validate(row)

    def hold(self, tenant_id: UUID, session_id: UUID) -> None:
        """Keep a session from being deleted until this transaction ends.

        Raises:
            SessionNotFound: the tenant has no such session.
        """
        held = select(sessions.c.id).where(sessions.c.id == session_id, sessions.c.tenant_id == tenant_id)
        if self._connection.execute(held.with_for_update()).one_or_none() is None:
            raise SessionNotFound(f"there is no session {session_id}")

    def delete_session(self, tenant_id: UUID, session_id: UUID) -> Sequence[str]:
        """Delete a session with all its rows, and its person if nothing else is known of them.

        Its recordings are doomed in the same transaction. Their URIs are returned, for the sound itself to be deleted
        after the commit; should the caller die before that, whoever sweeps next deletes it.

        Raises:
            SessionNotFound: the tenant has no such session.
        """
        # Held first, so that an upload which is being claimed is doomed with the rest.
        self.hold(tenant_id, session_id)
        subject_id = self.session(tenant_id, session_id).subject_id
        if subject_id is not None:
            self._hold_subject(subject_id)
            self._look_again(subject_id)
        sound = select(recordings.c.uri, func.now()).where(
            recordings.c.session_id == session_id, recordings.c.uri.is_not(None)
        )
        doom = upsert(doomed_blobs).from_select(["uri", "after"], sound).on_conflict_do_nothing()
        uris = self._connection.execute(doom.returning(doomed_blobs.c.uri)).scalars().all()
        self._connection.execute(delete(sessions).where(sessions.c.id == session_id))
        if subject_id is not None:
            self._forget_subject(subject_id)
        return uris

    def add_turn(
        self,
        tenant_id: UUID,
        session_id: UUID,
        *,
        speaker: str,
        role: SpeakerRole,
        text: str | None,
        recording_id: UUID | None = None,
        occurred_at: datetime | None = None,
    ) -> Turn:
        """Append a turn.

        Raises:
            SessionNotFound: the tenant has no such session.
            SessionClosed: it takes no more turns.
        """
        (turn,) = self.add_turns([NewTurn(tenant_id, session_id, speaker, role, text, recording_id, occurred_at)])
        if isinstance(turn, TenorError):
            raise turn
        return turn

    def add_turns(self, new: Sequence[NewTurn]) -> list[Turn | TenorError]:
        """Append turns; each one's index is the next of its session, also when many arrive at once.

        One whose session its tenant has not, or that takes no more, is answered with the error, as `add_turn` raises
        it; the others are added.
        """
        held = self._hold_sessions({turn.session_id for turn in new})
        counts = {session.id: session.turn_count for session in held.values()}
        refusals = [_refusal(turn, held) for turn in new]
        taken = [turn for turn, refusal in zip(new, refusals, strict=True) if refusal is None]
        places = self._places([(turn, held[turn.session_id]) for turn in taken])
        answers: list[int | TenorError] = []
        rows: list[dict[str, Any]] = []
        for turn, refusal in zip(new, refusals, strict=True):
            if refusal is not None:
                answers.append(refusal)
                continue
            index = counts[turn.session_id]
            counts[turn.session_id] += 1
            rows.append(_row(turn, held[turn.session_id], index, places))
            answers.append(index)
        self._count(counts)
        added = self._inserted(rows)
        return [
            answer if isinstance(answer, TenorError) else added[turn.session_id, answer]
            for turn, answer in zip(new, answers, strict=True)
        ]

    def turns(self, wanted: Sequence[tuple[UUID, UUID]]) -> list[AnalyzedTurn | TenorError]:
        """Turns by their tenant and id; TurnNotFound in the place of one that the tenant has not."""
        rows = self._connection.execute(
            _analyzed_turns().where(tuple_(sessions.c.tenant_id, turns.c.id).in_(set(wanted)))
        ).mappings()
        found = {(row["tenant_id"], row["turn_id"]): _analyzed_turn(row) for row in rows}
        return [found.get(its) or TurnNotFound(f"there is no turn {its[1]}") for its in wanted]

    def history(self, tenant_id: UUID, session_id: UUID, after_index: int, limit: int) -> Sequence[AnalyzedTurn]:
        """Up to `limit` turns whose index is above `after_index`, in order."""
        rows = self._connection.execute(
            _analyzed_turns()
            .where(sessions.c.tenant_id == tenant_id, turns.c.session_id == session_id, turns.c.index > after_index)
            .order_by(turns.c.index)
            .limit(limit)
        ).mappings()
        return [_analyzed_turn(row) for row in rows]

    def _hold_sessions(self, ids: Collection[UUID]) -> dict[UUID, Row[Any]]:
        """Sessions, whose turns nobody else adds or ends until this transaction does; and the time.

        In order, so that of two who hold several neither waits for the other.
        """
        held = select(sessions, func.now().label("now")).where(sessions.c.id.in_(ids)).order_by(sessions.c.id)
        return {row.id: row for row in self._connection.execute(held.with_for_update(key_share=True))}

    def _count(self, counts: Mapping[UUID, int]) -> None:
        if counts:
            counted = update(sessions).where(sessions.c.id == bindparam("its")).values(turn_count=bindparam("count"))
            self._connection.execute(counted, [{"its": its, "count": count} for its, count in counts.items()])

    def _inserted(self, rows: Sequence[dict[str, Any]]) -> dict[tuple[UUID, int], Turn]:
        """Turns by their session and index."""
        if not rows:
            return {}
        added = [Turn.model_validate(row) for row in self._connection.execute(insert(turns).returning(turns), rows)]
        return {(turn.session_id, turn.index): turn for turn in added}

    def _places(self, new: Sequence[tuple[NewTurn, Row[Any]]]) -> dict[UUID, Iterator[int]]:
        """The next positions of each subject whose voice may be known across sessions.

        The row that counts stays locked until the turns are committed: none is ever seen before an earlier one.
        """
        needed = Counter(scope for turn, session in new if (scope := _scope(turn, session)) not in (None, session.id))
        places: dict[UUID, Iterator[int]] = {}
        for subject_id in sorted(needed):
            counted = self._connection.execute(
                update(subjects)
                .where(subjects.c.id == subject_id)
                .values(turn_count=subjects.c.turn_count + needed[subject_id])
                .returning(subjects.c.turn_count)
            ).scalar_one()
            places[subject_id] = iter(range(counted - needed[subject_id], counted))
        return places

    def _hold_subject(self, subject_id: UUID) -> None:
        """Wait for whoever opens a session for this person or is at one of their turns, and keep others waiting."""
        self._connection.execute(select(subjects.c.id).where(subjects.c.id == subject_id).with_for_update())

    def _look_again(self, subject_id: UUID) -> None:
        """Have the next sweep find turns of other sessions that may have waited for one that is deleted now."""
        theirs = select(turns.c.id).where(turns.c.scope_id == subject_id)
        self._connection.execute(
            update(jobs)
            .where(jobs.c.turn_id.in_(theirs), jobs.c.status == JobStatus.queued.value)
            .values(lease_until=func.now())
        )

    def _forget_subject(self, subject_id: UUID) -> None:
        others = select(sessions.c.id).where(sessions.c.subject_id == subject_id).exists()
        self._connection.execute(delete(subjects).where(subjects.c.id == subject_id, ~others))

    def _ensure_subject(self, tenant_id: UUID, external_ref: str) -> UUID:
        # The update that changes nothing locks the row, so that a deletion of the person's last session waits.
        return self._connection.execute(
            upsert(subjects)
            .values(tenant_id=tenant_id, external_ref=external_ref)
            .on_conflict_do_update(index_elements=["tenant_id", "external_ref"], set_={"external_ref": external_ref})
            .returning(subjects.c.id)
        ).scalar_one()


def _refusal(turn: NewTurn, held: Mapping[UUID, Row[Any]]) -> TenorError | None:
    """Why a turn cannot be added to the session it names, if so."""
    session = held.get(turn.session_id)
    if session is None or session.tenant_id != turn.tenant_id:
        return SessionNotFound(f"there is no session {turn.session_id}")
    if session.closed_at is not None:
        return SessionClosed(f"session {turn.session_id} was closed at {session.closed_at.isoformat()}")
    return None


def _scope(turn: NewTurn, session: Row[Any]) -> UUID | None:
    """The subject or session within which the turn's voice may be read against others; None where it may not."""
    if turn.recording_id is None or not Consent.model_validate(session.consent).keep_voice_summary:
        return None
    return session.subject_id if session.subject_id is not None and turn.role.is_subject else session.id


def _row(turn: NewTurn, session: Row[Any], index: int, places: Mapping[UUID, Iterator[int]]) -> dict[str, Any]:
    scope_id = _scope(turn, session)
    return {
        "session_id": turn.session_id,
        "index": index,
        "scope_id": scope_id,
        "position": None if scope_id is None else next(places.get(scope_id, iter((index,)))),
        "speaker": turn.speaker,
        "role": turn.role.value,
        "text": turn.text,
        "recording_id": turn.recording_id,
        "occurred_at": turn.occurred_at or session.now,
        "start": turn.start,
        "end": turn.end,
    }


def _analyzed_turns() -> Select[Any]:
    """Turns with their tenant, job, transcript and newest prediction; columns prefixed by their table's name."""
    newest = (
        select(predictions)
        .where(predictions.c.turn_id == turns.c.id)
        .order_by(predictions.c.created_at.desc())
        .limit(1)
        .lateral("prediction")
    )
    parts = {"turn": turns, "job": jobs, "transcript": transcripts, "prediction": newest}
    columns = [column.label(f"{prefix}_{column.name}") for prefix, part in parts.items() for column in part.c]
    return (
        select(*columns, sessions.c.tenant_id)
        .select_from(turns)
        .join(sessions, sessions.c.id == turns.c.session_id)
        .join(jobs, jobs.c.turn_id == turns.c.id)
        .outerjoin(transcripts, transcripts.c.turn_id == turns.c.id)
        .outerjoin(newest, newest.c.turn_id == turns.c.id)
    )


def _analyzed_turn(row: RowMapping) -> AnalyzedTurn:
    def part(prefix: str) -> dict[str, Any]:
        return {key.removeprefix(prefix): value for key, value in row.items() if key.startswith(prefix)}

    return AnalyzedTurn(
        turn=Turn.model_validate(part("turn_")),
        job=Job.model_validate(part("job_")),
        transcript=None if row["transcript_turn_id"] is None else Transcript.model_validate(part("transcript_")),
        prediction=None if row["prediction_id"] is None else StoredPrediction.model_validate(part("prediction_")),
    )
