"""A worker's life with turns of every kind: each ends, the worker lives on, and nothing is said in its logs."""

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any, cast
from uuid import UUID

import numpy as np
import pytest
import redis
from fastapi.testclient import TestClient

from shared.audio import Samples
from shared.blobs import BlobFolder
from shared.domain.transcript import Segment, Transcript, TranscriptSource
from shared.modeling.baseline import Summary
from shared.modeling.lazy import Lazy
from shared.modeling.pipeline import Analysis, Pipeline
from shared.modeling.transcriber import Transcriber
from shared.queue import INTERACTIVE, Queue
from shared.settings import Settings
from shared.store.database import Database
from tests.sounds import riff, tone, wav
from tests.unit.tiny import write_bundle
from workers.engine import Engine, backoff

SECRET = "my father has died"


class Hears:
    """A transcriber that always hears the secret, or fails with it in its message."""

    def __init__(self) -> None:
        self.broken = False

    def transcribe(self, samples: Samples, language: str | None, speech: list[tuple[float, float]]) -> Transcript:
        if self.broken:
            raise ValueError(f"cannot decode {SECRET!r}")
        segment = Segment(start=0.0, end=1.0, text=SECRET)
        return Transcript(language="en", language_probability=0.9, segments=(segment,), source=TranscriptSource.asr)

    def speech(self, samples: Samples) -> list[tuple[float, float]]:
        return [(0.0, 1.0)]


@pytest.fixture
def hears() -> Hears:
    return Hears()


@pytest.fixture
def engine(settings: Settings, database: Database, tmp_path: Path, hears: Hears) -> Engine:
    pipeline = Pipeline.load(write_bundle(tmp_path / "bundle"), lambda: cast("Transcriber", hears))
    return Engine(settings, database, Queue(settings.broker_url), BlobFolder(settings.blob_dir), pipeline)


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
            job = transaction.conversations.turn(tenant_id, UUID(response.json()["id"])).job
        return response.headers["Location"], job.id

    return send


@pytest.fixture
def say(api: TestClient, send: Send, engine: Engine) -> Say:
    """Send a turn, let the engine do its job, and read the turn."""

    def say(text: str | None = None, recording: bytes | None = None) -> dict[str, Any]:
        location, job_id = send(text, recording)
        engine.run(job_id)
        return api.get(location).json()

    return say


def test_a_text_and_a_recording_end_with_a_prediction(say: Say) -> None:
    written, spoken = say(text="I am happy"), say(recording=wav())
    assert written["prediction"]["modalities_used"] == ["text"]
    assert spoken["prediction"]["modalities_used"] == ["text", "audio"]
    assert spoken["transcript"]["segments"][0]["text"] == SECRET


def test_a_prediction_says_on_how_many_turns_its_baseline_rests(api: TestClient, session_id: str, say: Say) -> None:
    said = [say(recording=wav(tone(hertz=hertz))) for hertz in (200, 250)]
    said += [say(text="I am happy"), say(recording=wav())]
    counts = [turn["prediction"]["baseline_turns"] for turn in said]
    assert counts == [0, 1, 0, 2]
    history = api.get(f"/v1/sessions/{session_id}/history").json()["turns"]
    assert [turn["prediction"]["baseline_turns"] for turn in history] == counts


