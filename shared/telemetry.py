"""Logs and metrics.

Logs go to stderr, one line an event, with ids and codes and never a person's words or a secret. Metrics are
Prometheus's, one set a process, and labelled by what there are few of: stages, lanes, outcomes.
"""

import logging
import traceback

from prometheus_client import Counter, Histogram

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)

BATCH_SIZE = Histogram(
    "tenor_batch_size", "Items that were run together.", ["stage"], buckets=(1, 2, 4, 8, 16, 32, 64, 128)
)
STAGE_SECONDS = Histogram(
    "tenor_stage_seconds", "A turn's time in a stage, from hand-in to result.", ["stage"], buckets=_SECONDS
)
QUEUE_WAIT = Histogram(
    "tenor_queue_wait_seconds", "From a turn's acceptance until a worker took it up.", ["lane"], buckets=_SECONDS
)
JOBS = Counter("tenor_jobs_total", "Attempts at a job, by how they ended.", ["outcome"])
JOB_SECONDS = Histogram("tenor_job_seconds", "An attempt at a job, from claim to end.", buckets=_SECONDS)


def configure_logging(level: int = logging.INFO) -> None:
    """Set up this process's logs. Libraries are heard from WARNING on."""
    logging.basicConfig(format="%(asctime)s %(levelname)-7s %(name)s: %(message)s", level=logging.WARNING)
    for package in ("services", "workers", "shared", "training"):
        logging.getLogger(package).setLevel(level)


def type_and_place(error: Exception) -> str:
    """What may be logged of an unforeseen error. Its message may quote what a person said, so it may not."""
    return type(error).__name__ + "\n" + "".join(traceback.format_tb(error.__traceback__))
