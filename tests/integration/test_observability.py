"""Correlation ids, logs, metrics and traces of a turn from its request to its result, without the text of the turn."""

import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from io import StringIO
from pathlib import Path
from typing import Any, cast
from uuid import UUID

import httpx2 as httpx
import psycopg
import pytest
import redis
from fastapi.testclient import TestClient
from prometheus_client import REGISTRY, CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from pydantic import SecretStr

from services.api.app import create_app
from services.api.queue_metrics import QueueDepthCollector
from services.embedded.servers import free_port
from shared.audio.sandbox import AudioSandbox
from shared.domain.job import TURN_LANES, Lane
from shared.messaging.broker import Broker, celery_app
from shared.observability.logging import create_formatter
from shared.observability.tracing import stop_tracing
from shared.settings import Settings
from shared.storage.blobs import BlobFolder
from shared.store.database import Database
from tests.audio_clips import wav
from tests.conftest import wait_for
from tests.integration.conftest import AllSent
from tests.tiny_models import StubTranscriber, pipeline, write_bundle
from tests.trace_collector import Collector, Received, collecting
from workers.consumer import Consumer
from workers.job_runner import JobRunner
from workers.stages import Stages
from workers.sweeper import Sweeper
from workers.tasks.analyze_turn import AnalyzeTurn

pytestmark = pytest.mark.models

SECRET = "my father has died"
STAGES = ["decode", "vad", "transcribe", "text", "speech", "fuse", "store"]
DASHBOARD = Path(__file__).parents[2] / "docker/grafana/dashboards/tenor.json"
TRACE = "0af7651916cd43dd8448eb211c80319c"
TRACEPARENT = f"00-{TRACE}-b7ad6b7169203331-01"
Lines = Callable[[], list[dict[str, Any]]]


@pytest.fixture
def transcriber() -> StubTranscriber:
    return StubTranscriber(SECRET)


@pytest.fixture
def runner(settings: Settings, database: Database, tmp_path: Path, transcriber: StubTranscriber) -> Iterator[JobRunner]:
    tiny = pipeline(write_bundle(tmp_path / "bundle"), transcriber)
    stages = Stages(tiny, settings.batches, settings.worker.bulk_throttle_s)
    audio = AudioSandbox()
    task = AnalyzeTurn(settings, BlobFolder(settings.blob_dir), tiny, stages, audio=audio)
    yield JobRunner(settings, database, Broker(settings.broker.url), dict.fromkeys(TURN_LANES, task))
    stages.close()
    audio.close()


def broken(*_: object, **__: object) -> None:
    raise ValueError(f"cannot decode {SECRET!r}")


@pytest.fixture
def lines() -> Iterator[Lines]:
    """The lines that Tenor logs, as JSON."""
    stream = StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(create_formatter("json"))
    loggers = [logging.getLogger(name) for name in ("services", "workers", "shared")]
    for logger in loggers:
        logger.setLevel(logging.INFO)
        logger.addHandler(handler)
    yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
    for logger in loggers:
        logger.removeHandler(handler)
        logger.setLevel(logging.NOTSET)


def send(api: TestClient, session_id: str, lane: Lane = Lane.interactive, headers: dict[str, str] | None = None) -> str:
    """Send a turn with audio. Returns its location."""
    url, sound = f"/v1/sessions/{session_id}/turns", {"audio": ("a.wav", wav(), "audio/wav")}
    response = api.post(url, files=sound, data={"lane": lane.value}, headers=headers)
    assert response.status_code == 202, response.text
    return response.headers["Location"]


def take(broker: redis.Redis, lane: Lane = Lane.interactive) -> UUID:
    """Remove a lane's oldest message from the broker. Returns the id of its job."""
    wait_for(lambda: bool(broker.exists(lane.value)))
    message = cast("bytes", broker.rpop(lane.value))
    return UUID(re.findall(r"[0-9a-f-]{36}", json.loads(message)["headers"]["argsrepr"])[0])


# correlation ids


def test_the_answer_holds_the_correlation_id(api: TestClient) -> None:
    named = api.get("/v1/nothing", headers={"X-Request-ID": "call-17"})
    assert (named.headers["X-Request-ID"], named.json()["correlation_id"]) == ("call-17", "call-17")
    made = [api.get("/healthz").headers["X-Request-ID"] for _ in range(2)]
    assert len(set(made)) == 2
    assert api.get("/healthz", headers={"traceparent": TRACEPARENT}).headers["X-Request-ID"] == TRACE
    assert api.get("/healthz", headers={"X-Request-ID": "a b"}).headers["X-Request-ID"] != "a b"


