"""OpenTelemetry traces. They are off unless TENOR_OBSERVABILITY_OTLP_ENDPOINT names a collector.

A trace leads from the request through the job's row to every attempt at the job, so that it continues when a message
was lost. Spans hold ids, names and numbers; of an error they hold its code or type, because its message may quote the
text of a turn.
"""

import threading
from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from opentelemetry import trace
from opentelemetry.trace import Span, SpanKind, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from shared.errors import SetupError, TenorError
from shared.observability.logging import current_context
from shared.settings import Settings

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

_FLUSH_TIMEOUT_S = 3.0
_propagator = TraceContextTextMapPropagator()
# Not OpenTelemetry's global provider: other libraries would send their spans to it, which may hold the text of a turn.
_provider: "TracerProvider | trace.NoOpTracerProvider" = trace.NoOpTracerProvider()


def start_tracing(settings: Settings, service: str) -> None:
    """Send this process's spans to the collector that TENOR_OBSERVABILITY_OTLP_ENDPOINT names, if it is set.

    OpenTelemetry's environment variables apply, such as OTEL_EXPORTER_OTLP_HEADERS and OTEL_TRACES_SAMPLER.

    Raises:
        SetupError: the extra `tracing` is not installed.
    """
    global _provider
    if settings.observability.otlp_endpoint is None:
        return
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        raise SetupError(
            "TENOR_OBSERVABILITY_OTLP_ENDPOINT is set, but OpenTelemetry is not installed: pip install "
            "'tenor[tracing]', or unset it"
        ) from None
    # shutdown_on_exit would wait half a minute for a collector that does not answer.
    provider = TracerProvider(resource=Resource.create({"service.name": service}), shutdown_on_exit=False)
    exporter = OTLPSpanExporter(f"{settings.observability.otlp_endpoint.rstrip('/')}/v1/traces")
    provider.add_span_processor(BatchSpanProcessor(exporter))
    _provider = provider


def stop_tracing() -> None:
    """Send the remaining spans, for three seconds at most, and stop tracing."""
    global _provider
    provider, _provider = _provider, trace.NoOpTracerProvider()
    if not isinstance(provider, trace.NoOpTracerProvider):
        flushing = threading.Thread(target=provider.shutdown, daemon=True)
        flushing.start()
        flushing.join(_FLUSH_TIMEOUT_S)


@contextmanager
def start_as_current_span(
    name: str, kind: SpanKind = SpanKind.INTERNAL, traceparent: str | None = None, **attributes: str | int | float
) -> Generator[Span]:
    """Open a span for the duration of the block. Spans started in the block are its children.

    See `start_span` for the arguments. The span's status is an error if the block raises.
    """
    span = start_span(name, kind, traceparent, **attributes)
    with trace.use_span(span, end_on_exit=True, record_exception=False, set_status_on_exception=False):
        try:
            yield span
        except BaseException as error:
            record_error(span, error)
            raise


def start_span(
    name: str, kind: SpanKind = SpanKind.INTERNAL, traceparent: str | None = None, **attributes: str | int | float
) -> Span:
    """Start a span that the caller ends, on any thread.

    Args:
        name: one of few names. Whatever varies belongs in the attributes.
        kind: OpenTelemetry's kind of span.
        traceparent: the parent as a W3C `traceparent`, by default the current span. The span begins a trace if the
            value is invalid.
        attributes: stored as `tenor.NAME`, beside the ids of the log context.
    """
    parent = None if traceparent is None else _propagator.extract({"traceparent": traceparent})
    prefixed = {f"tenor.{key}": value for key, value in {**current_context(), **attributes}.items()}
    return _provider.get_tracer("tenor").start_span(name, parent, kind, prefixed)


def record_error(span: Span, error: BaseException) -> None:
    """Set a span's status to error, with the error's code or type and without its message."""
    span.set_attribute("error.type", error.code if isinstance(error, TenorError) else type(error).__name__)
    span.set_status(StatusCode.ERROR)


def current_traceparent() -> str | None:
    """Return the current span as a W3C `traceparent`, or None outside of a trace."""
    carrier: dict[str, str] = {}
    _propagator.inject(carrier)
    return carrier.get("traceparent")
