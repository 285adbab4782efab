"""Uploaded recordings: stored, then claimed by what they were sent for."""

from collections.abc import Callable, Sequence
from datetime import timedelta
from uuid import UUID

from fastapi.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile

from services.api.dependencies import Resources
from shared.audio.decoder import AudioInfo
from shared.domain.access import ApiKey
from shared.domain.idempotency import Answer, IdempotentRequest
from shared.domain.job import Message
from shared.domain.recording import Recording
from shared.domain.session import Session
from shared.errors import AudioTooLong, IdempotencyKeyInProgress
from shared.storage.blobs import new_uri
from shared.storage.staging import staged_upload
from shared.store.database import Transaction

SOUND_FORMATS = "WAV, FLAC, MP3, Ogg, Opus, M4A or WebM; any rate, mono or stereo"
_PATIENCE = timedelta(hours=1)


def find_session(res: Resources, key: ApiKey, session_id: UUID) -> Session:
    """Raises SessionNotFound, before anything is uploaded in vain."""
    with res.database.transaction() as transaction:
        return transaction.sessions.get(key.tenant_id, session_id)


async def probe_upload(res: Resources, upload: UploadFile, longest_s: float) -> AudioInfo:
    """Read a recording's duration and channels. It waits for its turn without taking a thread.

    Raises:
        AudioTooLong: it lasts longer than `longest_s` seconds.
        AudioError: it is empty, or no recording.
        Unavailable: no process that reads recordings can be started.
    """
    async with res.probe_slots:
        info = await run_in_threadpool(res.audio.probe, upload.file, longest_s)
    if info.duration_s is not None and info.duration_s > longest_s:
        raise AudioTooLong(f"the recording lasts {info.duration_s:.0f} s; {longest_s:.0f} s are allowed here")
    return info


def store_upload(
    res: Resources,
    session: Session,
    upload: UploadFile,
    info: AudioInfo,
    idempotent: IdempotentRequest | None,
    accept: Callable[[Transaction, Recording], tuple[Answer, Sequence[Message]]],
) -> Answer:
    """Store a recording, and in one transaction with its row what it is for; then publish the messages of that.

    If that fails, the recording is deleted. A repeated request stores nothing and returns the first answer.

    Raises:
        IdempotencyKeyInProgress: the same request is being carried out.
        TenorError: as the store of recordings or `accept` raises.
    """
    earlier = _find_answer(res, idempotent)
    if earlier is not None:
        return earlier
    uri = new_uri(session.tenant_id, session.id)
    with (
        staged_upload(upload.file, uri, _PATIENCE, res.database, res.blobs) as sha256,
        res.database.transaction() as transaction,
    ):
        if transaction.idempotency.find(idempotent) is not None:
            raise IdempotencyKeyInProgress("the same request was carried out while this one sent its recording")
        transaction.sessions.lock_session(session.tenant_id, session.id)
        recording = transaction.recordings.add(
            session.id,
            uri=uri,
            sha256=sha256,
            media_type=upload.content_type or "application/octet-stream",
            duration_s=info.duration_s,
            channels=info.channels,
            retention=res.settings.audio_retention if session.consent.retain_audio else None,
        )
        answer, messages = accept(transaction, recording)
        transaction.idempotency.save((idempotent, answer))
    res.sending.send(messages)
    return answer


def _find_answer(res: Resources, idempotent: IdempotentRequest | None) -> Answer | None:
    if idempotent is None:
        return None
    with res.database.transaction() as transaction:
        return transaction.idempotency.find(idempotent)
