"""Long recordings are cut into turns: all of them or none, and nothing of a voice is left behind."""

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import IO
from uuid import UUID

import numpy as np
import psycopg
import pytest
import redis
from fastapi.testclient import TestClient
from httpx2 import Response

from services.api.app import create_app
from shared.audio.decoder import Samples, decode
from shared.audio.sandbox import AudioSandbox
from shared.domain.access import KeyRole
from shared.domain.job import OPEN, Job, Lane
from shared.domain.recording import Channel, RecordingWork
from shared.errors import RecordingGone, Unavailable
from shared.messaging.broker import Broker
from shared.settings import Settings
from shared.storage.blobs import BlobFolder
from shared.store.database import Database
from tests.audio_clips import damaged, encoded, muxed, silence, spoken, tone, wav
from tests.integration.conftest import MakeKey
from workers.job_runner import JobRunner
from workers.sweeper import Sweeper
from workers.tasks.delete_audio import DeleteAudio
from workers.tasks.split_recording import SplitRecording, Utterance

LEASE = timedelta(seconds=30)
CHANNELS = [{"speaker": "Tom", "role": "agent"}, {"speaker": "Ana", "role": "customer"}]


@pytest.fixture
def task(settings: Settings, database: Database) -> Iterator[SplitRecording]:
    sandbox = AudioSandbox()
    yield SplitRecording(settings, database, BlobFolder(settings.blob_dir), sandbox)
    sandbox.close()


@pytest.fixture
def runner(settings: Settings, database: Database, task: SplitRecording) -> JobRunner:
    deletion = DeleteAudio(database, BlobFolder(settings.blob_dir))
    return JobRunner(
        settings, database, Broker(settings.broker.url), {Lane.recording: task, Lane.maintenance: deletion}
    )


@pytest.fixture
def work(database: Database, runner: JobRunner) -> Callable[[], None]:
    """Do all jobs that wait in the lanes of recordings and of maintenance."""

    def work() -> None:
        with database.transaction() as transaction:
            waiting = transaction.job_admin.find(statuses=OPEN)
        for job in waiting:
            if job.lane in (Lane.recording, Lane.maintenance):
                runner.run(job.id)

    return work


@pytest.fixture
def upkeep(settings: Settings, database: Database, work: Callable[[], None]) -> Callable[[], None]:
    sweeper = Sweeper(settings, database, Broker(settings.broker.url), "bundle")

    def upkeep() -> None:
        sweeper.sweep()
        work()

    return upkeep


def call(copy: float = 0.0) -> bytes:
    """The agent says something, then the customer, then the agent again, each on their own channel.

    `copy` is the share of the agent's amplitude that is heard on the customer's channel too.
    """
    agent = [silence(1), spoken("english"), silence(6), spoken("german"), silence(1)]
    before = 2 + spoken("english").size / 16_000
    customer = [silence(before), spoken("spanish")]
    left, right = np.concatenate(agent), np.concatenate(customer)
    right = np.pad(right, (0, left.size - right.size)) + np.float32(copy) * left
    return encoded("flac", np.stack([left, right]))


def post(api: TestClient, session_id: str, sound: bytes, name: str = "call.flac", **fields: str) -> Response:
    files = {"audio": (name, sound, "audio/flac")}
    return api.post(f"/v1/sessions/{session_id}/recordings", files=files, data=fields)


def blobs(settings: Settings) -> list[Path]:
    return [path for path in settings.blob_dir.rglob("*") if path.is_file()]


def test_a_recording_is_split_into_the_turns_of_its_speakers_in_order(
    api: TestClient, session_id: str, work: Callable[[], None], settings: Settings, database: Database
) -> None:
    response = post(api, session_id, call(), channels=json.dumps(CHANNELS), started_at="2026-03-01T10:00:00Z")
    assert response.status_code == 202, response.text
    location = response.headers["Location"]
    assert (response.json()["status"], response.json()["channel_count"]) == ("queued", 2)
    assert response.json() == api.get(location).json()
    work()
    done = api.get(location).json()
    assert (done["status"], done["turns"]["queued"], sum(done["turns"].values())) == ("succeeded", 3, 3)
    turns = api.get(f"/v1/sessions/{session_id}/history").json()["turns"]
    assert [(turn["index"], turn["speaker"], turn["role"]) for turn in turns] == [
        (0, "Tom", "agent"),
        (1, "Ana", "customer"),
        (2, "Tom", "agent"),
    ]
    first_s, second_s = (spoken(name).size / 16_000 for name in ("english", "spanish"))
    assert turns[0]["start"] == pytest.approx(1, abs=0.6)
    assert turns[0]["end"] == pytest.approx(1 + first_s, abs=0.6)
    assert turns[1]["end"] == pytest.approx(2 + first_s + second_s, abs=0.6)
    assert turns[0]["occurred_at"].startswith("2026-03-01T10:00:0")
    assert {turn["lane"] for turn in turns} == {"bulk"}


