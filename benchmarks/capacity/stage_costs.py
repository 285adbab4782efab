"""Measures the time of each pipeline stage on this machine in batches of several sizes, and fits a line to it."""

import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.capacity.costs import Size, StageCost, Step, stage_names
from benchmarks.embedded_service import embedded_servers
from shared.audio.decoder import SAMPLE_RATE, Samples, decode
from shared.domain.job import Job, Lane, NewJob
from shared.domain.session import Consent
from shared.domain.speaker import SpeakerRole
from shared.domain.turn import MAX_CONTEXT_TURNS
from shared.errors import InvalidRequest
from shared.modeling.baseline import AudioSummary
from shared.modeling.pipeline import Analysis, Item, Pipeline, Result, Stage, run_immediately
from shared.settings import Batches, Settings
from shared.store.database import Database

BATCHES = (1, 2, 4, 8, 16)
PARTS = (0.5, 1.0)
"""The fractions of each clip that are analysed."""
BASELINE_TURNS = 10
"""The number of the speaker's earlier turns, as in the middle of a conversation."""


@dataclass(frozen=True)
class Run:
    """A measured batch: its items, the seconds of its longest audio, its wall time, and its CPU time on all cores."""

    items: int
    longest_s: float
    wall_s: float
    cpu_s: float


@dataclass(frozen=True)
class RecordedTurn:
    """A turn that went through the pipeline.

    Attributes:
        seconds: of its audio.
        inputs: for the name of each stage it entered, the stage and its input.
        path: the steps it took.
    """

    seconds: float
    inputs: dict[str, tuple[Stage[Any, Any], Any]]
    path: tuple[Step, ...]
    analysis: Analysis


def measure_stages(
    settings: Settings, pipeline: Pipeline, files: Sequence[Path], rounds: int
) -> tuple[dict[str, StageCost], tuple[Step, ...]]:
    """Return the cost of each stage, and the steps in which the pipeline takes a turn through the stages.

    Args:
        settings: of the worker.
        pipeline: with its models loaded.
        files: audio clips of a few seconds.
        rounds: how often each batch is run; the median counts.

    Raises:
        InvalidRequest: no turn enters some stage, because nobody speaks or the language has no text encoder.
    """
    turns = list(_record_turns(pipeline, [decode(file).samples for file in files]))
    path = max((turn.path for turn in turns), key=len)
    if missing := Batches.model_fields.keys() - set(stage_names(path)):
        names = ", ".join(sorted(missing))
        raise InvalidRequest(f"no turn of these files enters {names}: give clips in which somebody speaks")
    costs = {"decode": _cost(list(_decode_runs(files, rounds)), "cpu")}
    device = "gpu" if _on_gpu(settings) else "cpu"
    for name in stage_names(path)[1:-1]:
        entered = [turn for turn in turns if name in turn.inputs]
        batched = name in Batches.model_fields
        runs = list(_stage_runs(entered, name, BATCHES if batched else (1,), rounds))
        costs[name] = _cost(runs, device if batched else "cpu", _size(entered, name) if batched else None)
    costs["store"] = _cost(list(_store_runs(settings, pipeline.bundle.id, turns, rounds)), "interpreter")
    return costs, path


