"""A long recording is cut into turns, each with a small recording of its own."""

import io
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID

from shared.audio.decoder import SAMPLE_RATE, Samples, encode
from shared.audio.sandbox import AudioSandbox
from shared.domain.job import Job, Message, NewJob
from shared.domain.recording import Channel, RecordingWork
from shared.domain.turn import NewTurn, Turn
from shared.errors import ClaimLost, RecordingGone, TenorError
from shared.modeling.segmentation import MAX_UTTERANCE_S, UtteranceSplitter
from shared.settings import Settings
from shared.storage.blobs import Blobs, new_uri
from shared.storage.staging import staged_upload
from shared.store.database import Database, Transaction
from workers.job_runner import Enter, Write

_PART_S = 10 * MAX_UTTERANCE_S
"""Of all channels together, but of each channel at least twice its longest turn."""
_PATIENCE = timedelta(minutes=5)


@dataclass(frozen=True)
class Cut:
    """What one voice says without a longer pause, from and to a second of the recording."""

    voice: Channel
    start: float
    end: float
    recording_id: UUID


class SplitRecording:
    """Cuts recordings into turns.

    Args:
        audio: what decodes recordings; by default a pool of this task's own.
    """

    def __init__(self, settings: Settings, database: Database, blobs: Blobs, audio: AudioSandbox | None = None) -> None:
        self._settings = settings
        self._database = database
        self._blobs = blobs
        self._audio = audio or AudioSandbox()

    def read(self, transaction: Transaction, job: Job) -> RecordingWork:
        """The recording, and who is heard on its channels."""
        return transaction.recordings.read_work(job)

    def do(self, job: Job, call: RecordingWork, enter: Enter) -> Write:
        """Store every utterance by itself; they become turns all at once, when the recording has been heard to its end.

        Where it cannot be, what was cut off goes with the next attempt, or with the job's end.
        """
        self._begin(call)
        cuts = [self._store(call, *utterance) for utterance in self._utterances(call, enter)]
        cuts.sort(key=lambda cut: (cut.start, cut.end))

        def write(transaction: Transaction) -> Sequence[Message]:
            turns = transaction.turns.add_all([_turn(call, cut) for cut in cuts])
            new = [_analysis(call, turn) for turn in turns]
            return [message for _, message in transaction.jobs.enqueue(new, lease=self._settings.lease) if message]

        return write

    def _utterances(self, call: RecordingWork, enter: Enter) -> Iterator[tuple[Channel, float, Samples]]:
        if call.recording.uri is None:
            raise RecordingGone("the recording was deleted before it was cut into turns")
        cutters = [UtteranceSplitter() for _ in call.channels]
        enter("fetch")
        with self._blobs.open(call.recording.uri) as recording:
            part_s = max(2 * MAX_UTTERANCE_S, _PART_S / len(cutters))
            parts = self._audio.decode_parts(recording, len(cutters), part_s, self._settings.max_recording_s)
            for number, channels in enumerate(parts):
                enter(f"part {number}")
                for voice, cutter, sound in zip(call.channels, cutters, channels, strict=True):
                    yield from ((voice, *utterance) for utterance in cutter.add(sound))
        for voice, cutter in zip(call.channels, cutters, strict=True):
            yield from ((voice, *utterance) for utterance in cutter.finish())

    def _begin(self, call: RecordingWork) -> None:
        with self._held(call) as transaction:
            transaction.recordings.delete_unused_parts(call.recording.id)

    @contextmanager
    def _held(self, call: RecordingWork) -> Generator[Transaction]:
        """A transaction in which nobody else takes the recording over or deletes it.

        Raises:
            ClaimLost: that has happened.
        """
        with self._database.transaction() as transaction:
            if not transaction.jobs.lock_claim(call.job):
                raise ClaimLost("the recording was deleted, or is cut by another worker")
            yield transaction

    def _store(self, call: RecordingWork, voice: Channel, start: float, sound: Samples) -> Cut:
        uri, duration = new_uri(call.tenant_id, call.recording.session_id), sound.size / SAMPLE_RATE
        source = io.BytesIO(encode(sound))
        with (
            staged_upload(source, uri, _PATIENCE, self._database, self._blobs) as sha256,
            self._held(call) as transaction,
        ):
            recording = transaction.recordings.add(
                call.recording.session_id,
                uri=uri,
                sha256=sha256,
                media_type="audio/flac",
                duration_s=duration,
                channel_count=1,
                retention=self._settings.audio_retention if call.consent.retain_audio else None,
                source_id=call.recording.id,
            )
        return Cut(voice, start, start + duration, recording.id)


def _analysis(call: RecordingWork, turn: Turn | TenorError) -> NewJob:
    if isinstance(turn, TenorError):
        raise turn  # the session was closed meanwhile
    return NewJob(
        lane=call.lane,
        turn_id=turn.id,
        correlation_id=call.job.correlation_id,
        traceparent=call.job.traceparent,
    )


def _turn(call: RecordingWork, cut: Cut) -> NewTurn:
    return NewTurn(
        call.tenant_id,
        call.recording.session_id,
        cut.voice.speaker,
        cut.voice.role,
        text=None,
        recording_id=cut.recording_id,
        occurred_at=call.started_at + timedelta(seconds=cut.start),
        start=cut.start,
        end=cut.end,
    )
