"""Configures Python's `logging`, renders its records by structlog, and keeps the ids that every log line carries.

Log lines hold ids and codes, and never the text of a turn or a secret.
"""

import logging
import traceback
from collections.abc import Generator
from contextlib import contextmanager
from typing import Literal

from structlog.contextvars import bound_contextvars, get_contextvars, merge_contextvars
from structlog.processors import EventRenamer, JSONRenderer, TimeStamper, format_exc_info
from structlog.stdlib import ExtraAdder, ProcessorFormatter, add_logger_name
from structlog.typing import EventDict, WrappedLogger

LogFormat = Literal["text", "json"]


@contextmanager
def log_context(**ids: object) -> Generator[None]:
    """Add ids to every log line and span of the block, beside those of the blocks around it. None is left out."""
    with bound_contextvars(**{name: str(value) for name, value in ids.items() if value is not None}):
        yield


def current_context() -> dict[str, str]:
    """Return the ids that `log_context` has set, by name in alphabetical order."""
    return dict(sorted(get_contextvars().items()))


def configure_logging(log_format: LogFormat = "text", level: int = logging.INFO) -> None:
    """Write this process's log to stderr. The log level of other packages is WARNING."""
    handler = logging.StreamHandler()
    handler.setFormatter(create_formatter(log_format))
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    logging.captureWarnings(True)
    for package in ("services", "workers", "shared", "training"):
        logging.getLogger(package).setLevel(level)


def create_formatter(log_format: LogFormat) -> logging.Formatter:
    """Return a formatter that writes plain lines, or one JSON object per line."""
    if log_format == "text":
        # logging itself appends the traceback.
        layout = "%(asctime)s %(levelname)-7s %(name)s%(message)s"
        return ProcessorFormatter(_render_text, fmt=layout, keep_exc_info=True, keep_stack_info=True)
    return ProcessorFormatter(
        processors=[ProcessorFormatter.remove_processors_meta, JSONRenderer()],
        foreign_pre_chain=[
            TimeStamper(fmt="iso", key="time"),
            _add_level,
            add_logger_name,
            EventRenamer("message"),
            ExtraAdder(),
            merge_contextvars,
            format_exc_info,
        ],
    )


def type_and_traceback(error: Exception) -> str:
    """Return an error's type and traceback without its message, which may quote the text of a turn."""
    return type(error).__name__ + "\n" + "".join(traceback.format_tb(error.__traceback__))


def _add_level(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    # structlog's own processor writes the level in lower case.
    return {**event, "level": event["_record"].levelname}


def _render_text(_: WrappedLogger, __: str, event: EventDict) -> str:
    ids = " ".join(f"{name}={value}" for name, value in current_context().items())
    return f" [{ids}]: {event['event']}" if ids else f": {event['event']}"