@pytest.mark.parametrize("copy", [0.02, 0.3])
def test_an_agent_who_is_heard_on_the_customers_channel_too_has_no_second_turns(
    api: TestClient, session_id: str, work: Callable[[], None], copy: float
) -> None:
    location = post(api, session_id, call(copy), channels=json.dumps(CHANNELS)).headers["Location"]
    work()
    turns = api.get(f"/v1/sessions/{session_id}/history").json()["turns"]
    assert [turn["speaker"] for turn in turns] == ["Tom", "Ana", "Tom"]
    (warning,) = api.get(location).json()["warnings"]
    assert warning["code"] == "crosstalk_removed"


def test_a_call_with_equal_channels_has_each_turn_once(
    api: TestClient, session_id: str, work: Callable[[], None]
) -> None:
    spoken_once = np.concatenate([silence(1), spoken("english"), silence(2), spoken("german")])
    sound = encoded("mp3", np.stack([spoken_once, spoken_once]))
    location = post(api, session_id, sound, channels=json.dumps(CHANNELS)).headers["Location"]
    work()
    turns = api.get(f"/v1/sessions/{session_id}/history").json()["turns"]
    assert [turn["speaker"] for turn in turns] == ["Tom", "Tom"]
    (warning,) = api.get(location).json()["warnings"]
    assert warning["code"] == "channels_alike"


def test_each_turn_of_a_recording_has_its_own_audio_unchanged(
    api: TestClient, session_id: str, work: Callable[[], None], settings: Settings, database: Database
) -> None:
    sound = call()
    post(api, session_id, sound, channels=json.dumps(CHANNELS))
    work()
    (settings.data_dir / "whole").write_bytes(sound)
    turns = api.get(f"/v1/sessions/{session_id}/history").json()["turns"]
    with database.transaction() as transaction:
        works = [
            transaction.turn_results.read_work(job, "bundle")
            for job in transaction.job_admin.find()
            if job.lane is Lane.bulk
        ]
    recordings = {str(work.turn.id): work.recording for work in works}
    for turn in turns:
        recording = recordings[turn["id"]]
        assert recording is not None
        assert recording.uri is not None
        cut = decode(settings.blob_dir / recording.uri).samples
        assert cut.size / 16_000 == pytest.approx(turn["end"] - turn["start"], abs=1e-3)
        assert np.abs(cut).max() > 0.1
    started = round(turns[0]["start"] * 16_000)
    first = recordings[turns[0]["id"]]
    assert first is not None
    assert first.uri is not None
    cut = decode(settings.blob_dir / first.uri).samples
    left = np.concatenate([silence(1), spoken("english"), silence(6)])
    assert np.abs(cut - left[started : started + cut.size]).max() < 1e-3


def test_a_recording_is_deleted_once_it_is_split_unless_consent_keeps_it(
    api: TestClient, session_id: str, work: Callable[[], None], upkeep: Callable[[], None], settings: Settings
) -> None:
    post(api, session_id, call(), channels=json.dumps(CHANNELS))
    upkeep()
    upkeep()
    assert len(blobs(settings)) == 3
    consenting = api.post("/v1/sessions", json={"consent": {"retain_audio": True}}).json()["id"]
    post(api, consenting, call(), channels=json.dumps(CHANNELS))
    upkeep()
    upkeep()
    assert len(blobs(settings)) == 3 + 4


def test_without_channels_the_whole_recording_is_of_one_speaker(
    api: TestClient, session_id: str, work: Callable[[], None]
) -> None:
    location = post(api, session_id, call()).headers["Location"]
    work()
    assert sum(api.get(location).json()["turns"].values()) == 3
    turns = api.get(f"/v1/sessions/{session_id}/history").json()["turns"]
    assert {(turn["speaker"], turn["role"]) for turn in turns} == {("speaker", "user")}


