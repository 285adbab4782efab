"""`python -m workers.standin THREADS`: a worker whose model is a pause of 20 ms, so that all the rest can be measured.

As many threads as told hand their items to one micro-batcher; one thread alone, as one would write it without, pauses
by itself. What is done is counted in the broker.
"""

import sys
import time
from collections.abc import Callable, Sequence

import redis
from celery import Celery

from shared.domain.job import Lane
from shared.messaging.broker import STANDIN, STANDIN_DONE, celery_app
from shared.settings import BatchLimits, get_settings
from workers.batching import MicroBatcher

PAUSE_S = 0.02


def run(threads: int) -> None:
    """Work until SIGTERM."""
    settings = get_settings()
    app = celery_app(settings.broker_url)
    register(app, redis.Redis.from_url(settings.broker_url.get_secret_value()), _batched() if threads > 1 else _alone)
    options = ["--pool=threads", f"--concurrency={threads}", f"--queues={Lane.interactive.value}"]
    app.worker_main(
        ["worker", *options, "--without-gossip", "--without-mingle", "--without-heartbeat", "--loglevel=WARNING"]
    )


def register(app: Celery, broker: redis.Redis, model: Callable[[str], object]) -> None:
    """The one task."""

    @app.task(name=STANDIN)
    def standin(item: str) -> None:
        model(item)
        broker.incr(STANDIN_DONE)


def _batched() -> Callable[[str], object]:
    batcher = MicroBatcher[str, str]("standin", _pause, BatchLimits(items=16, budget=16))
    return lambda item: batcher.submit(item)()


def _alone(item: str) -> object:
    return _pause([item])


def _pause(items: Sequence[str]) -> Sequence[str]:
    time.sleep(PAUSE_S)
    return items


if __name__ == "__main__":
    run(int(sys.argv[1]))
