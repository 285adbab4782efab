"""`python -m benchmarks.stub_worker THREADS`: a worker whose model is a pause of 20 ms.

It shows what the queue, the threads and the micro-batches cost without a model. With more than one thread, all threads
hand their items to one micro-batcher; a single thread runs the model by itself. The worker counts the tasks that it has
done in the broker.
"""

# Celery and redis are not fully typed.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUntypedFunctionDecorator=false

import sys
import time
from collections.abc import Callable, Sequence

import redis
from celery import Celery

from shared.domain.job import Lane
from shared.messaging.broker import celery_app
from shared.settings import BatchLimits, get_settings
from workers.batching import MicroBatcher

TASK = "stub"
COUNTER = "stub_tasks_done"
"""The broker's key that counts the tasks done."""
PAUSE_S = 0.02


def run(threads: int) -> None:
    """Run tasks until SIGTERM."""
    settings = get_settings()
    app = celery_app(settings.broker_url)
    model = _batched_model() if threads > 1 else _single_model
    register_task(app, redis.Redis.from_url(settings.broker_url.get_secret_value()), model)
    options = ["--pool=threads", f"--concurrency={threads}", f"--queues={Lane.interactive.value}"]
    app.worker_main(
        ["worker", *options, "--without-gossip", "--without-mingle", "--without-heartbeat", "--loglevel=WARNING"]
    )


def register_task(app: Celery, broker: redis.Redis, model: Callable[[str], object]) -> None:
    """Register the worker's only task."""

    @app.task(name=TASK)
    def stub(item: str) -> None:
        model(item)
        broker.incr(COUNTER)


def _batched_model() -> Callable[[str], object]:
    batcher = MicroBatcher[str, str]("stub", _pause, BatchLimits(items=16, budget=16))
    return lambda item: batcher.submit(item)()


def _single_model(item: str) -> object:
    return _pause([item])


def _pause(items: Sequence[str]) -> Sequence[str]:
    time.sleep(PAUSE_S)
    return items


if __name__ == "__main__":
    run(int(sys.argv[1]))
