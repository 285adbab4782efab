"""The order in which turns are analysed: a turn waits for earlier turns of its session and of its speaker.

A turn with audio waits until every earlier turn with audio of its session has ended, because their transcripts are its
context, and until every earlier turn of its speaker has ended, because their audio is its baseline; those may be of
another session of the same subject. A turn without audio waits only for the turns that are transcribed for its context.
Only so is a turn analysed with the same context and baseline whenever it is analysed.

A turn gets its index and position under a lock on the session, or the subject, that is held until the commit. So no
turn becomes visible before an earlier one. And no turn is claimed before the earlier ones have ended, so it is enough
to ask for the nearest one of the session and the nearest one of the speaker.
"""

from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, ScalarSelect, Select, case, or_, select

from shared.domain.job import OPEN, JobStatus
from shared.domain.turn import MAX_CONTEXT_TURNS
from shared.store.tables import jobs, sessions, turns

_turn, _other, _other_job = turns.alias("turn"), turns.alias("other"), jobs.alias("other_job")
_SAME_SESSION = (_other.c.session_id == _turn.c.session_id) & _other.c.recording_id.is_not(None)
_SAME_SPEAKER = (
    (_other.c.scope_id == _turn.c.scope_id) & (_other.c.speaker == _turn.c.speaker) & (_other.c.role == _turn.c.role)
)
_ORDERS = ((_SAME_SESSION, "index"), (_SAME_SPEAKER, "position"))


def is_blocked(context_turns: int = 0) -> ColumnElement[bool]:
    """Return the condition, in a statement on `jobs`, that the job's turn waits for an earlier one.

    Args:
        context_turns: how many turns before a turn the bundle reads as context. With 0, no turn without audio waits.
    """
    blocked = _is_spoken_and_blocked()
    return or_(blocked, _is_written_and_blocked(context_turns)) if context_turns else blocked


def _is_spoken_and_blocked() -> ColumnElement[bool]:
    before = [
        _nearest(_other_job.c.status, same & (_other.c[place] < _turn.c[place]), _other.c[place].desc())
        for same, place in _ORDERS
    ]
    unfinished = or_(*(status.in_(OPEN) for status in before))
    with_audio = (_turn.c.id == jobs.c.turn_id) & _turn.c.recording_id.is_not(None)
    return select(_turn.c.id).where(with_audio, unfinished).correlate(jobs).exists()


def _is_written_and_blocked(context_turns: int) -> ColumnElement[bool]:
    before = _other.c.index.between(_turn.c.index - context_turns, _turn.c.index - 1)
    unfinished = (
        select(_other.c.id)
        .join(_other_job, _other_job.c.turn_id == _other.c.id)
        .where(_SAME_SESSION, _other.c.text.is_(None), before, _other_job.c.status.in_(OPEN))
        .correlate(_turn)
        .exists()
    )
    without_audio = (_turn.c.id == jobs.c.turn_id) & _turn.c.recording_id.is_(None) & _turn.c.context
    of_turn = (sessions.c.id == _turn.c.session_id) & sessions.c.context
    return select(_turn.c.id).join(sessions, of_turn).where(without_audio, unfinished).correlate(jobs).exists()


def unblocked_by(turn_id: UUID) -> Select[Any]:
    """Return the statement for the queued jobs that may have waited for a turn, as one row, with null for none.

    There is no row for a turn without audio, which no other waits for.
    """
    # Of the same session only the next turn can start; it unblocks those behind it when it ends itself.
    in_other_session = case((_other.c.session_id != _turn.c.session_id, _other_job.c.id))
    queued = _other_job.c.status == JobStatus.queued.value
    after = [
        _nearest(wanted, same & (_other.c[place] > _turn.c[place]) & queued, _other.c[place])
        for wanted, (same, place) in zip((_other_job.c.id, in_other_session), _ORDERS, strict=True)
    ]
    written = (_other.c.session_id == _turn.c.session_id) & _other.c.recording_id.is_(None) & _other.c.context & queued
    after += [
        _nearest(_other_job.c.id, written & (_other.c.index == _turn.c.index + distance), _other.c.index)
        for distance in range(1, MAX_CONTEXT_TURNS + 1)
    ]
    return select(*after).where(_turn.c.id == turn_id, _turn.c.recording_id.is_not(None))


def _nearest(wanted: ColumnElement[Any], where: ColumnElement[bool], order: ColumnElement[Any]) -> ScalarSelect[Any]:
    others = _other.join(_other_job, _other_job.c.turn_id == _other.c.id)
    return select(wanted).select_from(others).where(where).order_by(order).limit(1).correlate(_turn).scalar_subquery()
