"""How long each stage takes on this machine, in batches of several sizes, and the lines that fit that best."""

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

from services.bench.service import servers
from services.capacity.costs import STAGES, Size, StageCost
from shared.audio.decoder import SAMPLE_RATE, Samples, decode
from shared.domain.job import Job, Lane, NewJob
from shared.domain.session import Consent
from shared.domain.speaker import SpeakerRole
from shared.domain.turn import MAX_CONTEXT_TURNS
from shared.errors import InvalidRequest
from shared.modeling.baseline import Summary
from shared.modeling.pipeline import Analysis, Item, Pipeline, Result, Stage, at_once
from shared.settings import Batches, Settings
from shared.store.database import Database

BATCHES = (1, 2, 4, 8, 16)
PARTS = (0.5, 1.0)
"""Each clip is analysed in this much of its length."""
EARLIER = 10
"""A voice is read against so many earlier turns, as in the middle of a conversation."""


@dataclass(frozen=True)
class Run:
    """One measured batch: its turns, the seconds of sound of the longest, and seconds of the clock and of all cores."""

    items: int
    longest_s: float
    wall_s: float
    cpu_s: float


@dataclass(frozen=True)
class Walked:
    """A clip's way through the models.

    Attributes:
        met: by the name of a stage, that stage and what it was given.
    """

    seconds: float
    met: dict[str, tuple[Stage[Any, Any], Any]]
    analysis: Analysis


def measure_stages(settings: Settings, pipeline: Pipeline, files: Sequence[Path], rounds: int) -> dict[str, StageCost]:
    """The cost of every stage that a turn of these files comes to.

    Args:
        files: spoken clips of a few seconds.
        rounds: how often each batch is run; its median counts.

    Raises:
        InvalidRequest: no turn comes to some stage, as nobody speaks or the words cannot be read.
    """
    sounds = [decode(file) for file in files]
    walks = list(_walks(pipeline, sounds))
    costs = {"decode": _cost(list(_decoding(files, rounds)), "cpu")}
    device = "gpu" if _on_gpu(settings) else "cpu"
    for name in dict.fromkeys(name for walk in walks for name in walk.met):
        met = [walk for walk in walks if name in walk.met]
        batched = name in Batches.model_fields
        runs = list(_runs(met, name, BATCHES if batched else (1,), rounds))
        costs[name] = _cost(runs, device if batched else "cpu", _size(met, name) if batched else None)
    costs["store"] = _cost(list(_storing(settings, pipeline.bundle.id, walks, rounds)), "interpreter")
    if unmet := [name for name in STAGES if name not in costs]:
        raise InvalidRequest(f"nothing in these files comes to {', '.join(unmet)}: give clips in which somebody speaks")
    return {name: costs[name] for name in STAGES}


def machine(settings: Settings) -> tuple[str, int]:
    """In words, and how many of its cores this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    gpu = [torch.cuda.get_device_name()] if _on_gpu(settings) else []
    return ", ".join([*gpu, f"{_processor()}, {cores} cores"]), cores


def fit(runs: Sequence[Run]) -> tuple[float, float, float]:
    """Seconds of a batch, of each item, and of each item's second of sound; none below 0.

    Least squares of the relative error, so that a batch of one counts as much as one of sixteen. With three unknowns
    the best solution without negative ones is the best of those that leave some of them out.
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


def _size(walks: Sequence[Walked], name: str) -> Size:
    """The line that comes nearest to the sizes that a stage says its items have."""
    rows = np.array([[1.0, walk.seconds] for walk in walks])
    sizes = np.array([stage.size(item) for stage, item in (walk.met[name] for walk in walks)])
    fixed, per_second = np.linalg.lstsq(rows, sizes, rcond=None)[0]
    if fixed <= 0 or per_second < 0:
        fixed, per_second = sizes.mean(), 0.0
    return Size(fixed=float(f"{fixed:.3g}"), per_second=float(f"{per_second:.3g}"))


def _walks(pipeline: Pipeline, sounds: Sequence[Samples]) -> Iterator[Walked]:
    """Each clip, whole and in part, as a turn of a conversation."""
    heard: list[Summary] = []
    said: list[str] = []
    for samples in (sound[: int(part * sound.size)] for sound in sounds for part in PARTS):
        met: dict[str, tuple[Stage[Any, Any], Any]] = {}

        def note(
            stage: Stage[Item, Result], item: Item, /, met: dict[str, tuple[Stage[Any, Any], Any]] = met
        ) -> Callable[[], Result]:
            met[stage.name] = stage, item
            return at_once(stage, item)

        earlier, context = (heard * EARLIER)[-EARLIER:], said[-MAX_CONTEXT_TURNS:]
        analysis = pipeline.analyze(samples=samples, text=None, earlier=earlier, context=context, submit=note)
        heard += [] if analysis.voice_summary is None else [analysis.voice_summary]
        said += [] if analysis.transcript is None else [analysis.transcript.text]
        yield Walked(samples.size / SAMPLE_RATE, met, analysis)


