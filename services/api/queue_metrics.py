"""The Prometheus metrics of waiting jobs, read from the database whenever Prometheus asks."""

import logging
from collections.abc import Iterator

from prometheus_client.metrics_core import GaugeMetricFamily
from prometheus_client.registry import Collector

from shared.errors import Unavailable
from shared.store.database import Database

_log = logging.getLogger(__name__)


class QueueDepthCollector(Collector):
    """Collects the number of waiting jobs and the age of the oldest one, by lane.

    Collects nothing while the database cannot be reached.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def describe(self) -> list[GaugeMetricFamily]:
        """Return both metrics without values."""
        return [
            GaugeMetricFamily("tenor_queue_depth", "Waiting jobs, counted up to a million.", labels=["lane"]),
            GaugeMetricFamily("tenor_queue_oldest_seconds", "Age of the oldest waiting job.", labels=["lane"]),
        ]

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Yield both metrics, with a value per lane."""
        depth, oldest = self.describe()
        try:
            with self._database.transaction() as transaction:
                lanes = transaction.job_admin.queue_depths()
        except Unavailable as error:
            _log.warning("the waiting jobs cannot be counted: %s", error.detail)
            return
        for waiting in lanes:
            depth.add_metric([waiting.lane.value], waiting.jobs)
            oldest.add_metric([waiting.lane.value], waiting.oldest_s)
        yield depth
        yield oldest
