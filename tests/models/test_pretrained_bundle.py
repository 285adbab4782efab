"""A bundle whose encoders are checkpoints of transformers: its turns are read together as one by one."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch

from shared.domain.bundle import Component
from shared.domain.job import Lane
from shared.domain.transcript import Transcript
from shared.errors import SetupError
from shared.modeling.execution import ON_CPU, Execution
from shared.modeling.loading import PRETRAINED_KIND, read_manifest, sha256, write_manifest
from shared.modeling.pipeline import Analysis, Pipeline
from shared.modeling.predictor import TextInput
from shared.modeling.transcriber import Clip, Transcriber
from shared.settings import Batches, BatchLimits, ModelSettings, Settings
from tests import checkpoints
from tests.audio_clips import tone
from tests.tiny_models import FUSION, StubTranscriber, write_bundle
from workers.stages import Stages

Load = Callable[..., Pipeline]

SHAPES = {"text_width": checkpoints.WIDTH, "audio_width": checkpoints.WIDTH, "audio_layers": checkpoints.LAYERS + 1}
FEW, ALL = ("XLM-R", "XLS-R"), [*checkpoints.TEXT, *checkpoints.SPEECH]
TEXT_INPUTS = [
    TextInput("so what"),
    TextInput("I am so happy that you came to see me today!", ["why did nobody tell me about it", "hello"]),
    TextInput("no", ["yes"]),
    TextInput("what a long and weary way it was"),
    TextInput(""),
]
LENGTHS = (1.0, 3.1, 0.4, 1.0, 2.2, 0.05)
CLIPS = [tone(seconds, 180 + 20 * number) for number, seconds in enumerate(LENGTHS)]


class PickingTranscriber(StubTranscriber):
    """Each clip's words are told by its length."""

    def transcribe(self, clips: Sequence[Clip]) -> list[Transcript]:
        return [StubTranscriber(TEXT_INPUTS[clip.samples.size % 4].text).transcribe([clip])[0] for clip in clips]


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Load:
    """The pipeline of the bundle with these two encoders."""

    @cache
    def folder(text: str, speech: str) -> Path:
        bundle = write_bundle(tmp_path_factory.mktemp("bundle"), fusion=FUSION.model_copy(update=SHAPES))
        encoders = {
            "text_encoder": with_checkpoint(bundle, checkpoints.TEXT[text], {"max_tokens": 40, "context_turns": 2}),
            "speech_encoder": with_checkpoint(bundle, checkpoints.SPEECH[speech], {"max_seconds": 2}),
        }
        write_manifest(bundle, read_manifest(bundle).model_copy(update=encoders))
        return bundle

    def of(text: str = FEW[0], speech: str = FEW[1], execution: Execution = ON_CPU) -> Pipeline:
        return Pipeline.load(folder(text, speech), lambda: cast("Transcriber", PickingTranscriber()), execution)

    return of


def with_checkpoint(folder: Path, make: Callable[[Path], Path], options: dict[str, object]) -> Component:
    torch.manual_seed(0)
    made = make(folder / make.__name__)
    files = {path.relative_to(folder).as_posix(): sha256(path) for path in made.iterdir()}
    return Component(kind=PRETRAINED_KIND, source="random", licence="none", files=files, options=options)


def encode_texts(subject: Pipeline, texts: Sequence[TextInput]) -> list[torch.Tensor]:
    return [text.windows[0] for text in subject.text.run(texts)]


@pytest.mark.parametrize("name", ALL)
def test_encoding_a_batch_of_unequal_lengths_equals_encoding_each_item(name: str, load: Load) -> None:
    subject = load(text=name) if name in checkpoints.TEXT else load(speech=name)

    def encode(items: Sequence[Any]) -> list[torch.Tensor]:
        return encode_texts(subject, items) if name in checkpoints.TEXT else subject.speech.run(items)

    items: Sequence[Any] = TEXT_INPUTS if name in checkpoints.TEXT else CLIPS
    alone = [encode([item])[0] for item in items]
    for rows in (range(len(items)), range(len(items))[::-1]):
        for row, features in zip(rows, encode([items[row] for row in rows]), strict=True):
            assert features.dtype == torch.float32
            torch.testing.assert_close(features, alone[row], atol=1e-4, rtol=0)


def test_predicting_a_batch_equals_predicting_each_turn(load: Load) -> None:
    subject = load()
    turns = [
        (CLIPS[row % len(CLIPS)], None if row % 3 else TEXT_INPUTS[row % len(TEXT_INPUTS)].text) for row in range(24)
    ]
    alone = [subject.analyze(samples=samples, text=text) for samples, text in turns]
    # Long waits, so that batches fill up.
    limits = Batches(**{name: BatchLimits(budget=1e6, wait_s=0.1) for name in Batches.model_fields})
    stages = Stages(subject, limits, max_bulk_pause_s=0)

    def together(turn: tuple[np.ndarray, str | None]) -> Analysis:
        return subject.analyze(
            samples=turn[0], text=turn[1], submit=stages.stage_runner(Lane.interactive, timeout_s=60)
        )

    with ThreadPoolExecutor(len(turns)) as threads:
        for one, other in zip(threads.map(together, turns), alone, strict=True):
            assert_like(one, other)
    stages.close()


def assert_like(one: Analysis, other: Analysis, tolerance: float = 1e-4) -> None:
    assert one.transcript == other.transcript
    assert one.prediction.modalities_used == other.prediction.modalities_used
    for read, also in (
        (one.prediction.scores, other.prediction.scores),
        (one.prediction.text_only, other.prediction.text_only),
        (one.prediction.audio_only, other.prediction.audio_only),
    ):
        assert (read is None) == (also is None)
        if read is not None and also is not None:
            assert read.categories == pytest.approx(also.categories, abs=tolerance)
            assert read.dimensions == pytest.approx(also.dimensions, abs=tolerance)


def test_half_precision_gives_nearly_the_same_prediction(load: Load) -> None:
    exact, rounded = load(), load(execution=Execution(precision=torch.bfloat16))
    for clip, text_input in zip(CLIPS, TEXT_INPUTS, strict=False):
        assert_like(
            *(subject.analyze(samples=clip, text=text_input.text) for subject in (rounded, exact)), tolerance=0.05
        )


def test_a_compiled_pipeline_is_warm_for_every_length_and_reads_the_same(load: Load) -> None:
    try:
        execution = Execution.from_settings(Settings(models=ModelSettings(device="cpu", compile=True)))
    except SetupError as error:
        pytest.skip(error.detail)
    subject, plain = load(execution=execution), load()
    subject.warm_up()

    def later(rows: Sequence[int]) -> list[torch.Tensor]:
        with torch.compiler.set_stance("fail_on_recompile"):
            return [
                *encode_texts(subject, [TEXT_INPUTS[row] for row in rows]),
                *subject.speech.run([CLIPS[row] for row in rows]),
            ]

    with ThreadPoolExecutor(1) as stage:  # as in a worker, the thread is not the one that warmed up
        for rows in ((0,), (3,), (0, 0), (1, 2, 3), (4, 0, 2, 1)):
            expected = (
                encode_texts(plain, [TEXT_INPUTS[row] for row in rows]),
                plain.speech.run([CLIPS[row] for row in rows]),
            )
            for one, other in zip(stage.submit(later, rows).result(), [*expected[0], *expected[1]], strict=True):
                torch.testing.assert_close(one, other, atol=1e-4, rtol=0)
