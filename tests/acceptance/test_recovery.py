"""What a crash leaves undone is done again, once, without a person."""

import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import psycopg
import pytest

from shared.audio.decoder import decode, encode
from shared.domain.job import Lane
from shared.errors import EX_TEMPFAIL
from tests.acceptance.conftest import ASSETS, Tenor
from tests.audio_clips import silence
from tests.conftest import PATIENCE, wait_for

TURNS = 20
RECOVERY_S = 30
"""Longest time from the end of the leases until everything is done."""

SPOKEN = ASSETS / "english.ogg"


@contextmanager
def killed_at_the_end(worker: "subprocess.Popen[bytes]") -> Iterator[None]:
    try:
        yield
    finally:
        worker.kill()
        worker.wait()


@pytest.fixture
def session_id(tenor: Tenor) -> str:
    """Its turns wait for one another, and every other one is in the bulk lane."""
    session_id = tenor.session()
    for number in range(TURNS):
        tenor.say(session_id, SPOKEN, Lane.bulk if number % 2 else Lane.interactive)
    return session_id


def assert_all_are_done_once(tenor: Tenor, session_id: str) -> None:
    wait_for(lambda: tenor.count(session_id, "succeeded") == TURNS, tenor.settings.jobs.lease_s + RECOVERY_S)
    assert tenor.predictions(session_id) == TURNS


def test_every_turn_is_analysed_once_after_the_worker_is_killed(tenor: Tenor, session_id: str) -> None:
    with killed_at_the_end(tenor.start_worker()) as _:
        wait_for(lambda: tenor.count(session_id, "succeeded") >= 3 and tenor.count(session_id, "running") > 0, 30)
    assert tenor.count(session_id, "running") > 0
    assert tenor.count(session_id, "succeeded") < TURNS
    with killed_at_the_end(tenor.start_worker()):
        assert_all_are_done_once(tenor, session_id)


def test_every_turn_is_analysed_once_after_the_broker_is_flushed(tenor: Tenor, session_id: str) -> None:
    with killed_at_the_end(tenor.start_worker()):
        wait_for(lambda: tenor.count(session_id, "succeeded") >= 3, 30)
        tenor.broker().flushdb()
        assert tenor.count(session_id, "queued") > 0
        assert_all_are_done_once(tenor, session_id)


def test_a_worker_told_to_stop_finishes_its_running_jobs(tenor: Tenor, session_id: str) -> None:
    worker = tenor.start_worker()
    with killed_at_the_end(worker):
        wait_for(lambda: tenor.count(session_id, "succeeded") >= 3, 30)
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(30 * PATIENCE) == 0
    assert tenor.count(session_id, "running") == 0
    with killed_at_the_end(tenor.start_worker()):
        assert_all_are_done_once(tenor, session_id)


def test_a_stopping_worker_releases_the_jobs_that_it_cannot_finish(tenor: Tenor, session_id: str) -> None:
    worker = tenor.start_worker(worker_drain_s=0, jobs_lease_s=3600)
    with killed_at_the_end(worker):
        wait_for(lambda: tenor.count(session_id, "running") > 0, 30)
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(30 * PATIENCE) == 0
    assert tenor.count(session_id, "running") == 0
    assert tenor.workers() == 0
    with killed_at_the_end(tenor.start_worker(jobs_max_attempts=1)):
        assert_all_are_done_once(tenor, session_id)


def test_a_worker_whose_threads_hang_exits_and_other_workers_run_its_jobs(tenor: Tenor, session_id: str) -> None:
    worker = tenor.start_worker(worker_interactive_threads=1, worker_bulk_threads=1, worker_stage_limit_s=0.01)
    with killed_at_the_end(worker):
        assert worker.wait(60 * PATIENCE) == EX_TEMPFAIL
    assert any(turn["error"] and turn["error"]["code"] == "stage_timeout" for turn in tenor.turns(session_id))
    with killed_at_the_end(tenor.start_worker()):
        assert_all_are_done_once(tenor, session_id)


def test_a_recording_of_a_killed_worker_is_split_by_a_worker_of_the_recording_lane(tenor: Tenor) -> None:
    sounds = [sound for path in sorted(ASSETS.glob("*.ogg")) for sound in (decode(path).samples, silence(1.5))]
    files = {"audio": ("call.flac", encode(np.concatenate(sounds * 25)), "audio/flac")}
    light = {"worker_interactive_threads": 0, "worker_bulk_threads": 0}
    with killed_at_the_end(tenor.start_worker(**light)):
        posted = tenor.api.post(f"/v1/sessions/{tenor.session()}/recordings", files=files)
        wait_for(lambda: cuts(tenor) > 10, 60)

    def call() -> dict[str, Any]:
        return tenor.api.get(posted.headers["Location"]).json()

    assert call()["status"] == "running"
    with killed_at_the_end(tenor.start_worker(**light)):
        wait_for(lambda: call()["status"] == "succeeded", 120)
        assert tenor.workers() == 0
        assert call()["turns"]["queued"] == cuts(tenor) == len(sounds) // 2 * 25
        # What was stored as the worker died was announced, and goes once that is old.
        wait_for(lambda: sum(path.is_file() for path in tenor.settings.blob_dir.rglob("*")) <= cuts(tenor) + 1, 60)


def cuts(tenor: Tenor) -> int:
    with psycopg.connect(tenor.settings.database.url.get_secret_value()) as connection:
        row = connection.execute("SELECT count(*) FROM recordings WHERE source_id IS NOT NULL").fetchone()
    assert row is not None
    return row[0]