def describe_machine(settings: Settings) -> tuple[str, int]:
    """Return the name of this machine's GPU and processor, and the number of cores that this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    gpu = [torch.cuda.get_device_name()] if _on_gpu(settings) else []
    return ", ".join([*gpu, f"{_processor()}, {cores} cores"]), cores


def fit(runs: Sequence[Run]) -> tuple[float, float, float]:
    """Fit a line to measured batches: seconds per batch, per item, and per item and second of audio; none negative.

    It minimises the squared relative error, so that a batch of one counts as much as one of sixteen. The best solution
    without negative costs is the best of the least-squares solutions that leave some of the three costs out.
    """
    seconds = np.array([run.wall_s for run in runs])
    rows = np.array([[1.0, run.items, run.items * run.longest_s] for run in runs]) / seconds[:, None]
    solved = (_solved(rows, kept) for count in (1, 2, 3) for kept in combinations(range(3), count))
    best = min(
        (costs for costs in solved if (costs >= 0).all()), key=lambda costs: float(np.sum((rows @ costs - 1) ** 2))
    )
    fixed_s, per_item_s, per_second_s = (float(cost) for cost in best)
    return fixed_s, per_item_s, per_second_s


def _solved(rows: NDArray[np.float64], kept: tuple[int, ...]) -> NDArray[np.float64]:
    costs = np.zeros(rows.shape[1])
    costs[list(kept)] = np.linalg.lstsq(rows[:, kept], np.ones(len(rows)), rcond=None)[0]
    return costs


def _cost(runs: Sequence[Run], uses: str, size: Size | None = None) -> StageCost:
    fixed_s, per_item_s, per_second_s = (float(f"{cost:.3g}") for cost in fit(runs))
    busy = sum(run.cpu_s for run in runs) / sum(run.wall_s for run in runs)
    share = 1.0 if uses == "gpu" else round(max(0.01, busy), 2)
    costs = {"fixed_s": fixed_s, "per_item_s": per_item_s, "per_second_s": per_second_s}
    return StageCost.model_validate({"uses": uses, "share": share, **costs, "size": size})


def _size(turns: Sequence[RecordedTurn], name: str) -> Size:
    """Fit a line over the seconds of audio to the sizes of a stage's items."""
    rows = np.array([[1.0, turn.seconds] for turn in turns])
    sizes = np.array([stage.size(item) for stage, item in (turn.inputs[name] for turn in turns)])
    fixed, per_second = np.linalg.lstsq(rows, sizes, rcond=None)[0]
    if fixed <= 0 or per_second < 0:
        fixed, per_second = sizes.mean(), 0.0
    return Size(fixed=float(f"{fixed:.3g}"), per_second=float(f"{per_second:.3g}"))


class _Recorder:
    """Runs the stages one by one, and records their inputs and the steps of the turn."""

    def __init__(self) -> None:
        self.inputs: dict[str, tuple[Stage[Any, Any], Any]] = {}
        self.path: list[Step] = []

    def submit(self, stage: Stage[Item, Result], item: Item, /) -> Callable[[], Result]:
        self.inputs[stage.name] = stage, item
        self.path.append(Step(action="submit", stage=stage.name))
        result = run_immediately(stage, item)

        def wait() -> Result:
            self.path.append(Step(action="wait", stage=stage.name))
            return result()

        return wait


def _record_turns(pipeline: Pipeline, clips: Sequence[Samples]) -> Iterator[RecordedTurn]:
    """Analyse each fraction of each clip as the next turn of one conversation."""
    summaries: list[AudioSummary] = []
    texts: list[str] = []
    for samples in (clip[: int(part * clip.size)] for clip in clips for part in PARTS):
        recorder = _Recorder()
        analysis = pipeline.analyze(
            samples=samples,
            text=None,
            earlier=(summaries * BASELINE_TURNS)[-BASELINE_TURNS:],
            context=texts[-MAX_CONTEXT_TURNS:],
            submit=recorder.submit,
        )
        summaries += [] if analysis.audio_summary is None else [analysis.audio_summary]
        texts += [] if analysis.transcript is None else [analysis.transcript.text]
        yield RecordedTurn(samples.size / SAMPLE_RATE, recorder.inputs, tuple(recorder.path), analysis)


