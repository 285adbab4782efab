"""Which turn is read before which: the words after those of its session, the voice after its speaker's own.

A spoken turn waits until every spoken turn before it in its session has ended, and every turn before it of its voice,
which may be of another session of the same subject. Only so is it read against the same turns whenever it is read. A
turn's place is given under a lock on the session, or the subject, that is held until it is committed, so that none
appears before one that can be seen. And none is taken up before those before it have ended: to ask for the nearest in
each row is to ask for all.
"""

from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, ScalarSelect, Select, case, or_, select

from shared.domain.job import OPEN, JobStatus
from shared.store.tables import jobs, turns

_mine, _other, _its = turns.alias("mine"), turns.alias("other"), jobs.alias("its")
_SAME_SESSION = (_other.c.session_id == _mine.c.session_id) & _other.c.recording_id.is_not(None)
_SAME_VOICE = (
    (_other.c.scope_id == _mine.c.scope_id) & (_other.c.speaker == _mine.c.speaker) & (_other.c.role == _mine.c.role)
)
_ROWS = ((_SAME_SESSION, "index"), (_SAME_VOICE, "position"))


def is_blocked() -> ColumnElement[bool]:
    """Whether a job's turn has to wait for another, in a statement on `jobs`."""
    before = [
        _nearest(_its.c.status, same & (_other.c[place] < _mine.c[place]), _other.c[place].desc())
        for same, place in _ROWS
    ]
    unfinished = or_(*(status.in_(OPEN) for status in before))
    spoken = (_mine.c.id == jobs.c.turn_id) & _mine.c.recording_id.is_not(None)
    return select(_mine.c.id).where(spoken, unfinished).correlate(jobs).exists()


def unblocked_by(turn_id: UUID) -> Select[Any]:
    """One row, or none for a turn that is not spoken: the queued jobs that may have waited for it, null for none."""
    # The next of the same session is sent for as such; who is behind it there will be when that one has ended.
    elsewhere = case((_other.c.session_id != _mine.c.session_id, _its.c.id))
    queued = _its.c.status == JobStatus.queued.value
    after = [
        _nearest(wanted, same & (_other.c[place] > _mine.c[place]) & queued, _other.c[place])
        for wanted, (same, place) in zip((_its.c.id, elsewhere), _ROWS, strict=True)
    ]
    return select(*after).where(_mine.c.id == turn_id, _mine.c.recording_id.is_not(None))


def _nearest(wanted: ColumnElement[Any], where: ColumnElement[bool], order: ColumnElement[Any]) -> ScalarSelect[Any]:
    others = _other.join(_its, _its.c.turn_id == _other.c.id)
    return select(wanted).select_from(others).where(where).order_by(order).limit(1).correlate(_mine).scalar_subquery()
