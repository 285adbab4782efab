"""How models are run changes how fast they are, and nothing else but for what a precision rounds."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from shared.errors import SetupError
from shared.modeling import execution
from shared.modeling.execution import Execution
from shared.modeling.pretrained_encoders import (
    PretrainedSpeechConfig,
    PretrainedSpeechEncoder,
    PretrainedTextConfig,
    PretrainedTextEncoder,
)
from shared.modeling.speech_encoders import SpeechEncoder
from shared.modeling.tokens import Tokens
from shared.settings import ModelSettings, Settings
from tests import checkpoints
from tests.audio_clips import tone
from tests.tiny_models import SPEECH

Pretrained = PretrainedTextEncoder | PretrainedSpeechEncoder
Load = Callable[..., Pretrained]

KINDS = [*checkpoints.TEXT, *checkpoints.SPEECH]
WITHOUT_SDPA = {"DeBERTa v3", "WavLM base", "WavLM"}
"""Whose attention rests on relative positions."""
ROUNDED = {torch.bfloat16: 5e-2, torch.float16: 8e-3}
"""How far features may be from those in float32, against their length; a mantissa has 8 bits, or 11."""
ONE, ALIKE, MIXED = range(3)
TEXTS = [["no"], ["why me", "who me"], ["I am happy", "no", "what a long and weary way it was"]]
SOUNDS = [[tone(seconds=seconds) for seconds in batch] for batch in ((0.7,), (0.6, 0.6), (1.3, 0.4, 0.9))]


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Load:
    """A fresh encoder of that kind; each kind has one checkpoint."""
    made: dict[str, Path] = {}

    def of(name: str, **options: Any) -> Pretrained:  # noqa: ANN401 - the config's
        if name not in made:
            torch.manual_seed(0)
            made[name] = (checkpoints.TEXT | checkpoints.SPEECH)[name](tmp_path_factory.mktemp("checkpoint") / "model")
        if name in checkpoints.TEXT:
            return PretrainedTextEncoder.load(PretrainedTextConfig(source=str(made[name]), max_tokens=40, **options))
        return PretrainedSpeechEncoder.load(PretrainedSpeechConfig(source=str(made[name]), **options))

    return of


def encoded(encoder: Pretrained, batch: int) -> Tokens:
    return encoder(TEXTS[batch]) if isinstance(encoder, PretrainedTextEncoder) else encoder(SOUNDS[batch])


@pytest.mark.parametrize("name", KINDS)
def test_attention_is_pytorchs_own_where_the_architecture_can(name: str, load: Load) -> None:
    asked = load(name).model.config._attn_implementation
    assert asked == ("eager" if name in WITHOUT_SDPA else "sdpa")


@pytest.mark.parametrize("precision", ROUNDED, ids=str)
@pytest.mark.parametrize("name", KINDS)
@torch.inference_mode()
def test_half_precision_gives_nearly_the_same_features(name: str, precision: torch.dtype, load: Load) -> None:
    exact, rounded = load(name), Execution(precision=precision).place(load(name))
    assert {weight.dtype for weight in rounded.parameters()} == {precision}
    for batch in (ONE, ALIKE, MIXED):
        expected, given = encoded(exact, batch), encoded(rounded, batch)
        assert given.features.dtype == torch.float32
        assert given.mask.equal(expected.mask)
        assert (given.features - expected.features).norm() < ROUNDED[precision] * expected.features.norm()


@pytest.mark.parametrize("name", checkpoints.SPEECH)
@pytest.mark.parametrize("layers", [(2, 1), (0,), None])
@torch.inference_mode()
def test_unused_layers_are_not_run(name: str, layers: tuple[int, ...] | None, load: Load) -> None:
    whole, placed = load(name, layers=layers), Execution().place(load(name, layers=layers))
    torch.testing.assert_close(encoded(placed, MIXED).features, encoded(whole, MIXED).features)
    assert count(placed) < count(whole) if layers else count(placed) == count(whole)


def count(encoder: Pretrained) -> int:
    return sum(weight.numel() for weight in encoder.parameters())


def test_a_bundles_own_small_encoders_stay_as_they_are() -> None:
    own = Execution(precision=torch.bfloat16, compiled=True).place(SpeechEncoder(SPEECH))
    assert {weight.dtype for weight in own.parameters()} == {torch.float32}


def of(**settings: Any) -> Execution:  # noqa: ANN401 - any of the settings
    return Execution.from_settings(Settings(models=ModelSettings(**settings)))


def test_on_the_cpu_nothing_is_rounded_unless_told_so() -> None:
    assert of(device="cpu") == Execution("cpu", torch.float32, compiled=False)
    assert of(device="cpu", precision="bfloat16").precision == torch.bfloat16


@pytest.mark.parametrize(("has_bfloat16", "precision"), [(True, torch.bfloat16), (False, torch.float16)])
def test_a_gpu_computes_in_half_precision(
    has_bfloat16: bool, precision: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has_bfloat16)
    assert of() == Execution("cuda", precision)
    assert of(precision="float32") == Execution("cuda", torch.float32)
    if not has_bfloat16:
        with pytest.raises(SetupError, match=r"TENOR_MODELS_PRECISION is bfloat16.*use float16"):
            of(precision="bfloat16")


def test_a_missing_gpu_raises_a_setup_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SetupError, match="TENOR_MODELS_DEVICE is cuda"):
        of(device="cuda")


def test_compiling_without_a_compiler_raises_a_setup_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_compiler(_: object) -> Callable[..., object]:
        raise RuntimeError("No working C++ compiler found\n in a long trace")

    monkeypatch.setattr(execution.torch, "compile", no_compiler)
    with pytest.raises(
        SetupError, match=r"TENOR_MODELS_COMPILE is set.*for cpu here: No working C\+\+ compiler found$"
    ):
        of(device="cpu", compile=True)
