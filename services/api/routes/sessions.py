"""Routes of sessions: a session holds one conversation and its history."""

import base64
import binascii
import logging
from collections.abc import Sequence
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Query, Request, Response

from services.api.dependencies import DeleteKey, ReadKey, Resources, ResourcesDep, WriteKey
from services.api.idempotency import identify, respond
from services.api.routing import ApiRoute
from services.api.schemas.session import HistoryOut, SessionIn, SessionOut
from services.api.schemas.turn import TurnOut
from shared.domain.idempotency import Answer
from shared.errors import InvalidRequest, Unavailable
from shared.storage.staging import delete_blobs

_LARGEST_INDEX = 2**31 - 1
_MAX_DELETED_AT_ONCE = 100
_log = logging.getLogger(__name__)

router = APIRouter(prefix="/v1/sessions", tags=["sessions"], route_class=ApiRoute)


@router.post("", status_code=201, response_model=SessionOut, summary="Open a session")
def create_session(body: SessionIn, request: Request, resources: ResourcesDep, key: WriteKey) -> Response:
    idempotent = identify(request, key, body)
    with resources.database.transaction() as transaction:
        answer = transaction.idempotency.find(idempotent)
        if answer is None:
            session = transaction.sessions.create(
                key.tenant_id,
                body.consent,
                body.subject_ref,
                body.external_ref,
                body.language_hint,
                context=body.context,
            )
            content = SessionOut.of(session).model_dump_json()
            answer = Answer(201, content, f"/v1/sessions/{session.id}", session_id=session.id)
            transaction.idempotency.save((idempotent, answer))
    return respond(request, answer)


@router.get("/{session_id}", summary="Read a session")
def read_session(session_id: UUID, resources: ResourcesDep, key: ReadKey) -> SessionOut:
    with resources.database.transaction() as transaction:
        return SessionOut.of(transaction.sessions.get(key.tenant_id, session_id))


@router.delete("/{session_id}", status_code=204, summary="Delete a session with its turns and recordings")
def delete_session(session_id: UUID, resources: ResourcesDep, key: DeleteKey) -> None:
    with resources.database.transaction() as transaction:
        uris = transaction.sessions.delete(key.tenant_id, session_id)
        transaction.accounts.audit("session.delete", (key, session_id))
    _delete_audio(uris, resources)


@router.get("/{session_id}/history", summary="Read a session's turns, in order")
def read_history(
    session_id: UUID,
    resources: ResourcesDep,
    key: ReadKey,
    cursor: Annotated[str | None, Query(description="`next_cursor` of the previous page")] = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
) -> HistoryOut:
    after = -1 if cursor is None else _index(cursor)
    with resources.database.transaction() as transaction:
        transaction.sessions.get(key.tenant_id, session_id)
        found = transaction.turns.history(key.tenant_id, session_id, after, limit + 1)
        transaction.accounts.audit("history.read", (key, session_id))
    page = [TurnOut.of(turn) for turn in found[:limit]]
    return HistoryOut(turns=page, next_cursor=_cursor(page[-1].index) if len(found) > limit else None)


def _delete_audio(uris: Sequence[str], resources: Resources) -> None:
    """Delete the audio of a deleted session before the response is sent. The workers delete what is left."""
    try:
        delete_blobs(uris[:_MAX_DELETED_AT_ONCE], resources.database, resources.blobs)
    except Unavailable as error:
        _log.warning("the deletion is left to the workers: %s", error.detail)


def _cursor(index: int) -> str:
    return base64.urlsafe_b64encode(f"turn:{index}".encode()).decode()


def _index(cursor: str) -> int:
    try:
        word, _, index = base64.urlsafe_b64decode(cursor.encode()).decode().partition(":")
        if word == "turn" and index.isdecimal() and int(index) <= _LARGEST_INDEX:
            return int(index)
    except (binascii.Error, ValueError):
        pass
    raise InvalidRequest("cursor: send the next_cursor of the previous page unchanged")
