"""What is logged, measured and traced, as far as one process without servers shows it."""

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
from pydantic import ValidationError

from services.api.telemetry import correlation_id
from shared.errors import SetupError, Unavailable
from shared.settings import Settings
from shared.telemetry import about, formatter, serve_metrics
from shared.tracing import begin, span, start_tracing, stop_tracing, traceparent
from tests.collector import Collector, collecting

TRACE = "0af7651916cd43dd8448eb211c80319c"
TRACEPARENT = f"00-{TRACE}-b7ad6b7169203331-01"
Lines = Callable[[Literal["text", "json"]], list[str]]


@pytest.fixture
def log() -> tuple[logging.Logger, Lines]:
    """A logger, and what it wrote in a format, line by line."""
    logger, streams = logging.Logger("services.api"), {}
    for name in ("text", "json"):
        streams[name] = StringIO()
        handler = logging.StreamHandler(streams[name])
        handler.setFormatter(formatter(name))
        logger.addHandler(handler)
    return logger, lambda name: streams[name].getvalue().splitlines()


def test_a_line_says_what_it_is_about(log: tuple[logging.Logger, Lines]) -> None:
    logger, lines = log
    with about(correlation_id="call-17", turn_id=None):
        with about(job_id=UUID(int=7)):
            logger.info("within")
        logger.info("around")
    logger.info("outside")
    within, around, outside = map(json.loads, lines("json"))
    assert (within["correlation_id"], within["job_id"]) == ("call-17", str(UUID(int=7)))
    assert (around["correlation_id"], "job_id" in around, "turn_id" in around) == ("call-17", False, False)
    assert "correlation_id" not in outside
    assert lines("text")[0].endswith(f"services.api [correlation_id=call-17 job_id={UUID(int=7)}]: within")
    assert lines("text")[2].endswith("services.api: outside")


def test_an_event_for_programs_is_one_line_with_its_fields(log: tuple[logging.Logger, Lines]) -> None:
    logger, lines = log
    logger.warning("two\nlines of %d", 3, extra={"status": 503})
    (line,) = lines("json")
    event = json.loads(line)
    assert event.pop("time").startswith("20")
    assert event == {"level": "WARNING", "logger": "services.api", "message": "two\nlines of 3", "status": 503}


def test_a_request_is_called_what_its_client_calls_it() -> None:
    assert correlation_id("call-17", TRACEPARENT) == "call-17"
    assert correlation_id(None, TRACEPARENT) == TRACE


@pytest.mark.parametrize("name", ["", "two words", "a\nb", "x" * 129, "naïve", '"quoted"'])
def test_a_name_that_is_not_fit_for_a_log_is_not_taken(name: str) -> None:
    assert correlation_id(name, TRACEPARENT) == TRACE


@given(name=st.none() | st.text(), trace=st.none() | st.text() | st.just(f"00-{'0' * 32}-b7ad6b7169203331-01"))
def test_whatever_is_sent_the_id_is_short_and_of_one_word(name: str | None, trace: str | None) -> None:
    made = correlation_id(name, trace)
    assert 1 <= len(made) <= 128
    assert made.isascii()
    assert made.isprintable()
    assert not set(made) & set(" \"'[]{}\\<>")
    assert made != "0" * 32


def test_two_requests_without_a_name_are_told_apart() -> None:
    assert correlation_id(None, None) != correlation_id(None, None)


def test_a_port_that_is_taken_is_named() -> None:
    with socket.create_server(("0.0.0.0", 0)) as taken, pytest.raises(SetupError, match=r"TENOR_METRICS_PORT.*in use"):
        serve_metrics(taken.getsockname()[1])


@pytest.fixture
def collector() -> Iterator[Collector]:
    """One that this process sends its spans to."""
    with collecting() as collector:
        start_tracing(Settings(otlp_endpoint=collector.url), "tenor-test")
        yield collector
        stop_tracing()


