"""The worker process: models loaded once, then Celery's thread pool, one thread a task, and the bulk lane's threads."""

from uuid import UUID

from celery import Celery
from celery.signals import worker_ready, worker_shutdown, worker_shutting_down
from prometheus_client import start_http_server

from shared.blobs import BlobFolder
from shared.domain.job import Lane
from shared.modeling.pipeline import load_pipeline
from shared.queue import ANALYZE_TURN, Queue, celery_app
from shared.settings import Settings
from shared.store.database import Database
from workers.bulk import BulkThread
from workers.engine import Engine
from workers.stages import Stages
from workers.sweeper import Sweeper


def run(settings: Settings) -> None:
    """Load the models, then work until SIGTERM or Ctrl-C; running tasks are finished first.

    Prefork is never used: CUDA does not survive a fork.

    Raises:
        SetupError: the models cannot be loaded.
    """
    pipeline = load_pipeline(settings)
    pipeline.warm_up()
    if settings.metrics_port is not None:
        start_http_server(settings.metrics_port)
    database = Database(settings.database_url, pool_size=settings.worker_threads + settings.bulk_threads + 2)
    blobs = BlobFolder(settings.blob_dir)
    queue = Queue(settings.broker_url)
    engine = Engine(settings, database, queue, blobs, pipeline, Stages(pipeline, settings.batches))
    sweeper = Sweeper(settings, database, queue, blobs, pipeline.bundle.id, held=lambda: engine.held)
    app = celery_app(settings.broker_url)
    register(app, engine)
    bulk = [BulkThread(app, engine.run) for _ in range(settings.bulk_threads)]
    worker_ready.connect(lambda **_: (sweeper.start(), *(thread.start() for thread in bulk)), weak=False)
    worker_shutting_down.connect(lambda **_: [thread.stop() for thread in bulk], weak=False)
    worker_shutdown.connect(lambda **_: (*(thread.join() for thread in bulk), sweeper.stop()), weak=False)
    app.worker_main(
        [
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
        engine.run(UUID(job_id))
