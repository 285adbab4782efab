"""Logs, metrics and traces of one process without servers."""

import json
import logging
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from io import StringIO
from typing import Literal
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry import trace
from opentelemetry.trace import SpanKind
from pydantic import ValidationError

from services.api.middleware import choose_correlation_id
from shared.errors import SetupError, Unavailable
from shared.observability.logging import create_formatter, log_context
from shared.observability.metrics import serve_metrics
from shared.observability.tracing import (
    current_traceparent,
    record_error,
    start_as_current_span,
    start_span,
    start_tracing,
    stop_tracing,
)
from shared.settings import ObservabilitySettings, Settings
from tests.trace_collector import Collector, collecting

TRACE = "0af7651916cd43dd8448eb211c80319c"
TRACEPARENT = f"00-{TRACE}-b7ad6b7169203331-01"
Lines = Callable[[Literal["text", "json"]], list[str]]


@pytest.fixture
def log() -> tuple[logging.Logger, Lines]:
    """A logger, and a function that returns the lines it wrote in a format."""
    logger, streams = logging.Logger("services.api"), {}
    for name in ("text", "json"):
        streams[name] = StringIO()
        handler = logging.StreamHandler(streams[name])
        handler.setFormatter(create_formatter(name))
        logger.addHandler(handler)
    return logger, lambda name: streams[name].getvalue().splitlines()


def test_a_log_line_holds_the_ids_of_the_log_context(log: tuple[logging.Logger, Lines]) -> None:
    logger, lines = log
    with log_context(correlation_id="call-17", turn_id=None):
        with log_context(job_id=UUID(int=7)):
            logger.info("within")
        logger.info("around")
    logger.info("outside")
    within, around, outside = map(json.loads, lines("json"))
    assert (within["correlation_id"], within["job_id"]) == ("call-17", str(UUID(int=7)))
    assert (around["correlation_id"], "job_id" in around, "turn_id" in around) == ("call-17", False, False)
    assert "correlation_id" not in outside
    assert lines("text")[0].endswith(f"services.api [correlation_id=call-17 job_id={UUID(int=7)}]: within")
    assert lines("text")[2].endswith("services.api: outside")


def test_an_event_in_json_is_one_line_with_its_fields(log: tuple[logging.Logger, Lines]) -> None:
    logger, lines = log
    logger.warning("two\nlines of %d", 3, extra={"status": 503})
    (line,) = lines("json")
    event = json.loads(line)
    assert event.pop("time").startswith("20")
    assert event == {"level": "WARNING", "logger": "services.api", "message": "two\nlines of 3", "status": 503}


def test_an_event_in_json_holds_its_traceback_in_one_field(log: tuple[logging.Logger, Lines]) -> None:
    logger, lines = log
    try:
        raise ValueError("no model")
    except ValueError:
        logger.exception("failed")
    (line,) = lines("json")
    assert json.loads(line)["exception"].endswith("ValueError: no model")
    assert lines("text")[-1] == "ValueError: no model"


def test_the_correlation_id_is_the_clients_request_id_or_trace_id() -> None:
    assert choose_correlation_id("call-17", TRACEPARENT) == "call-17"
    assert choose_correlation_id(None, TRACEPARENT) == TRACE


@pytest.mark.parametrize("request_id", ["", "two words", "a\nb", "x" * 129, "naïve", '"quoted"'])
def test_a_request_id_that_is_unsafe_to_log_is_ignored(request_id: str) -> None:
    assert choose_correlation_id(request_id, TRACEPARENT) == TRACE


@given(
    request_id=st.none() | st.text(), traceparent=st.none() | st.text() | st.just(f"00-{'0' * 32}-b7ad6b7169203331-01")
)
def test_the_correlation_id_is_one_short_word_whatever_is_sent(request_id: str | None, traceparent: str | None) -> None:
    made = choose_correlation_id(request_id, traceparent)
    assert 1 <= len(made) <= 128
    assert made.isascii()
    assert made.isprintable()
    assert not set(made) & set(" \"'[]{}\\<>")
    assert made != "0" * 32


def test_two_requests_without_an_id_get_different_ids() -> None:
    assert choose_correlation_id(None, None) != choose_correlation_id(None, None)


def test_the_error_names_the_setting_of_a_port_in_use() -> None:
    with (
        socket.create_server(("0.0.0.0", 0)) as taken,
        pytest.raises(SetupError, match=r"TENOR_OBSERVABILITY_METRICS_PORT.*in use"),
    ):
        serve_metrics(taken.getsockname()[1])


@pytest.fixture
def collector() -> Iterator[Collector]:
    """A collector to which this process sends its spans."""
    with collecting() as collector:
        start_tracing(Settings(observability=ObservabilitySettings(otlp_endpoint=collector.url)), "tenor-test")
        yield collector
        stop_tracing()