def test_a_span_says_where_it_belongs_and_what_it_is_about(collector: Collector) -> None:
    with about(job_id="7"), span("attempt", "CONSUMER", TRACEPARENT, lane="bulk") as told, span("decode"):
        told.attributes["http.route"] = "/v1"
    stop_tracing()
    decode, attempt = collector.spans()
    assert (attempt.service, attempt.trace.hex(), attempt.parent.hex()) == ("tenor-test", TRACE, "b7ad6b7169203331")
    assert attempt.attributes == {"tenor.job_id": "7", "tenor.lane": "bulk", "http.route": "/v1"}
    assert (decode.name, decode.parent, decode.trace) == ("decode", attempt.id, attempt.trace)


def test_the_trace_goes_on_from_where_it_was_written_down(collector: Collector) -> None:
    with span("request"):
        written = traceparent()
    with span("attempt", parent=written):
        pass
    assert traceparent() is None
    stop_tracing()
    request, attempt = collector.spans()
    assert (attempt.trace, attempt.parent) == (request.trace, request.id)


@pytest.mark.parametrize("parent", ["", "hello", f"00-{'0' * 32}-b7ad6b7169203331-01"])
def test_a_parent_that_is_none_begins_a_trace(collector: Collector, parent: str) -> None:
    with span("attempt", parent=parent):
        pass
    stop_tracing()
    (attempt,) = collector.spans()
    assert attempt.parent == b""


@pytest.mark.parametrize(
    ("error", "known"), [(ValueError("my father has died"), "ValueError"), (Unavailable("away"), "unavailable")]
)
def test_of_an_error_a_span_says_the_kind_alone(collector: Collector, error: Exception, known: str) -> None:
    with pytest.raises(type(error)), span("decode"):
        raise error
    stop_tracing()
    (decode,) = collector.spans()
    assert (decode.failed, decode.attributes, decode.events) == (True, {"error.type": known}, 0)
    assert not any(b"father" in body for body in collector.bodies)


def test_a_span_may_end_on_another_thread(collector: Collector) -> None:
    with span("attempt"):
        end = begin("transcribe")
    thread = threading.Thread(target=end, args=[None])
    thread.start()
    thread.join()
    stop_tracing()
    attempt, transcribe = collector.spans()
    assert (transcribe.name, transcribe.parent, transcribe.failed) == ("transcribe", attempt.id, False)


def test_a_collector_that_is_away_holds_nothing_up() -> None:
    start_tracing(Settings(otlp_endpoint="http://127.0.0.1:1"), "tenor-test")
    with span("request"):
        assert traceparent()
    stopping = threading.Thread(target=stop_tracing)
    stopping.start()
    stopping.join(10)
    assert not stopping.is_alive()


def test_without_a_collector_spans_are_nothing() -> None:
    start_tracing(Settings(), "tenor-test")
    with span("request") as told:
        told.name = "another"
        assert traceparent() is None
    begin("transcribe")(None)


@pytest.mark.parametrize("url", ["collector:4318", "grpc://collector:4317", "http://"])
def test_a_collector_is_named_by_an_http_url(url: str) -> None:
    with pytest.raises(ValidationError, match="should begin with http"):
        Settings(otlp_endpoint=url)


def run(program: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)


def test_nothing_that_traces_is_loaded_where_nothing_is_traced() -> None:
    create = "from services.api.app import create_app; from shared.settings import Settings; create_app(Settings())"
    # redis-py loads what it finds of OpenTelemetry's metrics by itself.
    loaded = "[name for name in sys.modules if name.startswith(('opentelemetry.sdk.trace', 'opentelemetry.exporter'))]"
    result = run(f"import sys, shared.messaging.broker; {create}; print({loaded})")
    assert (result.stdout, result.returncode) == ("[]\n", 0), result.stderr


def test_without_the_tracing_extra_it_is_said_what_to_install() -> None:
    start = "start_tracing(Settings(otlp_endpoint='http://127.0.0.1:1'), 'tenor')"
    imports = "from shared.settings import Settings; from shared.tracing import start_tracing"
    result = run(f"import sys; sys.modules['opentelemetry.sdk'] = None; {imports}; {start}")
    assert "SetupError" in result.stderr
    assert "pip install 'tenor[tracing]'" in result.stderr
