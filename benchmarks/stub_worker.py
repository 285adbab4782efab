"""`python -m benchmarks.stub_worker THREADS`: a worker whose model is a pause of 20 ms.

It shows what the queue, the threads and the micro-batches cost without a model. With more than one thread, all threads
hand their items to one micro-batcher; a single thread runs the model by itself. The worker counts the tasks that it has
done in the broker.
"""

# redis-py is not fully typed.
# pyright: reportUnknownMemberType=false

import sys
import time
from collections.abc import Callable, Sequence
from uuid import UUID

import redis

from shared.domain.job import Lane
from shared.messaging.broker import celery_app
from shared.settings import BatchLimits, get_settings
from workers.consumer import Consumer
from workers.micro_batcher import MicroBatcher

COUNTER = "stub_tasks_done"
"""The broker's key that counts the tasks done."""
PAUSE_S = 0.02


def run(threads: int) -> None:
    """Run tasks until SIGTERM."""
    settings = get_settings()
    broker = redis.Redis.from_url(settings.broker.url.get_secret_value())
    model = _batched_model() if threads > 1 else _single_model

    def run_task(task_id: UUID) -> bool:
        model(task_id)
        broker.incr(COUNTER)
        return True

    consumer = Consumer(celery_app(settings.broker.url), Lane.interactive, threads, run_task)
    consumer.start()
    consumer.join()


def _batched_model() -> Callable[[UUID], object]:
    batcher = MicroBatcher[UUID, UUID]("stub", _pause, BatchLimits(items=16, budget=16))
    return lambda item: batcher.submit(item)()


def _single_model(item: UUID) -> object:
    return _pause([item])


def _pause(items: Sequence[UUID]) -> Sequence[UUID]:
    time.sleep(PAUSE_S)
    return items


if __name__ == "__main__":
    run(int(sys.argv[1]))
