"""Routes of recordings: a recording is accepted at once, and a worker splits it into turns."""

from typing import Any
from uuid import UUID

from fastapi import APIRouter, Request, Response

from services.api.dependencies import ReadKey, ResourcesDep, WriteKey
from services.api.idempotency import respond
from services.api.multipart import AUDIO_FIELD
from services.api.routing import ApiRoute
from services.api.schemas.recording import RecordingIn, RecordingOut

router = APIRouter(prefix="/v1", tags=["recordings"], route_class=ApiRoute)

_FIELDS = RecordingIn.model_json_schema()
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
    return respond(request, await resources.ingest.accept_form(request, key, session_id, RecordingIn))


@router.get("/recordings/{recording_id}", summary="Read the progress of a recording")
def read_recording(recording_id: UUID, resources: ResourcesDep, key: ReadKey) -> RecordingOut:
    with resources.database.transaction() as transaction:
        return RecordingOut.of(transaction.recordings.progress(key.tenant_id, recording_id))
