"""Freezing, LoRA and gradient checkpointing of encoders."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from shared.audio.decoder import Samples
from shared.modeling.pretrained_encoders import (
    PretrainedSpeechConfig,
    PretrainedSpeechEncoder,
    PretrainedTextConfig,
    PretrainedTextEncoder,
)
from shared.modeling.speech_encoders import SpeechEncoder
from shared.modeling.text_encoders import TextEncoder
from shared.modeling.tokens import Tokens
from tests import checkpoints, tiny_models
from tests.audio_clips import tone
from training.finetuning import Lora, add_lora, checkpoint_gradients, freeze, merge_lora

Encoder = PretrainedTextEncoder | PretrainedSpeechEncoder
TEXTS = ["I am happy", "what a long and weary way it was"]
CLIPS: list[Samples] = [tone(0.5), tone(1.0, hertz=330)]

each = pytest.mark.parametrize("name", [*checkpoints.TEXT, *checkpoints.SPEECH])
each_speech = pytest.mark.parametrize("name", checkpoints.SPEECH)


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Encoder]:
    """A fresh encoder of the checkpoint of that name."""
    made: dict[str, Path] = {}

    def of(name: str) -> Encoder:
        if name not in made:
            torch.manual_seed(0)
            made[name] = (checkpoints.TEXT | checkpoints.SPEECH)[name](tmp_path_factory.mktemp("checkpoint") / "model")
        return loaded(name, made[name])

    return of


def loaded(name: str, folder: Path) -> Encoder:
    if name in checkpoints.TEXT:
        return PretrainedTextEncoder.load(PretrainedTextConfig(source=str(folder), max_tokens=40))
    return PretrainedSpeechEncoder.load(PretrainedSpeechConfig(source=str(folder)))


def run(encoder: Encoder) -> Tokens:
    return encoder(TEXTS) if isinstance(encoder, PretrainedTextEncoder) else encoder(CLIPS)


def trained_weights(encoder: torch.nn.Module) -> set[str]:
    """The weights that have a gradient after a step's backward pass."""
    encoder.zero_grad()
    assert isinstance(encoder, Encoder)
    run(encoder).features.square().sum().backward()
    return {name for name, weight in encoder.named_parameters() if weight.grad is not None}


def layer_of(name: str) -> int | None:
    """The number of the layer that a weight is in, counting from 0; None if it is in none."""
    parts = name.split(".")
    numbers = [int(after) for before, after in pairwise(parts) if before in {"layer", "layers"}]
    return numbers[0] if numbers else None


@each
def test_without_freezing_every_layer_trains(name: str, load: Callable[[str], Encoder]) -> None:
    encoder = load(name)
    freeze(encoder)
    learnt = trained_weights(encoder)
    assert {layer_of(weight) for weight in learnt} == {None, 0, 1, 2}


@each
def test_the_first_layers_and_everything_before_them_freeze(name: str, load: Callable[[str], Encoder]) -> None:
    encoder = load(name).train()
    freeze(encoder, layers=2)
    assert {layer_of(weight) for weight in trained_weights(encoder)} == {2}


@each
def test_all_freezes_every_weight(name: str, load: Callable[[str], Encoder]) -> None:
    encoder = load(name).train()
    freeze(encoder, layers="all")
    assert not any(weight.requires_grad for weight in encoder.parameters())
    assert not run(encoder).features.requires_grad


@each_speech
def test_the_convolutions_can_freeze_alone(name: str, load: Callable[[str], Encoder]) -> None:
    encoder = load(name).train()
    before = trained_weights(encoder)
    freeze(encoder, cnn=True)
    frozen = before - trained_weights(encoder)
    assert frozen
    assert all("feature_extractor." in weight or "conv1." in weight or "conv2." in weight for weight in frozen)
    assert {layer_of(weight) for weight in before - frozen} == {None, 0, 1, 2}


