"""The worker process: loads the models, starts a consumer for each lane and the background threads, and ends them."""

import gc
import logging
import os
import signal
from collections.abc import Sequence
from typing import Any, NoReturn

from shared.audio.sandbox import AudioSandbox
from shared.domain.job import TURN_LANES, Lane
from shared.messaging.broker import Broker, celery_app
from shared.modeling.execution import device_name
from shared.modeling.model_selection import load_pipeline
from shared.modeling.pipeline import Pipeline
from shared.observability.metrics import serve_metrics
from shared.observability.tracing import start_tracing, stop_tracing
from shared.self_check import check_step, decode_clip_in_child
from shared.settings import Settings
from shared.storage.blobs import Blobs, open_blobs
from shared.store.database import Database
from workers.broker_watch import BrokerWatch
from workers.consumer import Consumer
from workers.delivery_lane import DeliveryLane
from workers.health import HealthReporter
from workers.job_runner import JobRunner, Task
from workers.shutdown import Shutdown
from workers.stages import Stages
from workers.sweeper import Sweeper
from workers.tasks.analyze_turn import AnalyzeTurn
from workers.tasks.delete_audio import DeleteAudio
from workers.tasks.split_recording import SplitRecording


def run(settings: Settings) -> NoReturn:
    """Load the models, then run jobs until SIGTERM or Ctrl-C, or until threads hang. See `Shutdown`.

    The models are loaded only where the worker takes turns. Jobs run on threads and never in child processes, because
    CUDA does not survive a fork.

    Raises:
        SetupError: the tables are those of another version, the models cannot be loaded or fail the self-check, a
            package that a setting needs is not installed, or the port for metrics is taken.
        Unavailable: Postgres or the store of recordings cannot be reached.
    """
    start_tracing(settings, "tenor-worker")
    database = Database(settings.database.url, pool_size=settings.worker_connections)
    database.check_tables()
    blobs = open_blobs(settings)
    blobs.check()
    pipeline = _load_models(settings) if settings.worker.threads.keys() & TURN_LANES else None
    if settings.observability.metrics_port is not None:
        serve_metrics(settings.observability.metrics_port)
    audio = _start_decoders(settings)
    broker = Broker(settings.broker.url)
    tasks = _tasks(settings, database, blobs, audio, pipeline)
    runner = JobRunner(settings, database, broker, tasks, 0 if pipeline is None else pipeline.context_turns)
    deliveries = DeliveryLane(settings, database, runner)
    consumers = _consumers(settings, runner, deliveries)
    sweeper = Sweeper(
        settings,
        database,
        broker,
        bundle_id=None if pipeline is None else pipeline.bundle.id,
        device=device_name(settings.models.device),
        running_jobs=lambda: [*runner.running_jobs, *deliveries.running_jobs],
    )
    background = (sweeper, BrokerWatch(settings, database, broker), HealthReporter(settings, consumers))
    shutdown = Shutdown(settings, runner, deliveries, consumers)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: shutdown.request())
    if settings.webhooks.in_flight:
        deliveries.start()
    for part in (*background, *consumers):
        part.start()
    status = shutdown.wait()
    shutdown.drain()
    for part in reversed(background):  # the sweeper last: it renews the leases of jobs that still run
        part.stop()
    audio.close()
    stop_tracing()
    logging.shutdown()
    # `sys.exit` would wait for every thread, and some may hang: in a model, or in the look-up of a host name.
    os._exit(status)


def _load_models(settings: Settings) -> Pipeline:
    with check_step("load the models", "torch", "transformers", "safetensors"):
        pipeline = load_pipeline(settings)
    pipeline.warm_up()
    # The objects that exist now are kept until the end. Searching them for garbage would stop all threads for a third
    # of a second each time.
    gc.collect()
    gc.freeze()
    return pipeline


def _start_decoders(settings: Settings) -> AudioSandbox:
    decoding = sum(count for lane, count in settings.worker.threads.items() if lane in (*TURN_LANES, Lane.recording))
    audio = AudioSandbox(decoding)
    if decoding:
        decode_clip_in_child(audio)
    return audio


def _tasks(
    settings: Settings, database: Database, blobs: Blobs, audio: AudioSandbox, pipeline: Pipeline | None
) -> dict[Lane, Task[Any]]:
    tasks: dict[Lane, Task[Any]] = {
        Lane.recording: SplitRecording(settings, database, blobs, audio),
        Lane.maintenance: DeleteAudio(database, blobs),
    }
    if pipeline is not None:
        stages = Stages(pipeline, settings.batches, settings.worker.bulk_throttle_s)
        tasks.update(dict.fromkeys(TURN_LANES, AnalyzeTurn(settings, blobs, pipeline, stages, audio)))
    return tasks


def _consumers(settings: Settings, runner: JobRunner, deliveries: DeliveryLane) -> Sequence[Consumer]:
    app = celery_app(settings.broker.url)
    consumers = [Consumer(app, lane, threads, runner.run) for lane, threads in settings.worker.threads.items()]
    if settings.webhooks.in_flight:
        # A message only wakes the delivery lane, which runs its deliveries on an event loop of its own.
        consumers.append(Consumer(app, Lane.delivery, 1, deliveries.wake))
    return consumers
