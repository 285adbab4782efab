"""Splits a long recording into turns, each with a short recording of its own."""

import io
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID

from shared.audio.crosstalk import CrosstalkFilter
from shared.audio.decoder import SAMPLE_RATE, AudioPart, Samples, encode
from shared.audio.sandbox import AudioSandbox
from shared.domain.job import Job, Message, NewJob
from shared.domain.recording import Channel, RecordingWork
from shared.domain.turn import NewTurn, Turn
from shared.domain.warning import AnalysisWarning
from shared.errors import ClaimLost, RecordingGone, TenorError
from shared.modeling.segmentation import MAX_UTTERANCE_S, UtteranceSplitter
from shared.settings import Settings
from shared.storage.blobs import Blobs, new_uri
from shared.storage.staging import staged_upload
from shared.store.database import Database, Transaction
from workers.job_runner import ResultWriter, StageEntered

_PART_S = 10 * MAX_UTTERANCE_S
"""Seconds of audio that are decoded at a time, of all channels together. Each channel gets two of its longest turns."""
_UPLOAD_LIMIT = timedelta(minutes=5)
"""A staged blob without a row is deleted after so long."""


@dataclass(frozen=True)
class Utterance:
    """What is said on one channel without a longer pause. `start` and `end` are seconds of the long recording."""

    channel: Channel
    start: float
    end: float
    recording_id: UUID


class SplitRecording:
    """Splits recordings into turns.

    Args:
        audio: decodes the recordings.
    """

    def __init__(self, settings: Settings, database: Database, blobs: Blobs, audio: AudioSandbox) -> None:
        self._settings = settings
        self._database = database
        self._blobs = blobs
        self._audio = audio

    def read(self, transaction: Transaction, job: Job) -> RecordingWork:
        """Return the recording, and who speaks on its channels."""
        return transaction.recordings.read_work(job)

    def do(self, job: Job, work: RecordingWork, on_stage: StageEntered) -> ResultWriter:
        """Store each utterance, and return what adds all of them as turns.

        If the attempt fails, the next one or the end of the job deletes what this one stored.

        Raises:
            RequestError: the audio cannot be used, or was deleted.
            ClaimLost: another worker took the job over, or the recording was deleted.
        """
        self._delete_earlier_parts(work)
        splitters = [UtteranceSplitter() for _ in work.channels]
        utterances: list[Utterance] = []
        start_s, warnings = 0.0, tuple[AnalysisWarning, ...]()
        for part in self._decode_parts(work, on_stage):
            ended = [splitter.add(samples) for splitter, samples in zip(splitters, part.channels, strict=True)]
            utterances += self._store_all(work, ended, part.start_s)
            start_s, warnings = part.start_s, part.warnings
        utterances += self._store_all(work, [splitter.finish() for splitter in splitters], start_s)
        utterances.sort(key=lambda utterance: (utterance.start, utterance.end))

        def write(transaction: Transaction) -> Sequence[Message]:
            transaction.recordings.warn(work.recording.id, warnings)
            turns = transaction.turns.add_all([_turn(work, utterance) for utterance in utterances])
            new = [_analysis_job(work, turn) for turn in turns]
            return [message for _, message in transaction.jobs.enqueue(new, lease=self._settings.jobs.lease) if message]

        return write

    def _decode_parts(self, work: RecordingWork, on_stage: StageEntered) -> Iterator[AudioPart]:
        if work.recording.uri is None:
            raise RecordingGone("the recording was deleted before it was split into turns")
        channels, crosstalk = len(work.channels), CrosstalkFilter()
        on_stage("fetch")
        with self._blobs.open(work.recording.uri) as recording:
            part_s = max(2 * MAX_UTTERANCE_S, _PART_S / channels)
            parts = self._audio.decode_parts(recording, channels, part_s, self._settings.audio.max_recording_s)
            for number, part in enumerate(parts):
                on_stage(f"part {number}")
                channels_of_part = crosstalk.filter(part.channels)
                yield AudioPart(channels_of_part, part.start_s, (*part.warnings, *crosstalk.warnings()))

    def _delete_earlier_parts(self, work: RecordingWork) -> None:
        with self._claimed(work) as transaction:
            transaction.recordings.delete_unused_parts(work.recording.id)

    @contextmanager
    def _claimed(self, work: RecordingWork) -> Generator[Transaction]:
        """A transaction during which no worker can take the job over, and no client can delete the recording.

        Raises:
            ClaimLost: that has already happened.
        """
        with self._database.transaction() as transaction:
            if not transaction.jobs.lock_claim(work.job):
                raise ClaimLost("the recording was deleted, or another worker splits it")
            yield transaction

    def _store_all(
        self, work: RecordingWork, ended: Sequence[Sequence[tuple[float, Samples]]], start_s: float
    ) -> list[Utterance]:
        """Store the utterances of each channel: their starts in seconds after `start_s`, and their samples."""
        channels = zip(work.channels, ended, strict=True)
        return [
            self._store(work, channel, start_s + start, samples)
            for channel, spoken in channels
            for start, samples in spoken
        ]

    def _store(self, work: RecordingWork, channel: Channel, start: float, samples: Samples) -> Utterance:
        uri, duration = new_uri(work.tenant_id, work.recording.session_id), samples.size / SAMPLE_RATE
        source = io.BytesIO(encode(samples))
        with (
            staged_upload(source, uri, _UPLOAD_LIMIT, self._database, self._blobs) as sha256,
            self._claimed(work) as transaction,
        ):
            recording = transaction.recordings.add(
                work.recording.session_id,
                uri=uri,
                sha256=sha256,
                media_type="audio/flac",
                duration_s=duration,
                channel_count=1,
                retention=self._settings.audio.retention if work.consent.retain_audio else None,
                source_id=work.recording.id,
            )
        return Utterance(channel, start, start + duration, recording.id)


def _analysis_job(work: RecordingWork, turn: Turn | TenorError) -> NewJob:
    if isinstance(turn, TenorError):
        raise turn  # the session was closed meanwhile
    return NewJob(
        lane=work.lane,
        turn_id=turn.id,
        correlation_id=work.job.correlation_id,
        traceparent=work.job.traceparent,
    )


def _turn(work: RecordingWork, utterance: Utterance) -> NewTurn:
    return NewTurn(
        work.tenant_id,
        work.recording.session_id,
        utterance.channel.speaker,
        utterance.channel.role,
        text=None,
        recording_id=utterance.recording_id,
        occurred_at=work.started_at + timedelta(seconds=utterance.start),
        start=utterance.start,
        end=utterance.end,
    )