def test_a_voice_is_read_against_the_summaries_that_earlier_turns_left(
    say: Say, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    analyze, left, given = Pipeline.analyze, list[Summary](), list[Sequence[Summary]]()

    def analyze_and_note(
        pipeline: Pipeline,
        *,
        samples: Samples,
        text: None,
        language: None,
        earlier: Sequence[Summary],
        context: Sequence[str],
    ) -> Analysis:
        analysis = analyze(pipeline, samples=samples, text=text, language=language, earlier=earlier, context=context)
        assert analysis.voice_summary is not None
        given.append(earlier)
        left.append(analysis.voice_summary)
        return analysis

    monkeypatch.setattr(Pipeline, "analyze", analyze_and_note)
    for hertz in (200, 250, 300):
        say(recording=wav(tone(hertz=hertz)))
    for count, earlier in enumerate(given):
        np.testing.assert_array_equal(np.array(earlier), np.array([summary.flatten() for summary in left[:count]]))
    assert not np.array_equal(left[0], left[1])


def test_a_turn_that_came_too_early_is_sent_for_when_the_one_before_has_ended(
    api: TestClient, send: Send, engine: Engine, settings: Settings
) -> None:
    (_, first), (location, second) = send(recording=wav()), send(recording=wav())
    broker = redis.Redis.from_url(settings.broker_url.get_secret_value())
    broker.flushdb()
    engine.run(second)
    assert api.get(location).json()["status"] == "queued"
    engine.run(first)
    (message,) = cast("list[bytes]", broker.lrange(INTERACTIVE, 0, -1))
    assert str(second) in json.loads(message)["headers"]["argsrepr"]
    engine.run(second)
    assert api.get(location).json()["prediction"]["baseline_turns"] == 1


@pytest.mark.parametrize(
    ("recording", "code"),
    [
        (riff(np.full(1600, np.nan, "<f4").tobytes(), bits=32, kind=3), "audio_not_finite"),
        (wav(tone(20, rate=8000), rate=8000), "audio_too_long"),
    ],
)
def test_a_recording_that_only_shows_its_fault_when_decoded_fails_with_its_code(
    say: Say, engine: Engine, settings: Settings, recording: bytes, code: str
) -> None:
    engine._settings = settings.model_copy(update={"max_turn_s": 10.0})
    turn = say(recording=recording)
    assert (turn["status"], turn["error"]["code"]) == ("failed", code)
    assert say(text="the next one is fine")["status"] == "succeeded"


def test_a_recording_that_vanished_fails_with_its_code(say: Say, settings: Settings, engine: Engine) -> None:
    engine._blobs = BlobFolder(settings.data_dir / "elsewhere")
    turn = say(recording=wav())
    assert (turn["status"], turn["error"]["code"]) == ("failed", "recording_gone")


def test_the_unexpected_puts_the_job_back_without_repeating_what_was_said(
    say: Say, hears: Hears, caplog: pytest.LogCaptureFixture
) -> None:
    hears.broken = True
    with caplog.at_level(logging.INFO):
        turn = say(recording=wav())
    assert turn["status"] == "queued"
    assert turn["error"] == {"code": "internal_error", "message": "internal error (ValueError)"}
    assert "ValueError" in caplog.text
    assert SECRET not in caplog.text


def test_a_turn_whose_last_attempt_fails_is_quarantined_at_once_and_says_so_without_what_was_said(
    say: Say, hears: Hears, engine: Engine, settings: Settings
) -> None:
    engine._settings = settings.model_copy(update={"max_attempts": 1})
    hears.broken = True
    turn = say(recording=wav())
    assert (turn["status"], turn["error"]["code"]) == ("quarantined", "attempts_exhausted")
    assert "tried 1 times" in turn["error"]["message"]
    assert "ValueError" in turn["error"]["message"]
    assert SECRET not in turn["error"]["message"]
    hears.broken = False
    assert say(recording=wav())["status"] == "succeeded"


def test_nothing_that_was_said_is_logged(say: Say, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        say(text=SECRET)
        say(recording=wav())
    assert "succeeded" in caplog.text
    assert SECRET not in caplog.text


class Hangs(Hears):
    """A transcriber that hears nothing more until it is told to go on."""

    def __init__(self) -> None:
        super().__init__()
        self.reached, self.goes_on = threading.Event(), threading.Event()

    def speech(self, samples: Samples) -> list[tuple[float, float]]:
        self.reached.set()
        assert self.goes_on.wait(30)
        return super().speech(samples)


@pytest.fixture
def hangs(engine: Engine) -> Iterator[Hangs]:
    """The engine's transcriber from now on."""
    hanging = Hangs()
    engine._pipeline._transcriber = Lazy(lambda: cast("Transcriber", hanging))
    yield hanging
    hanging.goes_on.set()


def test_a_stage_that_takes_too_long_ends_as_an_attempt_and_does_not_block_the_other_threads(
    api: TestClient, send: Send, engine: Engine, hangs: Hangs, settings: Settings
) -> None:
    engine._settings = settings.model_copy(update={"stage_limit_s": 0.1})
    (location, job_id), (written, other) = send(recording=wav()), send(text="I am happy")
    with ThreadPoolExecutor(1) as pool:
        hanging = pool.submit(engine.run, job_id)
        assert hangs.reached.wait(10)
        time.sleep(0.2)
        engine.give_up_stuck()
        turn = api.get(location).json()
        assert (turn["status"], turn["error"]["code"]) == ("queued", "stage_timeout")
        assert "the stage 'models' took longer than 0.1 s" in turn["error"]["message"]
        assert (engine.held, engine.stuck, engine.busy) == ([], 1, False)
        engine.run(other)
        assert api.get(written).json()["status"] == "succeeded"
        hangs.goes_on.set()
        assert hanging.result(10)
    assert engine.stuck == 0


def test_what_is_not_finished_is_given_back_without_using_an_attempt(
    api: TestClient, send: Send, engine: Engine, hangs: Hangs, settings: Settings, database: Database
) -> None:
    location, job_id = send(recording=wav())
    broker = redis.Redis.from_url(settings.broker_url.get_secret_value())
    with ThreadPoolExecutor(1) as pool:
        late = pool.submit(engine.run, job_id)
        assert hangs.reached.wait(10)
        broker.flushdb()
        engine.close()
        engine.give_back()
        assert broker.llen(INTERACTIVE) == 1
        with database.transaction() as transaction:
            work = transaction.jobs.claim(job_id, timedelta(seconds=30), "bundle")
        assert work is not None
        assert work.job.attempts == 1
        hangs.goes_on.set()
        late.result(10)
    assert api.get(location).json()["status"] == "running"  # what came late was not ours to write


def test_an_engine_that_is_closed_takes_no_job_up(api: TestClient, send: Send, engine: Engine) -> None:
    location, job_id = send(text="I am happy")
    engine.close()
    assert not engine.run(job_id)
    assert api.get(location).json()["status"] == "queued"


def test_a_job_that_is_gone_is_no_error(engine: Engine) -> None:
    engine.run(UUID(int=0))


def test_attempts_are_ever_further_apart_up_to_a_minute() -> None:
    waits = [backoff(attempts).total_seconds() for attempts in range(1, 12)]
    assert waits == sorted(waits)
    assert waits[0] == 1
    assert waits[-1] == 60