def test_a_recording_without_speech_has_no_turns(api: TestClient, session_id: str, work: Callable[[], None]) -> None:
    location = post(api, session_id, wav(silence(5)), "call.wav").headers["Location"]
    work()
    done = api.get(location).json()
    assert (done["status"], sum(done["turns"].values())) == ("succeeded", 0)


@pytest.mark.parametrize(
    ("fields", "status", "word"),
    [
        ({"channels": json.dumps(CHANNELS[:1] * 3)}, 422, "each of the 2 channels, not 3"),
        ({"channels": "Tom"}, 422, "channels"),
        ({"channels": "[]"}, 422, "channels"),
        ({"lane": "recording"}, 422, "lane"),
    ],
)
def test_invalid_fields_of_a_recording_are_refused_and_leave_no_audio(
    api: TestClient, session_id: str, settings: Settings, fields: dict[str, str], status: int, word: str
) -> None:
    response = post(api, session_id, call(), **fields)
    assert (response.status_code, response.json()["code"]) == (status, "request_invalid")
    assert word in response.json()["detail"]
    assert blobs(settings) == []


def test_a_recording_is_sent_as_a_form(api: TestClient, session_id: str) -> None:
    response = api.post(f"/v1/sessions/{session_id}/recordings", json={})
    assert (response.status_code, response.json()["code"]) == (415, "media_type_unsupported")


def test_no_key_sees_another_tenants_recordings(api: TestClient, session_id: str, make_key: MakeKey) -> None:
    location = post(api, session_id, call()).headers["Location"]
    stranger = {"Authorization": f"Bearer {make_key('globex', KeyRole.admin)}"}
    refused = api.get(location, headers=stranger)
    assert (refused.status_code, refused.json()["code"]) == (404, "recording_not_found")
    reader = {"Authorization": f"Bearer {make_key('acme', KeyRole.reader)}"}
    assert api.get(location, headers=reader).status_code == 200
    sent = api.post(f"/v1/sessions/{session_id}/recordings", files={"audio": b"x"}, headers=reader)
    assert sent.status_code == 403


def test_only_the_first_turn_of_a_recording_is_published_and_each_turn_unblocks_the_next(
    api: TestClient, session_id: str, work: Callable[[], None], broker: redis.Redis, database: Database
) -> None:
    post(api, session_id, call(), channels=json.dumps(CHANNELS))
    work()
    assert broker.llen(Lane.bulk.value) == 1
    with database.transaction() as transaction:
        turns = [job for job in transaction.job_admin.find() if job.lane is Lane.bulk]
        first = min(turns, key=lambda job: job.lease_until)
        claimed = transaction.jobs.claim(first.id, LEASE)
        assert claimed is not None
        messages = transaction.jobs.fail(claimed, RecordingGone("it was deleted"), lease=LEASE)
    assert messages is not None
    assert len(messages) == 1


def test_a_recording_of_a_known_subject_continues_their_turn_order(
    api: TestClient, work: Callable[[], None], settings: Settings
) -> None:
    for _ in range(2):
        session = api.post("/v1/sessions", json={"subject_ref": "Ana"}).json()["id"]
        post(api, session, call(), channels=json.dumps(CHANNELS[1:] + CHANNELS[:1]))  # it is Ana who speaks twice
        work()
    with psycopg.connect(settings.database.url.get_secret_value()) as connection:
        found = connection.execute("SELECT position FROM turns WHERE speaker = 'Ana' ORDER BY created_at, index")
        assert [position for (position,) in found] == [0, 1, 2, 3]


def test_the_audio_of_a_turn_is_kept_until_the_recording_is_split(
    api: TestClient, task: SplitRecording, work: Callable[[], None], settings: Settings, database: Database
) -> None:
    task._settings = settings.updated(audio={"retention_days": 0.0})
    session = api.post("/v1/sessions", json={"consent": {"retain_audio": True}}).json()["id"]
    store = task._store

    def store_and_sweep(work: RecordingWork, channel: Channel, start: float, samples: Samples) -> Utterance:
        cut = store(work, channel, start, samples)
        with database.transaction() as transaction:
            transaction.recordings.expire()
        return cut

    task._store = store_and_sweep
    post(api, session, call(), channels=json.dumps(CHANNELS))
    work()
    assert len(blobs(settings)) == 4
    with database.transaction() as transaction:
        assert transaction.pending_deletions.due() == []


