"""The worker process: models loaded once, then Celery's thread pool for one lane, the other lanes' threads, and the
event loop of the deliveries.
"""

import gc
from typing import Any
from uuid import UUID

from celery import Celery
from celery.exceptions import Reject
from celery.signals import worker_ready, worker_shutdown, worker_shutting_down
from celery.worker.request import Request

from shared.audio.sandbox import AudioSandbox
from shared.domain.job import TURN_LANES, Lane
from shared.messaging.broker import Broker, celery_app
from shared.modeling.execution import device_name
from shared.modeling.pipeline import Pipeline, load_pipeline
from shared.observability.metrics import serve_metrics
from shared.observability.tracing import start_tracing, stop_tracing
from shared.self_check import check_step, decode_clip_in_child
from shared.settings import Settings
from shared.storage.blobs import Blobs, open_blobs
from shared.store.database import Database
from workers.broker_watch import BrokerWatch
from workers.consumer import ConsumerThread
from workers.deliveries import DeliveryLane
from workers.health import report_health
from workers.job_runner import JobRunner, Task
from workers.shutdown import Lifetime
from workers.stages import Stages
from workers.sweeper import Sweeper
from workers.tasks.analyze_turn import AnalyzeTurn
from workers.tasks.delete_audio import DeleteAudio
from workers.tasks.split_recording import SplitRecording


def run(settings: Settings) -> None:
    """Load the models, then work until SIGTERM or Ctrl-C; see `Lifetime` for how it ends.

    Models are loaded where turns are taken. Prefork is never used: CUDA does not survive a fork.

    Raises:
        SetupError: the tables are an earlier version's, the models cannot be loaded or do not pass the self-check, what
            a setting asks for is not installed, or the port for metrics is taken.
        Unavailable: Postgres or the store of recordings cannot be reached.
    """
    start_tracing(settings, "tenor-worker")
    database = Database(settings.database_url, pool_size=settings.worker_connections)
    database.check_tables()
    blobs = open_blobs(settings)
    blobs.check()
    pipeline = _loaded(settings) if settings.threads.keys() & TURN_LANES else None
    if settings.metrics_port is not None:
        serve_metrics(settings.metrics_port)
    queue = Broker(settings.broker_url)
    decoding = sum(count for lane, count in settings.threads.items() if lane in (*TURN_LANES, Lane.ingest))
    audio = AudioSandbox(decoding)
    if decoding:
        decode_clip_in_child(audio)
    engine = JobRunner(settings, database, queue, _tasks(settings, database, blobs, audio, pipeline))
    bundle_id = None if pipeline is None else pipeline.bundle.id
    deliveries = DeliveryLane(settings, database, engine)
    sweeper = Sweeper(
        settings,
        database,
        queue,
        bundle_id,
        device_name(settings.device),
        held=lambda: [*engine.held, *deliveries.held],
    )
    watch = BrokerWatch(settings, database, queue)
    app = celery_app(settings.broker_url)
    register(app, engine)
    report_health(app, settings)
    # Its pool serves the first lane that has threads, and ends the process. Where none has, it serves no lane.
    pool, others = next(iter(settings.threads.items()), None), [*settings.threads.items()][1:]
    lanes = [ConsumerThread(app, lane, engine.run) for lane, count in others for _ in range(count)]
    if settings.deliveries_in_flight:
        lanes.append(ConsumerThread(app, Lane.delivery, deliveries.wake))
        worker_ready.connect(lambda **_: deliveries.start(), weak=False)
    lifetime = Lifetime(settings, engine, deliveries, lanes, leave=sweeper.stop)
    for begins in (sweeper, watch, lifetime, *lanes):
        worker_ready.connect(lambda begins=begins, **_: begins.start(), weak=False)
    for ends in (worker_shutting_down, worker_shutdown):
        ends.connect(lambda **_: lifetime.end(), weak=False)
    # Celery waits for its own threads, and ends the process then.
    for thread in (*lanes, deliveries):
        worker_shutdown.connect(lambda thread=thread, **_: thread.join(), weak=False)
    worker_shutdown.connect(lambda **_: audio.close(), weak=False)
    worker_shutdown.connect(lambda **_: watch.stop(), weak=False)
    worker_shutdown.connect(lambda **_: sweeper.stop(), weak=False)
    worker_shutdown.connect(lambda **_: stop_tracing(), weak=False)
    app.worker_main(
        [
            "--quiet",  # else it prints a banner among the logs
            "worker",
            "--pool=threads",
            f"--concurrency={pool[1] if pool else 1}",
            f"--queues={pool[0].value}" if pool else f"--exclude-queues={','.join(Lane)}",
            "--without-gossip",
            "--without-mingle",
            "--without-heartbeat",
            "--loglevel=WARNING",
        ]
    )


class ReconnectingRequest(Request):
    """A message whose failed acknowledgement makes Celery connect to the broker anew.

    Celery only logs that error, and counts the message as unacknowledged for ever. Once every thread's message is lost
    like that, it takes up no more and does not read from the broker, so it would not notice the lost connection either.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - Celery's
        # These are the errors that Celery does not let through to its event loop.
        super().__init__(*args, **kwargs | {"connection_errors": ()})


def register(app: Celery, engine: JobRunner) -> None:
    """The tasks. Their arguments are ids, nothing else."""

    def do(job_id: str) -> None:
        if not engine.run(UUID(job_id)):
            raise Reject(requeue=True)

    for name in {lane.task for lane in Lane}:
        app.task(name=name, Request=ReconnectingRequest)(do)


def _loaded(settings: Settings) -> Pipeline:
    with check_step("load the models", "torch", "transformers", "safetensors"):
        pipeline = load_pipeline(settings)
    pipeline.warm_up()
    # What is there by now stays. To look through it for garbage would hold all threads up for a third of a second.
    gc.collect()
    gc.freeze()
    return pipeline


def _tasks(
    settings: Settings, database: Database, blobs: Blobs, audio: AudioSandbox, pipeline: Pipeline | None
) -> dict[Lane, Task[Any]]:
    tasks: dict[Lane, Task[Any]] = {
        Lane.ingest: SplitRecording(settings, database, blobs, audio),
        Lane.maintenance: DeleteAudio(database, blobs),
    }
    if pipeline is not None:
        stages = Stages(pipeline, settings.batches, settings.courtesy_s)
        tasks.update(dict.fromkeys(TURN_LANES, AnalyzeTurn(settings, blobs, pipeline, stages, audio)))
    return tasks
