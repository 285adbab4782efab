"""Accepts turns and recordings: stages an upload, stores everything in one transaction, and publishes the jobs."""

import asyncio
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import timedelta
from uuid import UUID

from fastapi import Request
from fastapi.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile

from services.api.idempotency import identify, read_key
from services.api.multipart import parse_audio_form
from services.api.publisher import Publisher
from services.api.schemas.recording import RecordingIn, RecordingOut
from services.api.schemas.turn import TurnIn, TurnOut
from services.validation import check_text_length
from shared.audio.decoder import AudioInfo
from shared.audio.sandbox import AudioSandbox
from shared.domain.access import ApiKey
from shared.domain.idempotency import Answer, IdempotentRequest
from shared.domain.job import Job, JobStatus, Lane, Message, NewJob
from shared.domain.recording import Recording, RecordingProgress
from shared.domain.session import LockedSession
from shared.domain.turn import AnalyzedTurn, NewTurn, Turn
from shared.errors import AudioTooLong, IdempotencyKeyInProgress, InvalidRequest, TenorError
from shared.observability.logging import current_context
from shared.observability.tracing import current_traceparent
from shared.settings import Settings
from shared.storage.blobs import Blobs, new_uri
from shared.storage.staging import staged_upload
from shared.store.database import Database, Transaction

_STAGING_EXPIRES_AFTER = timedelta(hours=1)


@dataclass(frozen=True)
class StagedAudio:
    """An audio file that is stored as a blob, and that no row refers to yet."""

    uri: str
    sha256: str
    media_type: str
    duration_s: float | None
    channel_count: int | None


@dataclass(frozen=True)
class IngestRequest:
    """A turn or a recording that a client has sent.

    Attributes:
        idempotent: None if the request has no `Idempotency-Key`.
        audio: the uploaded file, once it is staged; None for a turn that is text alone.
        correlation_id: the id of the HTTP request, which the logs of the job repeat.
        traceparent: the span of the HTTP request, to which the trace of the job belongs (W3C Trace Context).
    """

    tenant_id: UUID
    session_id: UUID
    body: TurnIn | RecordingIn
    idempotent: IdempotentRequest | None = None
    audio: StagedAudio | None = None
    correlation_id: str | None = field(default_factory=lambda: current_context().get("correlation_id"))
    traceparent: str | None = field(default_factory=current_traceparent)


