"""Turns: accepted at once, analysed by the workers."""

import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile

from services.api.accepting import Arrival
from services.api.body import spoken_turn, written_turn
from services.api.dependencies import Reader, Res, Resources, Writer
from services.api.schemas import TurnIn, TurnOut
from shared import audio
from shared.blobs import new_uri
from shared.domain.access import ApiKey
from shared.domain.conversation import NewTurn, Session
from shared.domain.history import AnalyzedTurn
from shared.domain.job import Message
from shared.errors import AudioTooLong, InvalidRequest, TenorError, TextTooLong
from shared.telemetry import ids
from shared.tracing import traceparent

router = APIRouter(prefix="/v1", tags=["turns"])

_UPLOAD_PATIENCE = timedelta(hours=1)
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
                            "description": "WAV, FLAC, MP3, Ogg, Opus, M4A or WebM; any rate, mono or stereo",
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
    summary="Add a turn: a text, a recording, or both",
    openapi_extra=_BODY,
)
async def add_turn(session_id: UUID, request: Request, response: Response, res: Res, key: Writer) -> TurnOut:
    body = await written_turn(request)
    if body is not None:
        accepted = await res.written.do(_written(res, key, session_id, body))
    else:
        session = await run_in_threadpool(_session, res, key, session_id)
        async with spoken_turn(request) as (body, upload):
            accepted = await run_in_threadpool(_accept_sound, res, session, body, upload)
    response.headers["Location"] = f"/v1/turns/{accepted.turn.id}"
    return TurnOut.of(accepted)


@router.get("/turns/{turn_id}", summary="Read a turn and its prediction")
async def read_turn(
    turn_id: UUID,
    request: Request,
    res: Res,
    key: Reader,
    wait: Annotated[float, Query(ge=0, le=30, description="seconds to wait for the turn to be done")] = 0,
) -> TurnOut:
    deadline = time.monotonic() + wait
    found = await res.reading.turn(key, turn_id)
    if wait and not found.job.ended:
        await res.reading.wait(turn_id, deadline, request.is_disconnected)
        found = await res.reading.turn_again(key, turn_id)
    return TurnOut.of(found)


def _session(res: Resources, key: ApiKey, session_id: UUID) -> Session:
    with res.database.transaction() as transaction:
        return transaction.conversations.session(key.tenant_id, session_id)


def _written(res: Resources, key: ApiKey, session_id: UUID, body: TurnIn) -> Arrival:
    if body.text is None or not body.text.strip():
        raise InvalidRequest("text: a turn without a recording needs a text")
    return _arrival(res, key.tenant_id, session_id, body)


def _arrival(res: Resources, tenant_id: UUID, session_id: UUID, body: TurnIn) -> Arrival:
    if body.text is not None and len(body.text) > res.settings.max_text_chars:
        raise TextTooLong(f"the text has {len(body.text)} characters; {res.settings.max_text_chars} are allowed")
    new = NewTurn(tenant_id, session_id, body.speaker, body.role, body.text, occurred_at=body.occurred_at)
    return Arrival(new, body.lane, ids().get("correlation_id"), traceparent())


def _accept_sound(res: Resources, session: Session, body: TurnIn, upload: UploadFile) -> AnalyzedTurn:
    arrival = _arrival(res, session.tenant_id, session.id, body)
    info = audio.probe(upload.file)
    if info.duration_s is not None and info.duration_s > res.settings.max_turn_s:
        raise AudioTooLong(
            f"the recording lasts {info.duration_s:.0f} s; a turn may last {res.settings.max_turn_s:.0f} s"
        )
    uri = new_uri(session.tenant_id, session.id)
    with res.database.transaction() as transaction:
        transaction.recordings.announce(uri, _UPLOAD_PATIENCE)
    try:
        accepted, messages = _claim(res, session, arrival, upload, uri, info)
    except TenorError:
        # Sound that became no turn goes at once; where it cannot, it goes once its announcement is old.
        res.delete_sound([uri])
        raise
    res.sending.send(messages)
    return accepted


def _claim(
    res: Resources, session: Session, arrival: Arrival, upload: UploadFile, uri: str, info: audio.AudioInfo
) -> tuple[AnalyzedTurn, Sequence[Message]]:
    sha256 = res.blobs.put(uri, upload.file)
    with res.database.transaction() as transaction:
        transaction.conversations.hold(session.tenant_id, session.id)
        recording = transaction.recordings.claim(
            session.id,
            uri=uri,
            sha256=sha256,
            media_type=upload.content_type or "application/octet-stream",
            duration_s=info.duration_s,
            channels=info.channels,
            retention=res.settings.audio_retention if session.consent.retain_audio else None,
        )
        heard = replace(arrival, turn=replace(arrival.turn, recording_id=recording.id))
        (accepted,), messages = res.accepting.store(transaction, [heard])
        if isinstance(accepted, TenorError):
            raise accepted  # the recording goes with it
    return accepted, messages