def test_every_kind_of_error_holds_the_correlation_id(
    api: TestClient, session_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    headers, url = {"X-Request-ID": "call-17"}, f"/v1/sessions/{session_id}/turns"
    answers = [
        api.post(url, json={"text": 1}, headers=headers),
        api.post(url, content=b"x" * (2**21 + 1), headers=headers),
        api.get("/v1/turns/0", headers=headers | {"Authorization": ""}),
    ]
    monkeypatch.setattr("services.api.routes.turns.identify", broken)
    answers.append(api.post(url, json={"text": "x"}, headers=headers))
    assert [answer.status_code for answer in answers] == [422, 413, 401, 500]
    for answer in answers:
        assert (answer.headers["X-Request-ID"], answer.json()["correlation_id"]) == ("call-17", "call-17")


def test_every_log_line_of_a_turn_holds_the_correlation_id(
    api: TestClient,
    session_id: str,
    runner: JobRunner,
    transcriber: StubTranscriber,
    broker: redis.Redis,
    lines: Lines,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    send(api, session_id, headers={"X-Request-ID": "call-17"})
    job_id = take(broker)
    with monkeypatch.context() as patch:
        patch.setattr(transcriber, "transcribe", broken)
        runner.run(job_id)
    runner.run(job_id)
    answered, failed, succeeded = (line for line in lines() if line.get("correlation_id") == "call-17")
    assert (answered["logger"], answered["level"]) == ("services.api.middleware", "INFO")
    assert (answered["method"], answered["route"]) == ("POST", "/v1/sessions/{session_id}/turns")
    assert answered["status"] == 202
    assert answered["ms"] > 0
    assert "ValueError" in failed["message"]
    assert "succeeded" in succeeded["message"]
    assert failed["job_id"] == succeeded["job_id"] == str(job_id)
    assert not [line for line in lines() if line["logger"].startswith("workers") and "correlation_id" not in line]
    assert SECRET not in json.dumps(lines())


def test_the_log_line_of_an_attempt_that_cannot_be_recorded_holds_the_correlation_id(
    api: TestClient,
    session_id: str,
    runner: JobRunner,
    broker: redis.Redis,
    lines: Lines,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    send(api, session_id, headers={"X-Request-ID": "call-17"})
    monkeypatch.setattr(runner, "_succeed", broken)
    monkeypatch.setattr(runner, "_retry_or_quarantine", broken)
    runner.run(take(broker))
    (left,) = (line for line in lines() if "left to the sweeper" in line["message"])
    assert left["correlation_id"] == "call-17"
    assert SECRET not in json.dumps(lines())


def test_paths_and_probes_are_not_logged(api: TestClient, lines: Lines) -> None:
    api.get("/v1/my-father-has-died", params={"why": "my-father-has-died"})
    api.request("MY-FATHER-HAS-DIED", "/v1/sessions")
    api.get("/healthz")
    unknown, odd = lines()
    assert (unknown["route"], unknown["status"]) == ("unmatched", 404)
    assert (odd["method"], odd["route"], odd["status"]) == ("other", "/v1/sessions", 405)
    assert "father" not in json.dumps(lines()).lower()


# metrics


def samples(registry: CollectorRegistry = REGISTRY) -> Iterator[tuple[str, dict[str, str], float]]:
    for family in text_string_to_metric_families(generate_latest(registry).decode()):
        for sample in family.samples:
            yield sample.name, sample.labels, sample.value


def value(name: str, labels: dict[str, str], registry: CollectorRegistry = REGISTRY) -> float:
    return next((number for other, its, number in samples(registry) if (other, its) == (name, labels)), 0.0)


def test_requests_are_counted_and_timed_by_route(api: TestClient, session_id: str) -> None:
    labels = {"method": "GET", "route": "/v1/sessions/{session_id}"}

    def counts() -> list[float]:
        found = [value("tenor_http_requests_total", {**labels, "status": status}) for status in ("200", "404")]
        return [*found, value("tenor_http_request_seconds_count", labels)]

    before = counts()
    api.get(f"/v1/sessions/{session_id}")
    api.get(f"/v1/sessions/{UUID(int=0)}")
    assert [after - was for was, after in zip(before, counts(), strict=True)] == [1, 1, 2]


def test_waiting_jobs_are_counted_by_lane_with_the_age_of_the_oldest(
    api: TestClient, session_id: str, settings: Settings, database: Database
) -> None:
    registry = CollectorRegistry()
    registry.register(QueueDepthCollector(database))
    assert {name: number for name, _, number in samples(registry)} == {
        "tenor_queue_depth": 0,
        "tenor_queue_oldest_seconds": 0,
    }
    for lane in (Lane.interactive, Lane.bulk, Lane.bulk):
        api.post(f"/v1/sessions/{session_id}/turns", json={"text": "hello", "lane": lane.value})
    with psycopg.connect(settings.database.url.get_secret_value()) as connection:
        connection.execute("UPDATE jobs SET created_at = now() - interval '1 hour' WHERE lane = 'bulk'")
    assert [value("tenor_queue_depth", {"lane": lane}, registry) for lane in ("interactive", "bulk")] == [1, 2]
    assert 0 < value("tenor_queue_oldest_seconds", {"lane": "interactive"}, registry) < 60
    assert 3600 <= value("tenor_queue_oldest_seconds", {"lane": "bulk"}, registry) < 3700


def test_waiting_jobs_are_counted_without_reading_every_job(
    api: TestClient, session_id: str, settings: Settings, database: Database
) -> None:
    with psycopg.connect(settings.database.url.get_secret_value(), autocommit=True) as connection:
        api.post(f"/v1/sessions/{session_id}/turns", json={"text": "hello"})
        connection.execute(
            "INSERT INTO jobs (turn_id, status, lease_until) "
            "SELECT turn_id, 'succeeded', now() FROM jobs, generate_series(1, 5000)"
        )
        connection.execute("ANALYZE jobs")
        oldest = "SELECT min(created_at) FROM jobs WHERE lane = 'interactive' AND status = 'queued'"
        plan = "\n".join(str(row) for row in connection.execute(f"EXPLAIN {oldest}"))  # pyright: ignore[reportArgumentType, reportCallIssue]
    assert "ix_jobs_lane_created_at" in plan
    with database.transaction() as transaction:
        assert {waiting.lane: waiting.jobs for waiting in transaction.job_admin.queue_depths()} == {
            lane: int(lane is Lane.interactive) for lane in Lane
        }


def test_the_other_metrics_are_served_while_the_database_is_away() -> None:
    registry = CollectorRegistry()
    registry.register(QueueDepthCollector(Database(SecretStr("postgresql://127.0.0.1:1/none"))))
    assert list(samples(registry)) == []


def test_the_dashboard_shows_every_metric_of_the_api_and_a_worker_and_no_other(
    api: TestClient, session_id: str, runner: JobRunner, broker: redis.Redis, database: Database
) -> None:
    send(api, session_id)
    runner.run(take(broker))
    registry = CollectorRegistry()
    registry.register(QueueDepthCollector(database))
    served: dict[str, set[str]] = {}
    for name, labels, _ in [*samples(), *samples(registry)]:
        served.setdefault(name, set()).update(labels)
    queries = [t["expr"] for panel in json.loads(DASHBOARD.read_text())["panels"] for t in panel["targets"]]
    asked: set[str] = set()
    for query in queries:
        names = set(re.findall(r"tenor_\w+", query))
        labels = {label for group in re.findall(r"by \(([^)]*)\)", query) for label in re.split(r",\s*", group)}
        for name in names:
            assert labels <= served[name], query
        asked |= names
    shown = {re.sub("_(bucket|sum|count)$", "", name) for name in asked}
    ours = {re.sub("_(bucket|sum|count)$", "", name) for name in served if re.match("tenor_.*(?<!_created)$", name)}
    assert shown == ours


def test_the_api_serves_metrics_on_a_separate_port_and_logs_json(settings: Settings) -> None:
    port, metrics = free_port(), free_port()
    env = {
        **os.environ,
        "TENOR_DATABASE_URL": settings.database.url.get_secret_value(),
        "TENOR_BROKER_URL": settings.broker.url.get_secret_value(),
        "TENOR_DATA_DIR": str(settings.data_dir),
        "TENOR_OBSERVABILITY_METRICS_PORT": str(metrics),
        "TENOR_OBSERVABILITY_LOG_FORMAT": "json",
    }
    command = [sys.executable, "-m", "services.cli", "serve", "--port", str(port)]
    serve = subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True)

    def answers() -> bool:
        try:
            return httpx.get(f"http://127.0.0.1:{port}/v1/nothing").status_code == 404
        except httpx.TransportError:
            return False

    try:
        wait_for(lambda: answers() or serve.poll() is not None, 60)
        assert httpx.get(f"http://127.0.0.1:{port}/metrics").status_code == 404
        served = httpx.get(f"http://127.0.0.1:{metrics}/metrics").text
    finally:
        serve.terminate()
        _, log = serve.communicate(timeout=60)
    assert 'tenor_queue_depth{lane="interactive"} 0.0' in served
    assert 'tenor_http_requests_total{method="GET",route="unmatched",status="404"}' in served
    assert [json.loads(line)["status"] for line in log.splitlines()] == [404, 404]


# traces


@pytest.fixture
def collector() -> Iterator[Collector]:
    with collecting() as collector:
        yield collector
        stop_tracing()


@pytest.fixture
def traced(api: TestClient, settings: Settings, collector: Collector) -> Iterator[TestClient]:
    """A client of an API that sends traces."""
    with TestClient(create_app(settings.updated(observability={"otlp_endpoint": collector.url}))) as client:
        client.headers.update(api.headers)
        yield client


def test_a_trace_leads_from_the_request_over_the_broker_through_every_stage(
    traced: TestClient, session_id: str, runner: JobRunner, settings: Settings, collector: Collector
) -> None:
    consumer = Consumer(celery_app(settings.broker.url), Lane.bulk, 1, runner.run)
    consumer.start()
    location = send(traced, session_id, Lane.bulk, {"traceparent": TRACEPARENT})
    wait_for(lambda: traced.get(location).json()["status"] == "succeeded", 60)
    consumer.stop()
    consumer.join()
    stop_tracing()
    spans = [span for span in collector.spans() if span.trace.hex() == TRACE]
    request, attempt = one(spans, "POST /v1/sessions/{session_id}/turns"), one(spans, "attempt")
    assert (request.parent.hex(), attempt.parent, one(spans, "publish").parent) == (
        "b7ad6b7169203331",
        request.id,
        request.id,
    )
    assert (request.kind, one(spans, "publish").kind, attempt.kind) == (2, 4, 5)  # server, producer, consumer
    assert [one(spans, stage).parent for stage in STAGES] == [attempt.id] * len(STAGES)
    assert len(spans) == 3 + len(STAGES)
    assert all(0 < one(spans, stage).seconds <= attempt.seconds for stage in STAGES)
    assert request.attributes["http.response.status_code"] == 202
    assert attempt.attributes["tenor.correlation_id"] == TRACE
    assert not any(span.failed for span in spans)
    assert not any(word in body for body in collector.bodies for word in (SECRET.encode(), session_id.encode()))


def test_correlation_id_and_trace_survive_a_lost_message(
    traced: TestClient,
    session_id: str,
    runner: JobRunner,
    broker: redis.Redis,
    lines: Lines,
    settings: Settings,
    database: Database,
    collector: Collector,
    all_sent: AllSent,
) -> None:
    send(traced, session_id, headers={"X-Request-ID": "call-17", "traceparent": TRACEPARENT})
    all_sent()
    broker.flushdb()
    with psycopg.connect(settings.database.url.get_secret_value()) as connection:
        connection.execute("UPDATE jobs SET lease_until = now() - interval '1 s'")
    with database.transaction() as transaction:
        transaction.jobs.sweep(lease=settings.jobs.lease, retries=settings.retries)
    with psycopg.connect(settings.database.url.get_secret_value()) as connection:
        connection.execute("UPDATE outbox SET created_at = now() - interval '1 minute'")
    Sweeper(settings, database, Broker(settings.broker.url), "bundle").sweep()
    runner.run(take(broker))
    (done,) = (line for line in lines() if "succeeded" in line["message"])
    assert done["correlation_id"] == "call-17"
    stop_tracing()
    names = sorted(span.name for span in collector.spans() if span.trace.hex() == TRACE and span.name not in STAGES)
    assert names == ["POST /v1/sessions/{session_id}/turns", "attempt", "publish", "publish"]


def test_the_trace_of_a_failed_attempt_holds_the_stage_and_not_the_text(
    traced: TestClient,
    session_id: str,
    runner: JobRunner,
    transcriber: StubTranscriber,
    broker: redis.Redis,
    collector: Collector,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(transcriber, "transcribe", broken)
    send(traced, session_id)
    runner.run(take(broker))
    stop_tracing()
    spans = collector.spans()
    assert {span.name for span in spans if span.failed} == {"attempt", "transcribe"}
    assert one(spans, "attempt").attributes["error.type"] == "ValueError"
    assert not any(SECRET.encode() in body for body in collector.bodies)


def test_probes_are_not_traced(traced: TestClient, collector: Collector) -> None:
    traced.get("/healthz")
    traced.get("/v1/nothing")
    stop_tracing()
    assert [span.name for span in collector.spans()] == ["GET unmatched"]


def one(spans: list[Received], name: str) -> Received:
    (found,) = (span for span in spans if span.name == name)
    return found