def test_compact_encoders_freeze_too() -> None:
    for encoder in (TextEncoder(tiny_models.TEXT, tiny_models.tokenizer()), SpeechEncoder(tiny_models.SPEECH)):
        freeze(encoder, layers=1)
        left = {layer_of(name) for name, weight in encoder.named_parameters() if weight.requires_grad}
        assert left == ({1} if isinstance(encoder, SpeechEncoder) else set())


def test_freezing_more_layers_than_the_encoder_has_is_refused(load: Callable[[str], Encoder]) -> None:
    with pytest.raises(ValueError, match="layers is 4, but the encoder has 3"):
        freeze(load("BERT"), layers=4)


@each
def test_only_low_rank_weights_train_and_merging_keeps_the_outputs(
    name: str, load: Callable[[str], Encoder], tmp_path: Path
) -> None:
    encoder = load(name)
    names = set(encoder.state_dict())
    with torch.inference_mode():
        before = run(encoder).features
    add_lora(encoder, Lora(rank=2, alpha=4))
    with torch.inference_mode():
        torch.testing.assert_close(run(encoder).features, before, atol=1e-5, rtol=1e-4)

    train_a_step(encoder)
    with torch.inference_mode():
        learnt = run(encoder).features
        assert not torch.allclose(learnt, before, atol=1e-3)
        merge_lora(encoder)
        torch.testing.assert_close(run(encoder).features, learnt, atol=1e-5, rtol=1e-4)
    assert set(encoder.state_dict()) == names

    encoder.save(tmp_path / "merged")
    again = loaded(name, tmp_path / "merged")
    with torch.inference_mode():
        torch.testing.assert_close(run(again).features, learnt, atol=1e-5, rtol=1e-4)


def train_a_step(encoder: Encoder) -> None:
    """Two steps, since the first only moves the B of each change's B A, which begins as 0."""
    optimizer = torch.optim.SGD([weight for weight in encoder.parameters() if weight.requires_grad], lr=0.05)
    for _ in range(2):
        learnt = trained_weights(encoder)
        assert learnt
        assert all("lora_" in name for name in learnt)
        optimizer.step()
    unchanged = [name for name, weight in encoder.named_parameters() if "lora_" in name and not weight.grad.any()]  # pyright: ignore[reportOptionalMemberAccess] - asserted above
    assert unchanged == []


def test_the_target_modules_of_lora_can_be_named(load: Callable[[str], Encoder]) -> None:
    encoder = load("XLS-R")
    add_lora(encoder, Lora(targets=("out_proj",)))
    assert {name.split(".")[-4] for name in trained_weights(encoder)} == {"out_proj"}
    with pytest.raises(ValueError, match="nowhere"):
        add_lora(load("XLS-R"), Lora(targets=("nowhere",)))


@each
def test_checkpointed_gradients_are_the_same(name: str, load: Callable[[str], Encoder]) -> None:
    def gradients(checkpointed: bool) -> dict[str, torch.Tensor]:
        encoder = load(name).train()
        for module in encoder.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
            # Whisper's and WavLM's layers hold it as a number.
            if isinstance(getattr(module, "dropout", None), float):
                setattr(module, "dropout", 0.0)  # noqa: B010 - pyright takes an attribute of a module for a weight
        if checkpointed:
            checkpoint_gradients(encoder)
        assert encoder.model.is_gradient_checkpointing is checkpointed
        trained_weights(encoder)
        return {name: weight.grad for name, weight in encoder.named_parameters() if weight.grad is not None}

    plain, checkpointed = gradients(False), gradients(True)
    assert plain.keys() == checkpointed.keys()
    for weight, gradient in plain.items():
        torch.testing.assert_close(checkpointed[weight], gradient, atol=1e-4, rtol=1e-3)


def test_an_encoder_that_is_not_of_transformers_cannot_checkpoint_gradients() -> None:
    with pytest.raises(ValueError, match="SpeechEncoder cannot"):
        checkpoint_gradients(SpeechEncoder(tiny_models.SPEECH))