def _runs(walks: Sequence[Walked], name: str, batches: Sequence[int], rounds: int) -> Iterator[Run]:
    """Batches of clips of like length, the shortest first and then the longest, as workers make them."""
    by_length = sorted(walks, key=lambda walk: walk.seconds)
    for items in batches:
        for first in range(0, len(by_length), max(1, len(by_length) // 4)):
            batch = [by_length[min(first + place, len(by_length) - 1)] for place in range(items)]
            stage = batch[0].met[name][0]
            given = [walk.met[name][1] for walk in batch]
            wall_s, cpu_s = _measured(lambda stage=stage, given=given: stage.run(given), rounds)
            yield Run(items, max(walk.seconds for walk in batch), wall_s, cpu_s)


def _decoding(files: Sequence[Path], rounds: int) -> Iterator[Run]:
    for file in files:
        wall_s, cpu_s = _measured(lambda file=file: decode(file), rounds)
        yield Run(1, decode(file).size / SAMPLE_RATE, wall_s, cpu_s)


def _storing(settings: Settings, bundle_id: str, walks: Sequence[Walked], rounds: int) -> Iterator[Run]:
    """A turn's way through the database on the worker's side, in a conversation that grows."""
    with servers(settings) as (_, running):
        database = Database(running.database_url, pool_size=1)
        conversation = _Conversation(database, settings, bundle_id)
        for walk in rounds * list(walks):
            job = conversation.accept()
            wall_s, cpu_s = _measured(lambda job=job, walk=walk: conversation.store(job, walk.analysis), 1)
            yield Run(1, walk.seconds, wall_s, cpu_s)
        database.close()


class _Conversation:
    """A session in the database."""

    def __init__(self, database: Database, settings: Settings, bundle_id: str) -> None:
        self._database = database
        self._lease = settings.lease
        self._bundle_id = bundle_id
        with database.transaction() as transaction:
            self._tenant_id = transaction.accounts.ensure_tenant("bench")
            self._id = transaction.sessions.create(self._tenant_id, Consent()).id

    def accept(self) -> Job:
        """Another spoken turn. No sound is stored for it, as none is decoded."""
        sound = {"sha256": 64 * "0", "media_type": "audio/ogg", "duration_s": None, "channels": None}
        said = {"speaker": "A", "role": SpeakerRole.user, "text": None}
        with self._database.transaction() as transaction:
            recording = transaction.recordings.add(self._id, uri=f"bench/{uuid4()}", retention=None, **sound)
            turn = transaction.turns.add(self._tenant_id, self._id, recording_id=recording.id, **said)
            new = NewJob(turn_id=turn.id, lane=Lane.interactive)
            ((job, _),) = transaction.jobs.enqueue([new], lease=self._lease)
        return job

    def store(self, job: Job, analysis: Analysis) -> None:
        """What a worker does with the database: it takes the job up, and writes its result."""
        summary = None if analysis.voice_summary is None else analysis.voice_summary.tobytes()
        with self._database.transaction() as transaction:
            claimed = transaction.jobs.claim(job.id, self._lease)
            assert claimed is not None
            work = transaction.turn_results.read_work(claimed, self._bundle_id)
        with self._database.transaction() as transaction:
            transaction.jobs.succeed(claimed, lease=self._lease)
            result = (analysis.transcript, analysis.reading, summary)
            transaction.turn_results.write(work.turn.id, self._bundle_id, *result)


def _measured(action: Callable[[], object], rounds: int) -> tuple[float, float]:
    """The median of the seconds that it takes, by the clock and of all this process's cores."""
    seconds = []
    for _ in range(rounds):
        wall, cpu = time.perf_counter(), time.process_time()
        action()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds.append((time.perf_counter() - wall, time.process_time() - cpu))
    wall_s, cpu_s = np.median(seconds, axis=0)
    return float(wall_s), float(cpu_s)


def _on_gpu(settings: Settings) -> bool:
    return settings.device != "cpu" and torch.cuda.is_available()


def _processor() -> str:
    """Its name, as Linux knows it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
