"""Turns: accepted at once, analysed by the workers."""

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile

from services.api.body import parse_audio_form, parse_json_turn
from services.api.dependencies import ReadKey, Res, Resources, WriteKey
from services.api.idempotency import identify, read_key, respond
from services.api.ingest import TurnRequest
from services.api.routing import ApiRoute
from services.api.schemas import TurnIn, TurnOut
from services.api.uploads import SOUND_FORMATS, find_session, probe_upload, store_upload
from shared.audio.decoder import AudioInfo
from shared.domain.access import ApiKey
from shared.domain.idempotency import Answer
from shared.domain.job import Message
from shared.domain.recording import Recording
from shared.domain.session import Session
from shared.domain.turn import NewTurn
from shared.errors import InvalidRequest, TenorError, TextTooLong
from shared.observability.logging import current_context
from shared.observability.tracing import current_traceparent
from shared.store.database import Transaction

router = APIRouter(prefix="/v1", tags=["turns"], route_class=ApiRoute)

_FIELDS = TurnIn.model_json_schema(ref_template="#/components/schemas/{model}")
_FIELDS.pop("$defs")  # the answer's schema brings them into the components

_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": _FIELDS},
            "multipart/form-data": {
                "schema": {
                    **_FIELDS,
                    "examples": [{"audio": "@call.wav", "speaker": "Ada", "role": "customer"}],
                    "required": ["audio"],
                    "properties": {
                        "audio": {
                            "type": "string",
                            "format": "binary",
                            "description": SOUND_FORMATS,
                        },
                        **_FIELDS["properties"],
                    },
                }
            },
        },
    }
}


@router.post(
    "/sessions/{session_id}/turns",
    status_code=202,
    response_model=TurnOut,
    summary="Add a turn: a text, a recording, or both",
    openapi_extra=_BODY,
)
async def add_turn(session_id: UUID, request: Request, res: Res, key: WriteKey) -> Response:
    body = await parse_json_turn(request)
    if body is not None:
        answer = await res.written.do(_written(request, res, key, session_id, body))
    else:
        read_key(request)  # a malformed one is refused before its recording is read
        session = await run_in_threadpool(find_session, res, key, session_id)
        async with parse_audio_form(request, TurnIn) as (body, upload):
            arrival = _arrival(res, session.tenant_id, session.id, body)
            info = await probe_upload(res, upload, res.settings.max_turn_s)
            answer = await run_in_threadpool(_accept_sound, request, res, key, session, arrival, body, upload, info)
    return respond(request, answer)


@router.get("/turns/{turn_id}", summary="Read a turn and its prediction")
async def read_turn(
    turn_id: UUID,
    request: Request,
    res: Res,
    key: ReadKey,
    wait: Annotated[float, Query(ge=0, le=30, description="seconds to wait for the turn to be done")] = 0,
) -> TurnOut:
    deadline = time.monotonic() + wait
    found = await res.reading.turn(key, turn_id)
    if wait and not found.job.ended:
        await res.reading.wait(turn_id, deadline, request.is_disconnected)
        found = await res.reading.turn_again(key, turn_id)
    return TurnOut.of(found)


def _written(request: Request, res: Resources, key: ApiKey, session_id: UUID, body: TurnIn) -> TurnRequest:
    if body.text is None or not body.text.strip():
        raise InvalidRequest("text: a turn without a recording needs a text")
    return replace(_arrival(res, key.tenant_id, session_id, body), idempotent=identify(request, key, body))


def _arrival(res: Resources, tenant_id: UUID, session_id: UUID, body: TurnIn) -> TurnRequest:
    if body.text is not None and len(body.text) > res.settings.max_text_chars:
        raise TextTooLong(f"the text has {len(body.text)} characters; {res.settings.max_text_chars} are allowed")
    new = NewTurn(tenant_id, session_id, body.speaker, body.role, body.text, occurred_at=body.occurred_at)
    correlation_id = current_context().get("correlation_id")
    return TurnRequest(new, body.lane, correlation_id=correlation_id, traceparent=current_traceparent())


def _accept_sound(
    request: Request,
    res: Resources,
    key: ApiKey,
    session: Session,
    arrival: TurnRequest,
    body: TurnIn,
    upload: UploadFile,
    info: AudioInfo,
) -> Answer:
    def add(transaction: Transaction, recording: Recording) -> tuple[Answer, Sequence[Message]]:
        spoken = replace(arrival, turn=replace(arrival.turn, recording_id=recording.id))
        (answer,), messages = res.accepting.store(transaction, [spoken])
        if isinstance(answer, TenorError):
            raise answer  # the recording goes with it
        return answer, messages

    return store_upload(res, session, upload, info, identify(request, key, body, upload), add)
