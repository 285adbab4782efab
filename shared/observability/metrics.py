"""Prometheus metrics of the stages and jobs, and the port that serves them.

Each process has metrics of its own. A constant's name is its metric's without `tenor_`. Labels have few values: stages,
lanes and outcomes.
"""

from prometheus_client import Counter, Histogram, start_http_server

from shared.errors import SetupError

DURATION_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
"""Upper bounds of the buckets of every duration, in seconds."""

BATCH_SIZE = Histogram("tenor_batch_size", "Items in one batch.", ["stage"], buckets=(1, 2, 4, 8, 16, 32, 64, 128))
STAGE_SECONDS = Histogram(
    "tenor_stage_seconds", "Time of a turn in a stage, from submission to result.", ["stage"], buckets=DURATION_BUCKETS
)
QUEUE_WAIT_SECONDS = Histogram(
    "tenor_queue_wait_seconds",
    "Time from a job's creation until a worker first claimed it.",
    ["lane"],
    buckets=DURATION_BUCKETS,
)
JOBS_TOTAL = Counter("tenor_jobs_total", "Attempts at a job, by outcome.", ["lane", "outcome"])
JOB_SECONDS = Histogram(
    "tenor_job_seconds", "Time of an attempt at a job, from claim to end.", ["lane"], buckets=DURATION_BUCKETS
)


def serve_metrics(port: int) -> None:
    """Serve the metrics at `/metrics` on a port of their own until the process ends.

    Raises:
        SetupError: the process cannot listen on the port.
    """
    try:
        start_http_server(port)
    except OSError as error:
        raise SetupError(
            f"TENOR_OBSERVABILITY_METRICS_PORT: cannot listen on {port} ({error.strerror}): choose another"
        ) from None
