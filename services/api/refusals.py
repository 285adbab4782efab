"""Counts the requests and connections that the API refuses at a limit."""

import collections
import logging
import time

from prometheus_client import Counter

HTTP_REFUSED_TOTAL = Counter(
    "tenor_http_refused_total", "Requests and connections that were refused or dropped at a limit.", ["reason"]
)
REFUSAL_REASONS = (
    "headers_too_large",
    "header_timeout",
    "body_timeout",
    "send_timeout",
    "connections",
    "connection_replaced",
    "uploads",
    "malformed",
)
for _reason in REFUSAL_REASONS:
    HTTP_REFUSED_TOTAL.labels(_reason)  # each begins at 0, so that Prometheus sees the first increase

_REPORT_INTERVAL_S = 60.0

_log = logging.getLogger(__name__)


class RefusalCounter:
    """Counts refusals, and logs the counts once a minute at most, because a client can cause very many."""

    def __init__(self) -> None:
        self._counts: collections.Counter[str] = collections.Counter()
        self._next_report = 0.0

    @property
    def pending(self) -> bool:
        """Whether there are refusals that the log does not have yet."""
        return bool(self._counts)

    def count(self, reason: str) -> None:
        """Count one refusal; `reason` is one of `REFUSAL_REASONS`."""
        HTTP_REFUSED_TOTAL.labels(reason).inc()
        self._counts[reason] += 1

    def report(self) -> None:
        """Log the refusals since the last report, unless that was less than a minute ago."""
        now = time.monotonic()
        if not self._counts or now < self._next_report:
            return
        counts = ", ".join(f"{reason} {count}" for reason, count in self._counts.most_common())
        _log.warning("refused at a limit: %s (the metric tenor_http_refused_total counts them all)", counts)
        self._counts.clear()
        self._next_report = now + _REPORT_INTERVAL_S


refusals = RefusalCounter()
"""The refusals of this process."""