class Ingest:
    """Accepts turns and recordings. Everything that a client sends to be analysed is stored by `accept`.

    Args:
        audio: runs the probes of uploads; as many run at once as it has child processes.
    """

    def __init__(
        self, settings: Settings, database: Database, blobs: Blobs, audio: AudioSandbox, publisher: Publisher
    ) -> None:
        self._settings = settings
        self._database = database
        self._blobs = blobs
        self._audio = audio
        self._probe_slots = asyncio.Semaphore(audio.children)
        self._publisher = publisher

    def accept(self, requests: Sequence[IngestRequest]) -> list[Answer | TenorError]:
        """Store turns and recordings with their jobs in one transaction, then publish the jobs.

        Returns:
            For each request its answer, or the error that refuses it. A request that was answered before gets the
            same answer again. The whole batch waits while one of its sessions is being deleted.
        """
        with self._database.transaction() as transaction:
            earlier = transaction.idempotency.find_all([request.idempotent for request in requests])
            new = [request for request, answer in zip(requests, earlier, strict=True) if answer is None]
            answers, messages = self._store(transaction, new)
            answered = zip(new, answers, strict=True)
            transaction.idempotency.save(
                *((request.idempotent, answer) for request, answer in answered if isinstance(answer, Answer))
            )
        self._publisher.publish(messages)
        remaining = iter(answers)
        return [next(remaining) if answer is None else answer for answer in earlier]

    async def accept_form(
        self, request: Request, key: ApiKey, session_id: UUID, model: type[TurnIn] | type[RecordingIn]
    ) -> Answer:
        """Receive a form with an audio file, probe and stage the file, and accept its turn or recording.

        Raises:
            SessionNotFound: the tenant has no such session. The form is then not received.
            InvalidRequest: the `Idempotency-Key` is malformed, the form is cut off, a field is not valid, or the
                recording names another number of channels than the file has.
            UnsupportedMediaType: the body is not a form, or its file is declared as something else than audio.
            AudioTooLong: the audio is longer than the settings allow.
            TextTooLong: likewise, for the text of a turn.
            AudioError: the file is empty, or it is not audio.
            IdempotencyKeyInProgress: the same request is being carried out.
            TenorError: whatever else `accept` or the blob store refuses it with; the file is then deleted.
        """
        read_key(request)
        await run_in_threadpool(self._check_session, key.tenant_id, session_id)
        async with parse_audio_form(request, model) as (body, upload):
            if isinstance(body, TurnIn):
                self.check_text(body)
            idempotent = await run_in_threadpool(identify, request, key, body, upload)
            ingest_request = IngestRequest(key.tenant_id, session_id, body, idempotent)
            info = await self._probe_upload(upload, body)
            return await run_in_threadpool(self._stage_and_accept, ingest_request, upload, info)

    def check_text(self, body: TurnIn) -> None:
        """Raise TextTooLong if the text of a turn is longer than the settings allow."""
        if body.text is not None:
            check_text_length(body.text, self._settings.api.max_text_chars)

    def _check_session(self, tenant_id: UUID, session_id: UUID) -> None:
        with self._database.transaction() as transaction:
            transaction.sessions.get(tenant_id, session_id)

    async def _probe_upload(self, upload: UploadFile, body: TurnIn | RecordingIn) -> AudioInfo:
        """Return the duration and the number of channels of an audio file."""
        settings = self._settings
        limit_s = settings.audio.max_turn_s if isinstance(body, TurnIn) else settings.audio.max_recording_s
        async with self._probe_slots:  # requests wait here, on the event loop, and not in a thread each
            info = await run_in_threadpool(self._audio.probe, upload.file, limit_s)
        if info.duration_s is not None and info.duration_s > limit_s:
            raise AudioTooLong(f"the recording lasts {info.duration_s:.0f} s; {limit_s:.0f} s are allowed here")
        if isinstance(body, RecordingIn) and len(body.channels) not in (1, info.channels):
            raise InvalidRequest(
                f"channels: name one speaker, or one for each of the {info.channels} channels, not {len(body.channels)}"
            )
        return info

    def _stage_and_accept(self, request: IngestRequest, upload: UploadFile, info: AudioInfo) -> Answer:
        if request.idempotent is not None:
            with self._database.transaction() as transaction:
                earlier = transaction.idempotency.find(request.idempotent)
            if earlier is not None:
                return earlier  # before the file is stored in vain
        uri = new_uri(request.tenant_id, request.session_id)
        with staged_upload(upload.file, uri, _STAGING_EXPIRES_AFTER, self._database, self._blobs) as sha256:
            media_type = upload.content_type or "application/octet-stream"
            audio = StagedAudio(uri, sha256, media_type, info.duration_s, info.channels)
            (answer,) = self.accept([replace(request, audio=audio)])
            if isinstance(answer, TenorError):
                raise answer
            if answer.replayed:
                raise IdempotencyKeyInProgress("the same request was carried out while this one sent its recording")
        return answer

    def _store(
        self, transaction: Transaction, requests: Sequence[IngestRequest]
    ) -> tuple[list[Answer | TenorError], list[Message]]:
        """Store new requests; return their answers, and the messages to publish after the commit."""
        if not requests:
            return [], []
        sessions = transaction.sessions.lock_open([(request.tenant_id, request.session_id) for request in requests])
        pairs = zip(requests, sessions, strict=True)
        accepted = [(request, session) for request, session in pairs if not isinstance(session, TenorError)]
        stored = self._store_accepted(transaction, accepted)
        new_jobs = [_new_job(request, item) for (request, _), item in zip(accepted, stored, strict=True)]
        queued = transaction.jobs.enqueue(new_jobs, lease=self._settings.jobs.lease)
        answers = iter([_answer(item, job) for item, (job, _) in zip(stored, queued, strict=True)])
        messages = [message for _, message in queued if message is not None]
        return [session if isinstance(session, TenorError) else next(answers) for session in sessions], messages

    def _store_accepted(
        self, transaction: Transaction, accepted: Sequence[tuple[IngestRequest, LockedSession]]
    ) -> list[Turn | Recording]:
        """Insert the turn or recording of each request, with its audio, in the order of the requests."""
        recordings = [self._store_audio(transaction, request, session) for request, session in accepted]
        turns = [
            (_new_turn(request, request.body, recording), session)
            for (request, session), recording in zip(accepted, recordings, strict=True)
            if isinstance(request.body, TurnIn)
        ]
        added = iter(transaction.turns.append(turns))
        return [
            next(added) if recording is None or isinstance(request.body, TurnIn) else recording
            for (request, _), recording in zip(accepted, recordings, strict=True)
        ]

    def _store_audio(
        self, transaction: Transaction, request: IngestRequest, session: LockedSession
    ) -> Recording | None:
        if request.audio is None:
            return None
        # Without a retention the audio is deleted as soon as it has been analysed.
        retention = self._settings.audio.retention if session.consent.retain_audio else None
        recording = transaction.recordings.add(session.id, **asdict(request.audio), retention=retention)
        if isinstance(request.body, RecordingIn):
            body = request.body
            transaction.recordings.add_long(recording.id, body.channels, body.lane, body.started_at)
        return recording


def _new_turn(request: IngestRequest, body: TurnIn, recording: Recording | None) -> NewTurn:
    return NewTurn(
        request.tenant_id,
        request.session_id,
        body.speaker,
        body.role,
        body.text,
        recording_id=None if recording is None else recording.id,
        occurred_at=body.occurred_at,
        context=body.context,
    )


def _new_job(request: IngestRequest, stored: Turn | Recording) -> NewJob:
    is_turn = isinstance(stored, Turn)
    return NewJob(
        lane=request.body.lane if is_turn else Lane.recording,
        turn_id=stored.id if is_turn else None,
        recording_id=None if is_turn else stored.id,
        correlation_id=request.correlation_id,
        traceparent=request.traceparent,
    )


def _answer(stored: Turn | Recording, job: Job) -> Answer:
    if isinstance(stored, Turn):
        turn = TurnOut.of(AnalyzedTurn(turn=stored, job=job, transcript=None, prediction=None))
        return Answer(202, turn.model_dump_json(), f"/v1/turns/{stored.id}", session_id=stored.session_id)
    progress = RecordingProgress(recording=stored, job=job, turns=dict.fromkeys(JobStatus, 0))
    content = RecordingOut.of(progress).model_dump_json()
    return Answer(202, content, f"/v1/recordings/{stored.id}", session_id=stored.session_id)
