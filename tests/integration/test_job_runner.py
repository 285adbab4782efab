"""A worker's life with turns of every kind: each ends, the worker lives on, and nothing is said in its logs."""

import base64
import json
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any, cast
from uuid import UUID

import numpy as np
import psycopg
import pytest
import redis
from fastapi.testclient import TestClient
from prometheus_client import REGISTRY

from shared.audio.decoder import Samples
from shared.audio.sandbox import AudioSandbox, Limits
from shared.domain.job import TURN_LANES, Lane
from shared.domain.transcript import Segment, Transcript, TranscriptSource
from shared.errors import (
    RecordingGone,
    RequestError,
    StageTimeout,
    TenorError,
    TextTooLong,
    Unavailable,
    WeightsMissing,
)
from shared.messaging.broker import Broker, celery_app
from shared.modeling.baseline import AudioSummary
from shared.modeling.lazy_model import LazyModel
from shared.modeling.pipeline import Analysis, Pipeline, StageRunner
from shared.modeling.transcriber import Clip, Transcriber
from shared.settings import Settings
from shared.storage.blobs import BlobFolder
from shared.store.database import Database
from tests.audio_clips import damaged, encoded, muxed, riff, tone, wav
from tests.conftest import wait_for
from tests.integration.conftest import AllSent, read_turn
from tests.integration.test_full_disk import full_disk
from tests.tiny_models import write_bundle
from workers.consumer import Consumer
from workers.job_runner import JobRunner, ResultWriter
from workers.stages import Stages
from workers.tasks.analyze_turn import AnalyzeTurn

pytestmark = pytest.mark.models

STAGES = ("decode", "vad", "transcribe", "text", "speech", "fuse")
SECRET = "my father has died"


class Hears:
    """A transcriber that always hears the secret, or fails with it in its message."""

    def __init__(self) -> None:
        self.broken = False

    def transcribe(self, clips: Sequence[Clip]) -> list[Transcript]:
        if self.broken:
            raise ValueError(f"cannot decode {SECRET!r}")
        segments = (Segment(start=0.0, end=1.0, text=SECRET),)
        transcript = Transcript(language="en", language_probability=0.9, segments=segments, source=TranscriptSource.asr)
        return [transcript for _ in clips]

    def detect_speech(self, samples: Samples) -> list[tuple[float, float]]:
        return [(0.0, 1.0)]


@pytest.fixture
def hears() -> Hears:
    return Hears()


@pytest.fixture
def task(settings: Settings, tmp_path: Path, hears: Hears) -> Iterator[AnalyzeTurn]:
    pipeline = Pipeline.load(write_bundle(tmp_path / "bundle"), lambda: cast("Transcriber", hears))
    stages = Stages(pipeline, settings.batches, settings.worker.bulk_throttle_s)
    with closing(AudioSandbox(children=1)) as audio, closing(stages):
        yield AnalyzeTurn(settings, BlobFolder(settings.blob_dir), pipeline, stages, audio)


@pytest.fixture
def runner(settings: Settings, database: Database, task: AnalyzeTurn) -> JobRunner:
    return JobRunner(settings, database, Broker(settings.broker.url), dict.fromkeys(TURN_LANES, task))


Say = Callable[..., dict[str, Any]]
Send = Callable[..., tuple[str, UUID]]


@pytest.fixture
def send(api: TestClient, session_id: str, database: Database) -> Send:
    """Send a turn; its location and its job."""

    def send(text: str | None = None, recording: bytes | None = None) -> tuple[str, UUID]:
        url = f"/v1/sessions/{session_id}/turns"
        if recording is None:
            response = api.post(url, json={"text": text})
        else:
            response = api.post(url, files={"audio": ("a.wav", recording, "audio/wav")})
        assert response.status_code == 202, response.text
        with database.transaction() as transaction:
            tenant_id = transaction.accounts.ensure_tenant("acme")
        turn = read_turn(database, tenant_id, UUID(response.json()["id"]))
        return response.headers["Location"], turn.job.id

    return send


