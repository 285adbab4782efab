"""The simulation of a worker, compared with the stages, batches and threads of a real worker."""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import pytest
from prometheus_client import REGISTRY

from benchmarks.capacity.costs import Costs, Size, StageCost, Traffic, stage_names
from benchmarks.capacity.simulation import Demand, simulate
from benchmarks.capacity.stage_costs import measure_stages
from shared.domain.job import Lane
from shared.modeling.pipeline import Pipeline, Stage
from shared.settings import ModelSettings, Settings, WorkerSettings
from tests.audio_clips import tone, wav
from tests.tiny_models import StubTranscriber, pipeline, write_bundle
from workers.stages import Stages

pytestmark = pytest.mark.models

Item = TypeVar("Item")
Result = TypeVar("Result")

TURNS, THREADS = 60, 6
AUDIO_S = 2.0
SLOW = {
    "vad": StageCost(share=0.01, fixed_s=0.02),
    "transcribe": StageCost(share=0.01, fixed_s=0.08, per_item_s=0.02, size=Size(fixed=AUDIO_S + 3)),
    "text": StageCost(share=0.01, fixed_s=0.03, per_item_s=0.01, size=Size(fixed=20)),
    "speech": StageCost(share=0.01, fixed_s=0.05, per_item_s=0.01, size=Size(fixed=AUDIO_S + 1)),
    "fuse": StageCost(share=0.01, fixed_s=0.02, per_item_s=0.005, size=Size(fixed=30)),
}
"""Pauses: a busy machine does not change them, and they are far longer than the tiny models take."""


def slowed(stage: Stage[Item, Result]) -> Stage[Item, Result]:
    """Return the stage with a pause before each batch."""

    def run(items: Sequence[Item]) -> list[Result]:
        time.sleep(SLOW[stage.name].seconds(len(items), AUDIO_S))
        return stage.run(items)

    return replace(stage, run=run)


@pytest.fixture
def slow(tmp_path: Path) -> Pipeline:
    models = pipeline(write_bundle(tmp_path / "bundle"), StubTranscriber())
    models.vad, models.transcribe = slowed(models.vad), slowed(models.transcribe)
    models.text, models.speech, models.fuse = slowed(models.text), slowed(models.speech), slowed(models.fuse)
    models.warm_up = lambda: None
    return models


def batch_sizes() -> Callable[[str], float]:
    """Return a function that returns the mean size of the batches that a stage has run since this call."""

    def counted(name: str, what: str) -> float:
        return REGISTRY.get_sample_value(f"tenor_batch_size_{what}", {"stage": name}) or 0.0

    before = {(name, what): counted(name, what) for name in SLOW for what in ("sum", "count")}

    def mean(name: str) -> float:
        items, batches = (counted(name, what) - before[name, what] for what in ("sum", "count"))
        return items / batches

    return mean


def test_a_saturated_worker_has_the_simulated_rate_and_batch_sizes(slow: Pipeline) -> None:
    settings = Settings(worker=WorkerSettings(interactive_threads=1, bulk_threads=THREADS))
    no_traffic = Traffic.model_validate(dict.fromkeys(Traffic.model_fields, 0.0))
    words = {"measured_on": "pauses", "measured_at": "2026-01-01", "command": "none", "bundle": "tiny"}
    path = Costs.load().path
    stages = {name: SLOW.get(name, StageCost()) for name in stage_names(path)}
    costs = Costs(cores=1, path=path, stages=stages, per_turn=no_traffic, idle=no_traffic, **words)
    simulated = simulate(Demand(backlog=10**6, spoken_s=AUDIO_S, spread=0), 1, costs, settings, turns=1000)

    slow.analyze(samples=tone(AUDIO_S), text=None)
    running, mean = Stages(slow, settings.batches, settings.worker.bulk_throttle_s), batch_sizes()
    submit = running.stage_runner(Lane.bulk)
    started = time.monotonic()
    with ThreadPoolExecutor(THREADS) as threads:
        list(threads.map(lambda _: slow.analyze(samples=tone(AUDIO_S), text=None, submit=submit), range(TURNS)))
    rate = TURNS / (time.monotonic() - started)
    running.close()

    # A busy machine only makes the worker slower, and its batches start a little earlier or later than simulated.
    assert 0.1 < rate / simulated.turns_per_s < 1.4
    for name in ("transcribe", "text", "speech", "fuse"):
        assert 0.3 < mean(name) / simulated.stages[name].mean_batch < 3


def test_the_measured_costs_are_those_of_the_stages(slow: Pipeline, tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(wav(tone(AUDIO_S)))
    measured, path = measure_stages(Settings(models=ModelSettings(device="cpu")), slow, [tmp_path / "a.wav"], rounds=3)
    assert tuple(measured) == ("decode", "vad", "speech", "transcribe", "text", "fuse", "store")
    assert path == Costs.load().path, "the simulation takes turns along another path than the pipeline does"
    for name, cost in SLOW.items():
        for items in (1, 16) if cost.size else (1,):
            ratio = measured[name].seconds(items, AUDIO_S) / cost.seconds(items, AUDIO_S)
            assert 0.8 < ratio < 8, (name, items, ratio)
    assert measured["speech"].size == Size(fixed=1, per_second=1)
    assert (measured["vad"].size, measured["store"].uses) == (None, "interpreter")
    assert 0 < measured["store"].seconds(1, AUDIO_S) < 5
