"""Logs and metrics.

Logs go to stderr, one line an event, with ids and codes and never a person's words or a secret. Metrics are
Prometheus's, one set a process, and labelled by what there are few of: stages, lanes, outcomes, routes.
"""

import logging
import traceback
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from copy import copy
from types import MappingProxyType
from typing import Any, Literal

from prometheus_client import Counter, Histogram, start_http_server
from pythonjsonlogger.json import JsonFormatter

from shared.errors import SetupError

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)

BATCH_SIZE = Histogram(
    "tenor_batch_size", "Items that were run together.", ["stage"], buckets=(1, 2, 4, 8, 16, 32, 64, 128)
)
STAGE_SECONDS = Histogram(
    "tenor_stage_seconds", "A turn's time in a stage, from hand-in to result.", ["stage"], buckets=SECONDS
)
QUEUE_WAIT = Histogram(
    "tenor_queue_wait_seconds", "From a turn's acceptance until a worker took it up.", ["lane"], buckets=SECONDS
)
JOBS = Counter("tenor_jobs_total", "Attempts at a job, by how they ended.", ["lane", "outcome"])
JOB_SECONDS = Histogram("tenor_job_seconds", "An attempt at a job, from claim to end.", ["lane"], buckets=SECONDS)

_ids: ContextVar[Mapping[str, str]] = ContextVar("ids", default=MappingProxyType({}))


@contextmanager
def about(**ids: object) -> Generator[None]:
    """Whatever is logged within says what it is about: these ids, but those that are None, and those around it."""
    token = _ids.set({**_ids.get(), **{name: str(value) for name, value in ids.items() if value is not None}})
    try:
        yield
    finally:
        _ids.reset(token)


def ids() -> Mapping[str, str]:
    """What is going on is about these."""
    return _ids.get()


def configure_logging(log_format: Literal["text", "json"] = "text", level: int = logging.INFO) -> None:
    """Set up this process's logs. Libraries are heard from WARNING on."""
    handler = logging.StreamHandler()
    handler.setFormatter(formatter(log_format))
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    logging.captureWarnings(True)
    for package in ("services", "workers", "shared", "training"):
        logging.getLogger(package).setLevel(level)


def formatter(log_format: Literal["text", "json"]) -> logging.Formatter:
    """Lines for people, or for programs: one JSON object each."""
    if log_format == "text":
        return _Text("%(asctime)s %(levelname)-7s %(name)s%(about)s: %(message)s")
    names = {"levelname": "level", "name": "logger"}
    return _Json("{levelname}{name}{message}", style="{", rename_fields=names, timestamp="time")


class _Text(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        known = " ".join(f"{name}={value}" for name, value in ids().items())
        line = copy(record)  # which other handlers are given too
        line.about = f" [{known}]" if known else ""
        return super().format(line)


class _Json(JsonFormatter):
    def process_log_record(self, log_data: dict[str, Any]) -> dict[str, Any]:
        return {**log_data, **ids()}


def serve_metrics(port: int) -> None:
    """Answer Prometheus on a port of its own, for as long as this process lives.

    Raises:
        SetupError: the port is taken, or may not be listened on.
    """
    try:
        start_http_server(port)
    except OSError as error:
        raise SetupError(f"TENOR_METRICS_PORT: cannot listen on {port} ({error.strerror}): choose another") from None


def type_and_place(error: Exception) -> str:
    """What may be logged of an unforeseen error. Its message may quote what a person said, so it may not."""
    return type(error).__name__ + "\n" + "".join(traceback.format_tb(error.__traceback__))