@pytest.fixture
def say(api: TestClient, send: Send, runner: JobRunner) -> Say:
    """Send a turn, run its job, and read the turn."""

    def say(text: str | None = None, recording: bytes | None = None) -> dict[str, Any]:
        location, job_id = send(text, recording)
        runner.run(job_id)
        return api.get(location).json()

    return say


def test_a_text_turn_and_an_audio_turn_get_a_prediction(say: Say) -> None:
    written, spoken = say(text="I am happy"), say(recording=wav())
    assert written["prediction"]["modalities_used"] == ["text"]
    assert spoken["prediction"]["modalities_used"] == ["text", "audio"]
    assert spoken["transcript"]["segments"][0]["text"] == SECRET


def test_a_prediction_warns_of_damaged_audio(say: Say) -> None:
    prediction = say(recording=damaged(encoded("m4a", tone(4))))["prediction"]
    assert [warning["code"] for warning in prediction["warnings"]] == ["audio_skipped"]
    assert say(recording=wav())["prediction"]["warnings"] == []


def test_the_words_of_a_recording_that_starts_late_have_the_times_of_its_stream(say: Say) -> None:
    late = muxed("webm", "libopus", tone(2, rate=48_000), delay=lambda seconds: 7)
    segments = [say(recording=recording)["transcript"]["segments"] for recording in (wav(), late)]
    at_once, later = (segment[0]["start"] for segment in segments)
    assert later - at_once == pytest.approx(7, abs=0.02)


def test_a_full_disk_retries_the_job_without_using_an_attempt(
    api: TestClient, settings: Settings, database: Database, send: Send, task: AnalyzeTurn
) -> None:
    last = settings.updated(jobs={"max_attempts": 1})
    runner = JobRunner(last, database, Broker(settings.broker.url), dict.fromkeys(TURN_LANES, task))
    location, job_id = send("I am happy")
    with full_disk(settings, "predictions"):
        for _ in range(3):
            runner.run(job_id)
            turn = api.get(location).json()
            assert (turn["status"], turn["error"]["code"]) == ("queued", "storage_full")
    runner.run(job_id)
    assert api.get(location).json()["status"] == "succeeded"


def test_a_prediction_says_on_how_many_turns_its_baseline_rests(api: TestClient, session_id: str, say: Say) -> None:
    said = [say(recording=wav(tone(hertz=hertz))) for hertz in (200, 250)]
    said += [say(text="I am happy"), say(recording=wav())]
    counts = [turn["prediction"]["baseline_turns"] for turn in said]
    assert counts == [0, 1, 0, 2]
    history = api.get(f"/v1/sessions/{session_id}/history").json()["turns"]
    assert [turn["prediction"]["baseline_turns"] for turn in history] == counts


