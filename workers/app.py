"""The worker process: models loaded once, then Celery's thread pool, one thread a task, and the bulk lane's threads."""

import gc
from uuid import UUID

import torch
from celery import Celery
from celery.exceptions import Reject
from celery.signals import worker_ready, worker_shutdown, worker_shutting_down

from shared.blobs import open_blobs
from shared.domain.job import Lane
from shared.modeling.pipeline import load_pipeline
from shared.queue import ANALYZE_TURN, Queue, celery_app
from shared.settings import Settings
from shared.store.database import Database
from shared.telemetry import serve_metrics
from shared.tracing import start_tracing, stop_tracing
from workers.bulk import BulkThread
from workers.engine import Engine
from workers.lifetime import Lifetime
from workers.stages import Stages
from workers.sweeper import Sweeper


def run(settings: Settings) -> None:
    """Load the models, then work until SIGTERM or Ctrl-C; see `Lifetime` for how it ends.

    Prefork is never used: CUDA does not survive a fork.

    Raises:
        SetupError: the tables are an earlier version's, the models cannot be loaded, what a setting asks for is not
            installed, or the port for metrics is taken.
        Unavailable: Postgres or the store of recordings cannot be reached.
    """
    start_tracing(settings, "tenor-worker")
    database = Database(settings.database_url, pool_size=settings.worker_threads + settings.bulk_threads + 2)
    database.check_tables()
    blobs = open_blobs(settings)
    blobs.check()
    pipeline = load_pipeline(settings)
    pipeline.warm_up()
    # What is there by now stays. To look through it for garbage would hold all threads up for a third of a second.
    gc.collect()
    gc.freeze()
    if settings.metrics_port is not None:
        serve_metrics(settings.metrics_port)
    queue = Queue(settings.broker_url)
    engine = Engine(settings, database, queue, blobs, pipeline, Stages(pipeline, settings.batches, settings.courtesy_s))
    sweeper = Sweeper(settings, database, queue, blobs, pipeline.bundle.id, _device(settings), held=lambda: engine.held)
    app = celery_app(settings.broker_url)
    register(app, engine)
    bulk = [BulkThread(app, engine.run) for _ in range(settings.bulk_threads)]
    lifetime = Lifetime(settings, engine, bulk, leave=sweeper.stop)
    for begins in (sweeper, lifetime, *bulk):
        worker_ready.connect(lambda begins=begins, **_: begins.start(), weak=False)
    for ends in (worker_shutting_down, worker_shutdown):
        ends.connect(lambda **_: lifetime.end(), weak=False)
    # Celery waits for its own threads, and ends the process then.
    for thread in bulk:
        worker_shutdown.connect(lambda thread=thread, **_: thread.join(), weak=False)
    worker_shutdown.connect(lambda **_: sweeper.stop(), weak=False)
    worker_shutdown.connect(lambda **_: stop_tracing(), weak=False)
    app.worker_main(
        [
            "--quiet",  # else it prints a banner among the logs
            "worker",
            "--pool=threads",
            f"--concurrency={settings.worker_threads}",
            f"--queues={Lane.interactive.value}",
            "--without-gossip",
            "--without-mingle",
            "--without-heartbeat",
            "--loglevel=WARNING",
        ]
    )


def register(app: Celery, engine: Engine) -> None:
    """The tasks. Their arguments are ids, nothing else."""

    @app.task(name=ANALYZE_TURN)
    def analyze_turn(job_id: str) -> None:
        if not engine.run(UUID(job_id)):
            raise Reject(requeue=True)


def _device(settings: Settings) -> str:
    """What the models run on, for people."""
    on_cpu = settings.device == "cpu" or not torch.cuda.is_available()
    return "cpu" if on_cpu else torch.cuda.get_device_name()