def test_a_damaged_recording_is_split_and_has_a_warning(
    api: TestClient, session_id: str, work: Callable[[], None]
) -> None:
    sound = damaged(encoded("m4a", np.concatenate([spoken("english"), silence(3), spoken("german")])))
    location = post(api, session_id, sound, "call.m4a").headers["Location"]
    assert api.get(location).json()["warnings"] == []
    work()
    split = api.get(location).json()
    assert (split["status"], sum(split["turns"].values())) == ("succeeded", 2)
    assert [warning["code"] for warning in split["warnings"]] == ["audio_skipped"]


def test_turns_of_a_recording_that_starts_late_have_the_times_of_its_stream(
    api: TestClient, session_id: str, work: Callable[[], None]
) -> None:
    sound = np.repeat(np.concatenate([spoken("english"), silence(3), spoken("german")]), 3)
    data = muxed("webm", "libopus", sound, delay=lambda seconds: 7)
    post(api, session_id, data, "call.webm", started_at="2026-03-01T10:00:00Z")
    work()
    first, second = api.get(f"/v1/sessions/{session_id}/history").json()["turns"]
    assert first["start"] == pytest.approx(7, abs=0.6)
    assert second["end"] == pytest.approx(7 + sound.size / 48_000, abs=0.6)
    assert first["occurred_at"].startswith("2026-03-01T10:00:07")


def test_the_tracks_of_a_file_are_its_channels(api: TestClient, session_id: str, work: Callable[[], None]) -> None:
    agent, customer = (np.repeat(spoken(name), 3) for name in ("english", "spanish"))
    data = muxed("matroska", "libopus", agent, customer, delays=(0, 5))
    response = post(api, session_id, data, "call.mkv", channels=json.dumps(CHANNELS))
    assert response.json()["channel_count"] == 2
    work()
    turns = api.get(f"/v1/sessions/{session_id}/history").json()["turns"]
    assert [turn["speaker"] for turn in turns] == ["Tom", "Ana"]
    assert turns[1]["start"] == pytest.approx(5, abs=0.6)