def test_audio_is_compared_with_the_audio_summaries_of_earlier_turns(
    say: Say, runner: JobRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    analyze, left, given = Pipeline.analyze, list[AudioSummary](), list[Sequence[AudioSummary]]()

    def analyze_and_note(
        pipeline: Pipeline,
        *,
        samples: Samples,
        text: None,
        language: None,
        earlier: Sequence[AudioSummary],
        context: Sequence[str],
        earlier_languages: Sequence[str],
        submit: StageRunner,
    ) -> Analysis:
        analysis = analyze(
            pipeline,
            samples=samples,
            text=text,
            language=language,
            earlier=earlier,
            context=context,
            earlier_languages=earlier_languages,
            submit=submit,
        )
        assert analysis.audio_summary is not None
        given.append(earlier)
        left.append(analysis.audio_summary)
        return analysis

    monkeypatch.setattr(Pipeline, "analyze", analyze_and_note)
    for hertz in (200, 250, 300):
        say(recording=wav(tone(hertz=hertz)))
    for count, earlier in enumerate(given):
        np.testing.assert_array_equal(np.array(earlier), np.array([summary.flatten() for summary in left[:count]]))
    assert not np.array_equal(left[0], left[1])


def test_a_blocked_turn_is_published_when_the_earlier_turn_has_ended(
    api: TestClient, send: Send, runner: JobRunner, broker: redis.Redis, all_sent: AllSent
) -> None:
    (_, first), (location, second) = send(recording=wav()), send(recording=wav())
    all_sent()
    broker.flushdb()
    runner.run(second)
    assert api.get(location).json()["status"] == "queued"
    runner.run(first)
    (message,) = cast("list[bytes]", broker.lrange(Lane.interactive.value, 0, -1))
    assert str(second) in json.loads(message)["headers"]["argsrepr"]
    runner.run(second)
    assert api.get(location).json()["prediction"]["baseline_turns"] == 1


@pytest.mark.parametrize(
    ("recording", "code"),
    [
        (riff(np.full(1600, np.nan, "<f4").tobytes(), bits=32, kind=3), "audio_not_finite"),
        (wav(tone(20, rate=8000), rate=8000), "audio_too_long"),
    ],
)
def test_a_recording_that_only_shows_its_fault_when_decoded_fails_with_its_code(
    say: Say, task: AnalyzeTurn, settings: Settings, recording: bytes, code: str
) -> None:
    task._settings = settings.updated(audio={"max_turn_s": 10.0})
    turn = say(recording=recording)
    assert (turn["status"], turn["error"]["code"]) == ("failed", code)
    assert say(text="the next one is fine")["status"] == "succeeded"


def test_a_recording_that_the_decoder_does_not_survive_fails_at_the_first_attempt(say: Say, task: AnalyzeTurn) -> None:
    if sys.platform != "linux":
        pytest.skip("only Linux limits a process's data")
    whole, task._audio = task._audio, AudioSandbox(1, Limits(memory_bytes=1))
    turn = say(recording=wav(tone(20)))
    assert (turn["status"], turn["error"]["code"]) == ("failed", "audio_decoder_failed")
    with psycopg.connect(task._settings.database.url.get_secret_value()) as connection:
        assert connection.execute("SELECT attempts FROM jobs").fetchall() == [(1,)]
    task._audio.close()
    task._audio = whole
    assert say(recording=wav())["status"] == "succeeded"


def test_a_recording_that_vanished_fails_with_its_code(say: Say, settings: Settings, task: AnalyzeTurn) -> None:
    task._blobs = BlobFolder(settings.data_dir / "elsewhere")
    turn = say(recording=wav())
    assert (turn["status"], turn["error"]["code"]) == ("failed", "recording_gone")


def test_an_unexpected_error_retries_the_job_and_its_message_does_not_hold_the_text(
    say: Say, hears: Hears, caplog: pytest.LogCaptureFixture
) -> None:
    hears.broken = True
    with caplog.at_level(logging.INFO):
        turn = say(recording=wav())
    assert turn["status"] == "queued"
    assert turn["error"] == {"code": "internal_error", "message": "internal error (ValueError)"}
    assert "ValueError" in caplog.text
    assert SECRET not in caplog.text


def test_a_turn_is_quarantined_when_its_last_attempt_fails_and_the_reason_does_not_hold_the_text(
    say: Say, hears: Hears, runner: JobRunner, settings: Settings
) -> None:
    runner._settings = settings.updated(jobs={"max_attempts": 1})
    hears.broken = True
    turn = say(recording=wav())
    assert (turn["status"], turn["error"]["code"]) == ("quarantined", "attempts_exhausted")
    assert "tried 1 times" in turn["error"]["message"]
    assert "ValueError" in turn["error"]["message"]
    assert SECRET not in turn["error"]["message"]
    hears.broken = False
    assert say(recording=wav())["status"] == "succeeded"


@pytest.mark.parametrize("context_turns", [0, 1, 2])
def test_a_turn_gets_as_many_context_turns_as_the_bundle_was_trained_with(
    say: Say, monkeypatch: pytest.MonkeyPatch, context_turns: int
) -> None:
    analyze, contexts = Pipeline.analyze, list[Sequence[str]]()

    def analyze_and_note(pipeline: Pipeline, *, context: Sequence[str], **others: Any) -> Analysis:  # noqa: ANN401 - as `analyze` takes them
        contexts.append(context)
        return analyze(pipeline, context=context, **others)

    monkeypatch.setattr(Pipeline, "analyze", analyze_and_note)
    monkeypatch.setattr(Pipeline, "context_turns", context_turns)
    for text in ("one", "two", "three"):
        say(text=text)
    assert list(contexts[-1]) == ["one", "two"][2 - context_turns :]


def with_retryable(error: TenorError, *, retryable: bool) -> TenorError:
    error.retryable = retryable
    return error


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (TextTooLong("too long"), "failed"),
        (RecordingGone("deleted"), "failed"),
        (with_retryable(TenorError("a fault that no attempt can mend"), retryable=False), "failed"),
        (with_retryable(RequestError("a refusal that may not last"), retryable=True), "queued"),
        (Unavailable("the blob store does not answer"), "queued"),
        (WeightsMissing("another worker may have them"), "queued"),
        (StageTimeout("too slow"), "queued"),
        (ValueError("unforeseen"), "queued"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
def test_a_failed_job_runs_again_exactly_if_its_error_is_retryable(
    say: Say, task: AnalyzeTurn, monkeypatch: pytest.MonkeyPatch, error: Exception, status: str
) -> None:
    def fail(*_: object) -> ResultWriter:
        raise error

    monkeypatch.setattr(task, "do", fail)
    turn = say(text="I am happy")
    assert (turn["status"], turn["error"]["code"]) == (status, getattr(error, "code", "internal_error"))


def test_no_log_line_holds_the_text_of_a_turn(say: Say, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        say(text=SECRET)
        say(recording=wav())
    assert "succeeded" in caplog.text
    assert SECRET not in caplog.text


Post = Callable[[Lane], str]


@pytest.fixture
def post(api: TestClient, session_id: str) -> Post:
    """Post a turn into a lane; its location."""

    def post(lane: Lane) -> str:
        response = api.post(f"/v1/sessions/{session_id}/turns", json={"text": "I am happy", "lane": lane.value})
        assert response.json()["lane"] == lane.value
        return response.headers["Location"]

    return post


@pytest.fixture
def bulk_consumer(runner: JobRunner, settings: Settings) -> Iterator[Consumer]:
    """A consumer of the bulk lane, not yet started."""
    consumer = Consumer(celery_app(settings.broker.url), Lane.bulk, 1, runner.run)
    yield consumer
    consumer.stop()
    consumer.join()


@pytest.fixture
def waiting(broker: redis.Redis) -> Callable[[Lane], int]:
    """How many messages wait in a lane."""
    return lambda lane: cast("int", broker.llen(lane.value))


def test_bulk_turns_run_on_threads_of_their_own(
    api: TestClient, post: Post, bulk_consumer: Consumer, waiting: Callable[[Lane], int], all_sent: AllSent
) -> None:
    interactive, bulk = post(Lane.interactive), [post(Lane.bulk) for _ in range(3)]
    all_sent()
    bulk_consumer.start()
    wait_for(lambda: all(api.get(location).json()["status"] == "succeeded" for location in bulk), 60)
    bulk_consumer.stop()
    bulk_consumer.join()
    assert api.get(interactive).json()["status"] == "queued"
    assert (waiting(Lane.interactive), waiting(Lane.bulk)) == (1, 0)


@pytest.mark.parametrize(
    "malformed",
    [
        "this is no message",
        {"body": base64.b64encode(b"[[], {}, {}]").decode()},
        {"body": base64.b64encode(f'[["{SECRET}"], {{}}, {{}}]'.encode()).decode()},
        {"body": base64.b64encode(SECRET.encode()).decode()},
        {"body": base64.b64encode(b"[]").decode(), "content-type": "application/x-python-serialize"},
    ],
    ids=["no JSON", "no id", "another id", "a body that is no JSON", "a pickle"],
)
def test_a_bulk_message_without_a_job_is_logged_and_dropped(
    api: TestClient,
    post: Post,
    bulk_consumer: Consumer,
    broker: redis.Redis,
    all_sent: AllSent,
    caplog: pytest.LogCaptureFixture,
    malformed: str | dict[str, str],
) -> None:
    location = post(Lane.bulk)
    all_sent()
    if isinstance(malformed, dict):
        (good,) = cast("list[bytes]", broker.lrange(Lane.bulk.value, 0, -1))
        malformed = json.dumps({**json.loads(good), **malformed})
    broker.rpush(Lane.bulk.value, malformed)  # taken first
    bulk_consumer.start()
    wait_for(lambda: api.get(location).json()["status"] == "succeeded", 60)
    bulk_consumer.stop()
    bulk_consumer.join()
    assert "the bulk lane" in caplog.text
    assert SECRET not in caplog.text
    assert not broker.exists(Lane.bulk.value, "unacked")


def test_a_bulk_turn_that_a_closed_job_runner_refuses_is_published_again_to_its_lane(
    api: TestClient, post: Post, runner: JobRunner, bulk_consumer: Consumer, waiting: Callable[[Lane], int]
) -> None:
    location, refused, run = post(Lane.bulk), threading.Event(), runner.run

    def run_and_note(job_id: UUID) -> bool:
        done = run(job_id)
        bulk_consumer.stop()
        refused.set()
        return done

    bulk_consumer._run_job = run_and_note
    runner.close()
    bulk_consumer.start()
    assert refused.wait(60)
    bulk_consumer.join()
    assert waiting(Lane.bulk) == 1
    assert api.get(location).json()["status"] == "queued"


def test_a_turn_unblocked_by_a_bulk_turn_is_published_to_its_own_lane(
    api: TestClient, session_id: str, runner: JobRunner, broker: redis.Redis, all_sent: AllSent
) -> None:
    url, sound = f"/v1/sessions/{session_id}/turns", {"audio": ("a.wav", wav(), "audio/wav")}
    for lane in (Lane.bulk, Lane.interactive):
        assert api.post(url, files=sound, data={"lane": lane.value}).status_code == 202
    all_sent()
    (message,) = cast("list[bytes]", broker.lrange(Lane.bulk.value, 0, -1))
    broker.flushdb()
    runner.run(UUID(json.loads(base64.b64decode(json.loads(message)["body"]))[0][0]))
    assert (broker.llen(Lane.interactive.value), broker.llen(Lane.bulk.value)) == (1, 0)


def test_turns_in_a_batch_get_the_same_predictions_as_alone(task: AnalyzeTurn) -> None:
    turns = [
        {"samples": tone(seconds) if seconds else None, "text": text}
        for seconds in (0, 1.0, 1.7)
        for text in ("I am happy", "so what", None)
        if seconds or text
    ]
    pipeline, submit = task._pipeline, task._stages.stage_runner(Lane.interactive)
    with ThreadPoolExecutor(len(turns)) as threads:
        together = list(threads.map(lambda turn: pipeline.analyze(**turn, submit=submit), turns))
    for analysis, turn in zip(together, turns, strict=True):
        alone = pipeline.analyze(**turn)
        assert analysis.transcript == alone.transcript
        assert analysis.prediction.scores is not None
        assert alone.prediction.scores is not None
        assert analysis.prediction.scores.categories == pytest.approx(alone.prediction.scores.categories, abs=1e-4)


def test_the_duration_of_a_job_is_measured(say: Say) -> None:
    def measured(name: str, **labels: str) -> float:
        return REGISTRY.get_sample_value(name, labels) or 0.0

    def counts() -> list[float]:
        stages = [measured("tenor_stage_seconds_count", stage=stage) for stage in STAGES]
        batches = [measured("tenor_batch_size_count", stage=stage) for stage in STAGES[2:]]
        wait = measured("tenor_queue_wait_seconds_count", lane="interactive")
        return [*stages, *batches, wait, measured("tenor_jobs_total", lane="interactive", outcome="succeeded")]

    before = counts()
    say(recording=wav())
    assert [after - was for was, after in zip(before, counts(), strict=True)] == [1] * len(before)


class Hangs(Hears):
    """A transcriber that hears nothing more in one stage until it is told to go on."""

    def __init__(self) -> None:
        super().__init__()
        self.stage = "vad"
        self.reached, self.goes_on = threading.Event(), threading.Event()

    def detect_speech(self, samples: Samples) -> list[tuple[float, float]]:
        self._hang("vad")
        return super().detect_speech(samples)

    def transcribe(self, clips: Sequence[Clip]) -> list[Transcript]:
        self._hang("transcribe")
        return super().transcribe(clips)

    def _hang(self, stage: str) -> None:
        if stage == self.stage:
            self.reached.set()
            assert self.goes_on.wait(30)


@pytest.fixture
def hangs(task: AnalyzeTurn) -> Iterator[Hangs]:
    """The transcriber from now on."""
    hanging = Hangs()
    task._pipeline._transcriber = LazyModel(lambda: cast("Transcriber", hanging))
    yield hanging
    hanging.goes_on.set()


@pytest.mark.parametrize("stage", ["vad", "transcribe"])
def test_a_stage_that_takes_too_long_ends_as_an_attempt_and_does_not_block_the_other_threads(
    api: TestClient, send: Send, runner: JobRunner, hangs: Hangs, settings: Settings, stage: str
) -> None:
    hangs.stage = stage
    runner._settings = settings.updated(worker={"stage_limit_s": 0.1})
    (location, job_id), (written, other) = send(recording=wav()), send(text="I am happy")
    with ThreadPoolExecutor(1) as pool:
        hanging = pool.submit(runner.run, job_id)
        assert hangs.reached.wait(10)
        time.sleep(0.2)
        runner.abandon_timed_out()
        turn = api.get(location).json()
        assert (turn["status"], turn["error"]["code"]) == ("queued", "stage_timeout")
        assert f"the stage {stage!r} took longer than 0.1 s" in turn["error"]["message"]
        assert (runner.running_jobs, runner.abandoned, runner.is_busy) == ([], {Lane.interactive: 1}, False)
        runner.run(other)
        assert api.get(written).json()["status"] == "succeeded"
        hangs.goes_on.set()
        assert hanging.result(10)
    assert not runner.abandoned


def test_unfinished_jobs_are_released_without_using_an_attempt(
    api: TestClient,
    send: Send,
    runner: JobRunner,
    hangs: Hangs,
    broker: redis.Redis,
    all_sent: AllSent,
    database: Database,
) -> None:
    location, job_id = send(recording=wav())
    all_sent()
    with ThreadPoolExecutor(1) as pool:
        late = pool.submit(runner.run, job_id)
        assert hangs.reached.wait(10)
        broker.flushdb()
        runner.close()
        runner.release(runner.running_jobs)
        assert broker.llen(Lane.interactive.value) == 1
        with database.transaction() as transaction:
            claimed = transaction.jobs.claim(job_id, timedelta(seconds=30))
        assert claimed is not None
        assert claimed.attempts == 1
        hangs.goes_on.set()
        late.result(10)
    assert api.get(location).json()["status"] == "running"  # what came late was not ours to write


def test_a_closed_job_runner_claims_no_job(api: TestClient, send: Send, runner: JobRunner) -> None:
    location, job_id = send(text="I am happy")
    runner.close()
    assert not runner.run(job_id)
    assert api.get(location).json()["status"] == "queued"


def test_a_message_for_a_deleted_job_is_no_error(runner: JobRunner) -> None:
    runner.run(UUID(int=0))


@pytest.mark.parametrize(("lane", "first_s", "longest_s"), [(Lane.bulk, 1, 60), (Lane.delivery, 5, 3600)])
def test_the_delay_between_attempts_grows_up_to_a_maximum(lane: Lane, first_s: float, longest_s: float) -> None:
    retry = Settings().retries[lane]
    waits = [retry.pause(attempts).total_seconds() for attempts in range(1, 12)]
    assert waits == sorted(waits)
    assert (waits[0], waits[-1]) == (first_s, longest_s)


def test_deliveries_are_retried_for_most_of_a_day() -> None:
    retry = Settings().retries[Lane.delivery]
    pauses = [retry.pause(attempts) for attempts in range(1, retry.attempts)]
    assert timedelta(hours=23) < sum(pauses, timedelta(0)) < timedelta(hours=25)
