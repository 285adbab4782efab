"""Routes of recordings: a recording is accepted at once, and a worker splits it into turns."""

from typing import Any
from uuid import UUID

from fastapi import APIRouter, Request, Response
from fastapi.concurrency import run_in_threadpool

from services.api.dependencies import ReadKey, ResourcesDep, WriteKey
from services.api.idempotency import identify, read_key, respond
from services.api.ingest import IngestRequest
from services.api.multipart import AUDIO_FIELD, parse_audio_form
from services.api.routing import ApiRoute
from services.api.schemas.recording import RecordingIn, RecordingOut

router = APIRouter(prefix="/v1", tags=["recordings"], route_class=ApiRoute)

_FIELDS = RecordingIn.model_json_schema()
_FIELDS.pop("$defs")
_FIELDS["properties"]["channels"].pop("contentSchema")  # the description and the example say what it holds
_FORM = {**_FIELDS, "required": ["audio"], "properties": {"audio": AUDIO_FIELD, **_FIELDS["properties"]}}
_BODY: dict[str, Any] = {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": _FORM}}}}


@router.post(
    "/sessions/{session_id}/recordings",
    status_code=202,
    response_model=RecordingOut,
    summary="Add a recording, which is split into turns",
    openapi_extra=_BODY,
)
async def add_recording(session_id: UUID, request: Request, resources: ResourcesDep, key: WriteKey) -> Response:
    read_key(request)  # a malformed key is refused before the recording is received
    await run_in_threadpool(resources.ingest.check_session, key.tenant_id, session_id)
    async with parse_audio_form(request, RecordingIn) as (body, upload):
        idempotent = await run_in_threadpool(identify, request, key, body, upload)
        recording = IngestRequest(key.tenant_id, session_id, body, idempotent)
        answer = await resources.ingest.accept_upload(recording, upload)
    return respond(request, answer)


@router.get("/recordings/{recording_id}", summary="Read the progress of a recording")
def read_recording(recording_id: UUID, resources: ResourcesDep, key: ReadKey) -> RecordingOut:
    with resources.database.transaction() as transaction:
        return RecordingOut.of(transaction.recordings.progress(key.tenant_id, recording_id))
