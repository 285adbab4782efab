"""Long recordings: accepted at once, then cut into turns by the workers."""

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from fastapi import APIRouter, Request, Response
from fastapi.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile

from services.api.body import parse_audio_form
from services.api.dependencies import ReadKey, Res, Resources, WriteKey
from services.api.idempotency import identify, read_key, respond
from services.api.routing import ApiRoute
from services.api.schemas import RecordingIn, RecordingOut
from services.api.uploads import SOUND_FORMATS, find_session, probe_upload, store_upload
from shared.audio.decoder import AudioInfo
from shared.domain.access import ApiKey
from shared.domain.idempotency import Answer
from shared.domain.job import JobStatus, Lane, Message, NewJob
from shared.domain.recording import Recording, RecordingProgress
from shared.domain.session import Session
from shared.errors import InvalidRequest, SessionClosed
from shared.observability.logging import current_context
from shared.observability.tracing import current_traceparent
from shared.store.database import Transaction

router = APIRouter(prefix="/v1", tags=["recordings"], route_class=ApiRoute)

_FIELDS = RecordingIn.model_json_schema()
_FIELDS.pop("$defs")
_FIELDS["properties"]["voices"].pop("contentSchema")  # it is told in words, and by an example
_AUDIO = {"type": "string", "format": "binary", "description": SOUND_FORMATS}
_FORM = {**_FIELDS, "required": ["audio"], "properties": {"audio": _AUDIO, **_FIELDS["properties"]}}
_BODY: dict[str, Any] = {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": _FORM}}}}


@router.post(
    "/sessions/{session_id}/recordings",
    status_code=202,
    response_model=RecordingOut,
    summary="Add a long recording, to be cut into turns",
    openapi_extra=_BODY,
)
async def add_recording(session_id: UUID, request: Request, res: Res, key: WriteKey) -> Response:
    read_key(request)  # a malformed one is refused before its recording is read
    session = await run_in_threadpool(find_session, res, key, session_id)
    async with parse_audio_form(request, RecordingIn) as (body, upload):
        if session.closed_at is not None:
            raise SessionClosed(f"session {session.id} was closed at {session.closed_at.isoformat()}")
        info = await probe_upload(res, upload, res.settings.max_recording_s)
        answer = await run_in_threadpool(_accept, request, res, key, session, body, upload, info)
    return respond(request, answer)


@router.get("/recordings/{recording_id}", summary="Read how far a long recording is")
def read_recording(recording_id: UUID, res: Res, key: ReadKey) -> RecordingOut:
    with res.database.transaction() as transaction:
        return RecordingOut.of(transaction.recordings.progress(key.tenant_id, recording_id))


def _accept(
    request: Request,
    res: Resources,
    key: ApiKey,
    session: Session,
    body: RecordingIn,
    upload: UploadFile,
    info: AudioInfo,
) -> Answer:
    count = len(body.voices)
    if count not in (1, info.channels):
        raise InvalidRequest(f"voices: name one voice, or one for each of the {info.channels} channels, not {count}")

    def add(transaction: Transaction, recording: Recording) -> tuple[Answer, Sequence[Message]]:
        transaction.recordings.add_long(recording.id, body.voices, body.lane, body.began_at)
        new = NewJob(
            lane=Lane.ingest,
            recording_id=recording.id,
            correlation_id=current_context().get("correlation_id"),
            traceparent=current_traceparent(),
        )
        ((job, message),) = transaction.jobs.enqueue([new], lease=res.settings.lease)
        progress = RecordingProgress(recording=recording, job=job, turns=dict.fromkeys(JobStatus, 0))
        content = RecordingOut.of(progress).model_dump_json()
        answer = Answer(202, content, f"/v1/recordings/{recording.id}", session_id=session.id)
        return answer, [message] if message else []

    return store_upload(res, session, upload, info, identify(request, key, body, upload), add)
