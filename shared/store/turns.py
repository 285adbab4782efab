"""Turns: added to their sessions in order, and read with their jobs, transcripts and predictions."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from itertools import count
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, RowMapping, Select, bindparam, insert, select, tuple_, update

from shared.domain.job import Job
from shared.domain.prediction import StoredPrediction
from shared.domain.session import LockedSession
from shared.domain.speaker import SpeakerRole
from shared.domain.transcript import Transcript
from shared.domain.turn import AnalyzedTurn, NewTurn, Turn
from shared.errors import TenorError, TurnNotFound
from shared.store.sessions import Sessions
from shared.store.tables import jobs, predictions, sessions, subjects, transcripts, turns


class Turns:
    """Adds and reads turns."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def add(
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
        """Append a turn to a session and return it.

        Raises:
            SessionNotFound: the tenant has no such session.
            SessionClosed: the session takes no more turns.
        """
        (turn,) = self.add_all([NewTurn(tenant_id, session_id, speaker, role, text, recording_id, occurred_at)])
        if isinstance(turn, TenorError):
            raise turn
        return turn

    def add_all(self, new: Sequence[NewTurn]) -> list[Turn | TenorError]:
        """Append turns to their sessions, which stay locked until this transaction ends.

        Returns:
            For each new turn, in order, the turn as stored, or the error that `add` would raise for it.
        """
        locked = Sessions(self._connection).lock_open([(turn.tenant_id, turn.session_id) for turn in new])
        pairs = zip(new, locked, strict=True)
        added = iter(self.append([(turn, session) for turn, session in pairs if not isinstance(session, TenorError)]))
        return [session if isinstance(session, TenorError) else next(added) for session in locked]

    def append(self, new: Sequence[tuple[NewTurn, LockedSession]]) -> list[Turn]:
        """Append turns to sessions that this transaction has locked by `Sessions.lock_open`; the turns, in order.

        The index of each turn is the next one of its session, also when many transactions add turns at once.
        """
        if not new:
            return []
        positions = self._reserve_positions(new)
        indexes = {session.id: count(session.turn_count) for _, session in new}
        rows = [_row(turn, session, next(indexes[session.id]), positions) for turn, session in new]
        self._count_turns(Counter(turn.session_id for turn, _ in new))
        # Postgres may return the rows in another order.
        inserted = map(Turn.model_validate, self._connection.execute(insert(turns).returning(turns), rows))
        added = {(turn.session_id, turn.index): turn for turn in inserted}
        return [added[row["session_id"], row["index"]] for row in rows]

    def get_all(self, wanted: Sequence[tuple[UUID, UUID]]) -> list[AnalyzedTurn | TenorError]:
        """Return the turns with these tenant and turn ids, in order, with TurnNotFound where the tenant has no such
        turn.
        """
        rows = self._connection.execute(
            _analyzed_turns().where(tuple_(sessions.c.tenant_id, turns.c.id).in_(set(wanted)))
        ).mappings()
        found = {(row["tenant_id"], row["turn_id"]): _analyzed_turn(row) for row in rows}
        return [found.get(ids) or TurnNotFound(f"there is no turn {ids[1]}") for ids in wanted]

    def history(self, tenant_id: UUID, session_id: UUID, after_index: int, limit: int) -> Sequence[AnalyzedTurn]:
        """Return up to `limit` turns of a session whose index is above `after_index`, in order."""
        rows = self._connection.execute(
            _analyzed_turns()
            .where(sessions.c.tenant_id == tenant_id, turns.c.session_id == session_id, turns.c.index > after_index)
            .order_by(turns.c.index)
            .limit(limit)
        ).mappings()
        return [_analyzed_turn(row) for row in rows]

    def _count_turns(self, added: Mapping[UUID, int]) -> None:
        counted = update(sessions).where(sessions.c.id == bindparam("session_id"))
        counted = counted.values(turn_count=sessions.c.turn_count + bindparam("added"))
        self._connection.execute(counted, [{"session_id": id_, "added": number} for id_, number in added.items()])

    def _reserve_positions(self, new: Sequence[tuple[NewTurn, LockedSession]]) -> dict[UUID, Iterator[int]]:
        """The next positions of each subject whose speakers have a baseline across sessions.

        The subject's row, which counts, stays locked until the turns are committed: no turn becomes visible before
        another with a lower position.
        """
        scopes = (_scope(turn, session) for turn, session in new)
        session_ids = {session.id for _, session in new}
        needed = Counter(scope for scope in scopes if scope is not None and scope not in session_ids)
        positions: dict[UUID, Iterator[int]] = {}
        # Locked in the order of their ids, so that two transactions with the same subjects cannot deadlock.
        for subject_id in sorted(needed):
            end = self._connection.execute(
                update(subjects)
                .where(subjects.c.id == subject_id)
                .values(turn_count=subjects.c.turn_count + needed[subject_id])
                .returning(subjects.c.turn_count)
            ).scalar_one()
            positions[subject_id] = iter(range(end - needed[subject_id], end))
        return positions


def _scope(turn: NewTurn, session: LockedSession) -> UUID | None:
    """The id of the subject or session whose earlier turns are the turn's baseline; None where it may have none."""
    if turn.recording_id is None or not session.consent.keep_audio_summary:
        return None
    return session.subject_id if session.subject_id is not None and turn.role.is_subject else session.id


def _row(turn: NewTurn, session: LockedSession, index: int, positions: Mapping[UUID, Iterator[int]]) -> dict[str, Any]:
    scope_id = _scope(turn, session)
    return {
        "session_id": turn.session_id,
        "index": index,
        "scope_id": scope_id,
        "position": None if scope_id is None else next(positions.get(scope_id, iter((index,)))),
        "speaker": turn.speaker,
        "role": turn.role.value,
        "text": turn.text,
        "recording_id": turn.recording_id,
        "occurred_at": turn.occurred_at or session.now,
        "start": turn.start,
        "end": turn.end,
        "context": turn.context,
    }


def _analyzed_turns() -> Select[Any]:
    """Select turns with tenant, job, transcript and newest prediction; columns are prefixed by the part's name."""
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
