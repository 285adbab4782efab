"""Routes of turns: a turn is accepted at once, and a worker analyses it."""

import time
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Query, Request, Response

from services.api.dependencies import ReadKey, ResourcesDep, WriteKey
from services.api.idempotency import identify, respond
from services.api.ingest import IngestRequest
from services.api.multipart import AUDIO_FIELD, parse_json_turn
from services.api.routing import ApiRoute
from services.api.schemas.turn import TurnIn, TurnOut

router = APIRouter(prefix="/v1", tags=["turns"], route_class=ApiRoute)

_FIELDS = TurnIn.model_json_schema(ref_template="#/components/schemas/{model}")
_FIELDS.pop("$defs")  # the schema of the response defines them among the components
_FORM = {
    **_FIELDS,
    "examples": [{"audio": "@call.wav", "speaker": "Ada", "role": "customer"}],
    "required": ["audio"],
    "properties": {"audio": AUDIO_FIELD, **_FIELDS["properties"]},
}
_CONTENT = {"application/json": {"schema": _FIELDS}, "multipart/form-data": {"schema": _FORM}}
_BODY: dict[str, Any] = {"requestBody": {"required": True, "content": _CONTENT}}


@router.post(
    "/sessions/{session_id}/turns",
    status_code=202,
    response_model=TurnOut,
    summary="Add a turn: a text, a recording, or both",
    openapi_extra=_BODY,
)
async def add_turn(session_id: UUID, request: Request, resources: ResourcesDep, key: WriteKey) -> Response:
    body = await parse_json_turn(request)
    if body is None:
        return respond(request, await resources.ingest.accept_form(request, key, session_id, TurnIn))
    resources.ingest.check_text(body)
    turn = IngestRequest(key.tenant_id, session_id, body, identify(request, key, body))
    return respond(request, await resources.turn_batcher.submit(turn))


@router.get("/turns/{turn_id}", summary="Read a turn and its prediction")
async def read_turn(
    turn_id: UUID,
    request: Request,
    resources: ResourcesDep,
    key: ReadKey,
    wait: Annotated[float, Query(ge=0, le=30, description="seconds to wait for the turn to end")] = 0,
) -> TurnOut:
    deadline = time.monotonic() + wait
    found = await resources.turn_reader.read(key, turn_id)
    if wait and not found.job.ended:
        await resources.turn_reader.wait(turn_id, deadline, request.is_disconnected)
        found = await resources.turn_reader.read_again(key, turn_id)
    return TurnOut.of(found)
