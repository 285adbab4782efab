"""Traces, through OpenTelemetry. They are off, and nothing of it is imported, unless a setting names a collector.

A trace goes from the request through the job's row to every attempt at it, so that it outlives a lost message. What a
span holds are ids, names and numbers; of an error its code or type alone, as its message may quote what a person said.
"""

import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from shared.errors import SetupError, TenorError
from shared.settings import Settings
from shared.telemetry import ids

if TYPE_CHECKING:
    from opentelemetry import trace
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import TracerProvider

_FLUSH_S = 3.0

_provider: "TracerProvider | None" = None


@dataclass
class Span:
    """What a span will say once it ends; it may be changed until then."""

    name: str
    attributes: dict[str, str | int | float] = field(default_factory=dict)
    error: BaseException | None = None


def start_tracing(settings: Settings, service: str) -> None:
    """Send this process's spans to the collector that the settings name, if they name one.

    OpenTelemetry's own environment variables hold, such as OTEL_EXPORTER_OTLP_HEADERS and OTEL_TRACES_SAMPLER.

    Raises:
        SetupError: the packages are not installed.
    """
    global _provider
    if settings.otlp_endpoint is None:
        return
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        raise SetupError(
            "TENOR_OTLP_ENDPOINT is set, but OpenTelemetry is not installed: pip install 'tenor[tracing]', or unset it"
        ) from None
    # Its own end at exit waits half a minute for a collector that is away.
    _provider = TracerProvider(resource=Resource.create({"service.name": service}), shutdown_on_exit=False)
    exporter = OTLPSpanExporter(f"{settings.otlp_endpoint.rstrip('/')}/v1/traces")
    _provider.add_span_processor(BatchSpanProcessor(exporter))


def stop_tracing() -> None:
    """Send what was not sent yet, for a few seconds at most, and trace no more."""
    global _provider
    if _provider is not None:
        ending = threading.Thread(target=_provider.shutdown, daemon=True)
        _provider = None
        ending.start()
        ending.join(_FLUSH_S)


@contextmanager
def span(
    name: str,
    kind: Literal["INTERNAL", "SERVER", "PRODUCER", "CONSUMER"] = "INTERNAL",
    parent: str | None = None,
    **attributes: str | int | float,
) -> Generator[Span]:
    """A span about what goes on within. What is started within, also on threads that take its context, is below it.

    Args:
        name: of few; what it is about are attributes.
        kind: its side of a call or of the queue.
        parent: a W3C `traceparent`, or none where it is not valid; None: the span around this, if any.
        attributes: more than the ids that log lines have, by names that will begin with `tenor.`.
    """
    told = Span(name, _named(attributes))
    if _provider is None:
        yield told
        return
    from opentelemetry.trace import SpanKind, use_span

    started = _tracer(_provider).start_span(name, _context(parent), SpanKind[kind])
    with use_span(started, record_exception=False, set_status_on_exception=False):
        try:
            yield told
        except BaseException as error:
            told.error = error
            raise
        finally:
            _end(started, told)


def begin(name: str) -> Callable[[BaseException | None], None]:
    """A span below the one around it that ends on another thread: by a call of what is returned, with what failed."""
    told = Span(name, _named({}))
    if _provider is None:
        return lambda _: None
    started = _tracer(_provider).start_span(name)

    def end(error: BaseException | None) -> None:
        told.error = error
        _end(started, told)

    return end


def traceparent() -> str | None:
    """The span around this, as W3C Trace Context puts it; None where nothing is traced."""
    if _provider is None:
        return None
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier)
    return carrier.get("traceparent")


def _named(attributes: dict[str, str | int | float]) -> dict[str, str | int | float]:
    return {f"tenor.{name}": value for name, value in {**ids(), **attributes}.items()}


def _tracer(provider: "TracerProvider") -> "trace.Tracer":
    return provider.get_tracer("tenor")


def _context(parent: str | None) -> "Context | None":
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    return None if parent is None else TraceContextTextMapPropagator().extract({"traceparent": parent})


def _end(started: "trace.Span", told: Span) -> None:
    from opentelemetry.trace import StatusCode

    started.update_name(told.name)
    started.set_attributes(told.attributes)
    if told.error is not None:
        known = told.error.code if isinstance(told.error, TenorError) else type(told.error).__name__
        started.set_attribute("error.type", known)
        started.set_status(StatusCode.ERROR)
    started.end()