def _stage_runs(turns: Sequence[RecordedTurn], name: str, batches: Sequence[int], rounds: int) -> Iterator[Run]:
    """Measure a stage in batches of turns of similar length, since workers form such batches."""
    by_length = sorted(turns, key=lambda turn: turn.seconds)
    for items in batches:
        for first in range(0, len(by_length), max(1, len(by_length) // 4)):
            batch = [by_length[min(first + place, len(by_length) - 1)] for place in range(items)]
            stage = batch[0].inputs[name][0]
            inputs = [turn.inputs[name][1] for turn in batch]
            wall_s, cpu_s = _median_times(lambda stage=stage, inputs=inputs: stage.run(inputs), rounds)
            yield Run(items, max(turn.seconds for turn in batch), wall_s, cpu_s)


def _decode_runs(files: Sequence[Path], rounds: int) -> Iterator[Run]:
    for file in files:
        wall_s, cpu_s = _median_times(lambda file=file: decode(file).samples, rounds)
        yield Run(1, decode(file).samples.size / SAMPLE_RATE, wall_s, cpu_s)


def _store_runs(settings: Settings, bundle_id: str, turns: Sequence[RecordedTurn], rounds: int) -> Iterator[Run]:
    """Measure a worker's database transactions of a turn, in a session that grows."""
    with embedded_servers(settings) as (_, servers):
        database = Database(servers.database_url, pool_size=1)
        session = _StoredSession(database, settings, bundle_id)
        for turn in rounds * list(turns):
            job = session.add_turn()
            wall_s, cpu_s = _median_times(lambda job=job, turn=turn: session.store(job, turn.analysis), 1)
            yield Run(1, turn.seconds, wall_s, cpu_s)
        database.close()


class _StoredSession:
    """A session in the database."""

    def __init__(self, database: Database, settings: Settings, bundle_id: str) -> None:
        self._database = database
        self._lease = settings.jobs.lease
        self._bundle_id = bundle_id
        with database.transaction() as transaction:
            self._tenant_id = transaction.accounts.ensure_tenant("bench")
            self._id = transaction.sessions.create(self._tenant_id, Consent()).id

    def add_turn(self) -> Job:
        """Insert an audio turn and its job. No audio is stored, since none is decoded."""
        with self._database.transaction() as transaction:
            recording = transaction.recordings.add(
                self._id,
                uri=f"bench/{uuid4()}",
                sha256=64 * "0",
                media_type="audio/ogg",
                duration_s=None,
                channel_count=None,
                retention=None,
            )
            turn = transaction.turns.add(
                self._tenant_id, self._id, recording_id=recording.id, speaker="A", role=SpeakerRole.user, text=None
            )
            new = NewJob(turn_id=turn.id, lane=Lane.interactive)
            ((job, _),) = transaction.jobs.enqueue([new], lease=self._lease)
        return job

    def store(self, job: Job, analysis: Analysis) -> None:
        """Run a worker's transactions: one claims the job, the other stores the result."""
        summary = None if analysis.audio_summary is None else analysis.audio_summary.tobytes()
        with self._database.transaction() as transaction:
            claimed = transaction.jobs.claim(job.id, self._lease)
            assert claimed is not None
            work = transaction.turn_results.read_work(claimed, self._bundle_id)
        with self._database.transaction() as transaction:
            transaction.jobs.succeed(claimed, lease=self._lease)
            result = (analysis.transcript, analysis.prediction, summary)
            transaction.turn_results.write(work.turn.id, self._bundle_id, *result)


def _median_times(action: Callable[[], object], rounds: int) -> tuple[float, float]:
    """Run `action` and return the medians of its wall time and of its CPU time on all cores, in seconds."""
    seconds: list[tuple[float, float]] = []
    for _ in range(rounds):
        wall, cpu = time.perf_counter(), time.process_time()
        action()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds.append((time.perf_counter() - wall, time.process_time() - cpu))
    wall_s, cpu_s = np.median(seconds, axis=0)
    return float(wall_s), float(cpu_s)


def _on_gpu(settings: Settings) -> bool:
    return settings.models.device != "cpu" and torch.cuda.is_available()


def _processor() -> str:
    """Return the name of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