def test_a_span_holds_its_parent_and_the_ids_of_the_log_context(collector: Collector) -> None:
    with (
        log_context(job_id="7"),
        start_as_current_span("attempt", SpanKind.CONSUMER, TRACEPARENT, lane="bulk") as span,
        start_as_current_span("decode"),
    ):
        span.set_attribute("http.route", "/v1")
    stop_tracing()
    decode, attempt = collector.spans()
    assert (attempt.service, attempt.trace.hex(), attempt.parent.hex()) == ("tenor-test", TRACE, "b7ad6b7169203331")
    assert attempt.attributes == {"tenor.job_id": "7", "tenor.lane": "bulk", "http.route": "/v1"}
    assert (decode.name, decode.parent, decode.trace) == ("decode", attempt.id, attempt.trace)


def test_a_trace_continues_from_a_stored_traceparent(collector: Collector) -> None:
    with start_as_current_span("request"):
        stored = current_traceparent()
    with start_as_current_span("attempt", traceparent=stored):
        pass
    assert current_traceparent() is None
    stop_tracing()
    request, attempt = collector.spans()
    assert (attempt.trace, attempt.parent) == (request.trace, request.id)


@pytest.mark.parametrize("traceparent", ["", "hello", f"00-{'0' * 32}-b7ad6b7169203331-01"])
def test_an_invalid_traceparent_begins_a_trace(collector: Collector, traceparent: str) -> None:
    with start_as_current_span("attempt", traceparent=traceparent):
        pass
    stop_tracing()
    (attempt,) = collector.spans()
    assert attempt.parent == b""


@pytest.mark.parametrize(
    ("error", "known"), [(ValueError("my father has died"), "ValueError"), (Unavailable("away"), "unavailable")]
)
def test_a_span_holds_an_errors_type_and_not_its_message(collector: Collector, error: Exception, known: str) -> None:
    with pytest.raises(type(error)), start_as_current_span("decode"):
        raise error
    stop_tracing()
    (decode,) = collector.spans()
    assert (decode.failed, decode.attributes, decode.events) == (True, {"error.type": known}, 0)
    assert not any(b"father" in body for body in collector.bodies)


def test_spans_of_other_libraries_are_not_sent(collector: Collector) -> None:
    with trace.get_tracer("another_library").start_as_current_span("my father has died"):
        pass
    stop_tracing()
    assert collector.bodies == []


def test_a_span_may_end_on_another_thread(collector: Collector) -> None:
    with start_as_current_span("attempt"):
        transcribing = start_span("transcribe")
    thread = threading.Thread(target=transcribing.end)
    thread.start()
    thread.join()
    stop_tracing()
    attempt, transcribe = collector.spans()
    assert (transcribe.name, transcribe.parent, transcribe.failed) == ("transcribe", attempt.id, False)


def test_stopping_does_not_wait_for_a_collector_that_does_not_answer() -> None:
    start_tracing(Settings(observability=ObservabilitySettings(otlp_endpoint="http://127.0.0.1:1")), "tenor-test")
    with start_as_current_span("request"):
        assert current_traceparent()
    stopping = threading.Thread(target=stop_tracing)
    stopping.start()
    stopping.join(10)
    assert not stopping.is_alive()


def test_without_a_collector_nothing_is_traced() -> None:
    start_tracing(Settings(), "tenor-test")
    with start_as_current_span("request") as span:
        span.update_name("another")
        assert current_traceparent() is None
        record_error(span, ValueError())
    start_span("transcribe").end()


def test_without_a_collector_a_callers_traceparent_is_passed_on() -> None:
    with start_as_current_span("request", traceparent=TRACEPARENT):
        assert current_traceparent() == TRACEPARENT


@pytest.mark.parametrize("url", ["collector:4318", "grpc://collector:4317", "http://"])
def test_a_collector_is_named_by_an_http_url(url: str) -> None:
    with pytest.raises(ValidationError, match="should begin with http"):
        Settings(observability=ObservabilitySettings(otlp_endpoint=url))


def run(program: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)


def test_without_a_collector_the_sdk_is_not_imported() -> None:
    create = "from services.api.app import create_app; from shared.settings import Settings; create_app(Settings())"
    # redis-py imports the metrics of OpenTelemetry's SDK if it is installed.
    loaded = "[name for name in sys.modules if name.startswith(('opentelemetry.sdk.trace', 'opentelemetry.exporter'))]"
    result = run(f"import sys, shared.messaging.broker; {create}; print({loaded})")
    assert (result.stdout, result.returncode) == ("[]\n", 0), result.stderr


def test_without_the_tracing_extra_the_error_says_what_to_install() -> None:
    start = "start_tracing(Settings(observability=ObservabilitySettings(otlp_endpoint='http://127.0.0.1:1')), 'tenor')"
    imports = (
        "from shared.settings import ObservabilitySettings, Settings; "
        "from shared.observability.tracing import start_tracing"
    )
    result = run(f"import sys; sys.modules['opentelemetry.sdk'] = None; {imports}; {start}")
    assert "SetupError" in result.stderr
    assert "pip install 'tenor[tracing]'" in result.stderr