def truncated() -> bytes:
    """A call that shows only when it is decoded that it is cut off."""
    whole = encoded("flac", np.concatenate([spoken("english"), silence(3), spoken("german")] * 4))
    return whole[: len(whole) * 3 // 4]


def test_a_truncated_recording_gives_no_turns_and_leaves_no_audio(
    api: TestClient, session_id: str, upkeep: Callable[[], None], settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.tasks.split_recording._PART_S", 5)
    monkeypatch.setattr("workers.tasks.split_recording.MAX_UTTERANCE_S", 2)
    location = post(api, session_id, truncated()).headers["Location"]
    upkeep()
    failed = api.get(location).json()
    assert (failed["status"], failed["error"]["code"]) == ("failed", "audio_undecodable")
    assert api.get(f"/v1/sessions/{session_id}/history").json()["turns"] == []
    upkeep()
    assert blobs(settings) == []


def test_a_recording_that_cannot_be_split_leaves_no_audio_of_turns(
    api: TestClient, upkeep: Callable[[], None], settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.tasks.split_recording._PART_S", 5)
    monkeypatch.setattr("workers.tasks.split_recording.MAX_UTTERANCE_S", 2)
    session = api.post("/v1/sessions", json={"consent": {"retain_audio": True}}).json()["id"]
    post(api, session, truncated())
    upkeep()
    upkeep()
    assert len(blobs(settings)) == 1


class Dies(BlobFolder):
    """A store that takes one recording and then no more."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.left = 1

    def put(self, uri: str, source: IO[bytes]) -> str:
        if not self.left:
            raise Unavailable("the store is away")
        self.left -= 1
        return super().put(uri, source)


def test_leftovers_of_a_failed_attempt_are_deleted_when_the_next_succeeds(
    api: TestClient,
    session_id: str,
    task: SplitRecording,
    work: Callable[[], None],
    upkeep: Callable[[], None],
    settings: Settings,
) -> None:
    location = post(api, session_id, call(), channels=json.dumps(CHANNELS)).headers["Location"]
    task._blobs = Dies(settings.blob_dir)
    work()
    waits = api.get(location).json()
    assert (waits["status"], waits["error"]["code"]) == ("queued", "unavailable")
    assert len(blobs(settings)) == 2
    task._blobs = BlobFolder(settings.blob_dir)
    work()
    assert api.get(location).json()["status"] == "succeeded"
    upkeep()
    assert len(blobs(settings)) == 3


def test_of_two_workers_that_split_the_same_recording_the_later_claim_writes(
    api: TestClient, session_id: str, task: SplitRecording, settings: Settings, work: Callable[[], None]
) -> None:
    location = post(api, session_id, call(), channels=json.dumps(CHANNELS)).headers["Location"]
    store, run_jobs, taken_over = task._store, work, []

    def slow(work: RecordingWork, channel: Channel, start: float, samples: Samples) -> Utterance:
        if not taken_over:
            taken_over.append(True)
            with psycopg.connect(settings.database.url.get_secret_value()) as connection:
                connection.execute("UPDATE jobs SET lease_until = now() - interval '1 s'")
            with ThreadPoolExecutor(1) as another_worker:  # takes the job over and finishes it
                another_worker.submit(run_jobs).result(60)
        return store(work, channel, start, samples)

    task._store = slow
    work()
    assert sum(api.get(location).json()["turns"].values()) == 3
    assert len(api.get(f"/v1/sessions/{session_id}/history").json()["turns"]) == 3
    with psycopg.connect(settings.database.url.get_secret_value()) as connection:
        cuts = connection.execute("SELECT count(*) FROM recordings WHERE source_id IS NOT NULL").fetchone()
    assert cuts == (3,)


def test_deleting_the_session_stops_the_splitting_and_leaves_no_audio(
    api: TestClient, session_id: str, task: SplitRecording, work: Callable[[], None], settings: Settings
) -> None:
    location = post(api, session_id, call(), channels=json.dumps(CHANNELS)).headers["Location"]
    store, count = task._store, []

    def store_two(work: RecordingWork, channel: Channel, start: float, samples: Samples) -> Utterance:
        if len(count) == 2:
            assert api.delete(f"/v1/sessions/{session_id}").status_code == 204
        count.append(True)
        return store(work, channel, start, samples)

    task._store = store_two
    work()
    assert api.get(location).status_code == 404
    assert blobs(settings) == []


def test_a_quarantined_recording_can_be_listed_and_retried(
    api: TestClient, session_id: str, task: SplitRecording, runner: JobRunner, database: Database, settings: Settings
) -> None:
    location = post(api, session_id, call(), channels=json.dumps(CHANNELS)).headers["Location"]
    runner._settings = settings.updated(jobs={"max_attempts": 1})
    task._blobs = Dies(settings.blob_dir)

    def the_job() -> Job:
        with database.transaction() as transaction:
            (job,) = (job for job in transaction.job_admin.find(tenant="acme") if job.lane is Lane.recording)
            assert job.session_id == UUID(session_id)
            return job

    runner.run(the_job().id)
    assert api.get(location).json()["error"]["code"] == "attempts_exhausted"
    assert len(blobs(settings)) == 2
    with database.transaction() as transaction:
        transaction.job_admin.requeue(the_job(), lease=settings.jobs.lease)
    task._blobs = BlobFolder(settings.blob_dir)
    runner.run(the_job().id)
    assert sum(api.get(location).json()["turns"].values()) == 3


def test_a_quarantined_recording_is_deleted_with_the_audio_of_its_turns_after_some_days(
    api: TestClient,
    session_id: str,
    task: SplitRecording,
    runner: JobRunner,
    work: Callable[[], None],
    upkeep: Callable[[], None],
    settings: Settings,
) -> None:
    runner._settings = settings.updated(jobs={"max_attempts": 1})
    task._blobs = Dies(settings.blob_dir)
    post(api, session_id, call(), channels=json.dumps(CHANNELS))
    work()
    upkeep()
    assert len(blobs(settings)) == 2
    with psycopg.connect(settings.database.url.get_secret_value()) as connection:
        connection.execute("UPDATE jobs SET updated_at = now() - interval '8 days'")
    upkeep()
    upkeep()
    assert blobs(settings) == []


def test_a_recording_that_is_too_long_is_refused_by_its_header_or_when_it_is_decoded(
    api: TestClient, session_id: str, task: SplitRecording, work: Callable[[], None], settings: Settings
) -> None:
    brief = settings.updated(audio={"max_recording_s": 2.0, "max_turn_s": 1.0})
    with TestClient(create_app(brief), headers=dict(api.headers)) as strict:
        assert post(strict, session_id, encoded("flac", tone(1.5))).status_code == 202
        refused = post(strict, session_id, encoded("flac", tone(5)))
        assert (refused.status_code, refused.json()["code"]) == (413, "audio_too_long")
    task._settings = brief
    location = post(api, session_id, encoded("mp3", tone(5)), "call.mp3").headers["Location"]
    work()
    assert api.get(location).json()["error"]["code"] == "audio_too_long"
