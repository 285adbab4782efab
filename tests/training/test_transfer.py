"""The recipe `transfer`, with a tiny residual network."""

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor, nn

from shared.audio.decoder import SAMPLE_RATE
from tests.audio_clips import tone
from training.__main__ import run_recipe
from training.data.registry import CORPORA
from training.data.spectrogram import log_mel_image
from training.recipes.transfer import Report, resnet, transfer
from training.resnet_module import ResNetModule

CONFIGS = sorted((Path(__file__).parents[2] / "training" / "configs" / "resnet34").glob("*.yaml"))
TINY = {"depths": [1, 1], "widths": [4, 8], "size": 32, "folds": 2, "accelerator": "cpu"}
SHORT = {"source_epochs": 1, "head_epochs": 1, "whole_epochs": 1}


def tiny_transfer(data: Path, out: Path, **options: object) -> Report:
    transfer(data, out, **({"source": "ravdess"} | TINY | SHORT | options))  # pyright: ignore[reportArgumentType]
    return Report.model_validate_json((out / "report.json").read_text())


def checkpoint(out: Path, phase: str) -> dict[str, Tensor]:
    return torch.load(out / phase / "last.ckpt", weights_only=True)["state_dict"]


def losses(out: Path, phase: str) -> int:
    """The number of epochs whose losses are logged."""
    files = (out / phase).glob("losses/version_*/metrics.csv")
    return sum(line[0].isdigit() for file in files for line in file.read_text().splitlines())


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run")
    tiny_transfer(data, out, head_epochs=3, learning_rate=0.01)
    return out


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_every_configuration_trains_all_phases(config: Path, data: Path, tmp_path: Path) -> None:
    options = yaml.safe_load(config.read_text())
    if options["source"] not in CORPORA:
        pytest.skip(f"there is no loader of {options['source']}")
    shrunk = [f"--{name}={value}" for name, value in (TINY | SHORT).items()]
    run_recipe(["transfer", f"--config={config}", f"--data={data}", f"--out={tmp_path}", *shrunk])
    report = Report.model_validate_json((tmp_path / "report.json").read_text())
    assert [phase.corpus for phase in report.phases.values()] == [options["source"], "urdu_latif", "urdu_latif"]
    assert [phase.frozen for phase in report.phases.values()] == [False, True, False]
    assert report.train_clips + report.test_clips == 11
    scores = report.phases["whole"].scores
    assert scores is not None
    assert scores.count == report.test_clips
    assert 0 <= scores.uar <= 1
    assert (tmp_path / "resnet.safetensors").exists()
    assert {losses(tmp_path, phase) for phase in report.phases} == {1}


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_every_configuration_has_the_shape_of_resnet_34(config: Path) -> None:
    options = yaml.safe_load(config.read_text())
    body = resnet(options["depths"], options["widths"])
    sizes = [module.kernel_size for module in body.modules() if isinstance(module, nn.Conv2d)]
    assert len([size for size in sizes if size != (1, 1)]) + 1 == 34  # and the last layer
    with torch.inference_mode():
        pooled = body.eval()(torch.zeros(1, 1, 64, 64)).pooler_output
    assert pooled.shape == (1, 512, 1, 1)
    assert (options["batch_size"], options["dropout"], options["whole_epochs"]) == (25, 0.1, 100)


def test_the_second_phase_trains_the_last_layer_only(run: Path) -> None:
    source, head, whole = (checkpoint(run, phase) for phase in ("source", "head", "whole"))
    for name in source:
        if name.startswith("body."):
            assert head[name].equal(source[name]), name
    assert source["head.weight"].shape == (8, 8)
    assert head["head.weight"].shape == (4, 8)
    assert not whole["head.weight"].equal(head["head.weight"])
    changed = {name for name in head if not whole[name].equal(head[name])}
    assert any("convolution" in name for name in changed)
    assert any("running_mean" in name for name in changed)


def test_a_frozen_body_is_not_trained() -> None:
    body = resnet([1, 1], [4, 8])
    frozen = ResNetModule(body, nn.Linear(8, 2), 0.1, dropout=0.0, frozen=True)
    assert not body.training
    before = {name: tensor.clone() for name, tensor in frozen.state_dict().items()}
    frozen.train()
    optimizer = frozen.configure_optimizers()
    nn.functional.cross_entropy(frozen(torch.randn(4, 1, 32, 32)), torch.tensor([0, 1, 0, 1])).backward()
    optimizer.step()
    changed = {name for name, tensor in frozen.state_dict().items() if not tensor.equal(before[name])}
    assert changed == {"head.weight", "head.bias"}
    assert ResNetModule(body, nn.Linear(8, 2), 0.1, dropout=0.0).body.training


def test_the_result_has_the_weights_of_the_last_phase(run: Path) -> None:
    weights = load_file(run / "resnet.safetensors")
    whole = checkpoint(run, "whole")
    assert weights.keys() == whole.keys()
    assert all(tensor.equal(whole[name]) for name, tensor in weights.items())


def test_an_interrupted_transfer_continues_in_its_phase(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(module: ResNetModule) -> None:
        if module.trainer.max_epochs == 3 and module.current_epoch == 1:
            raise OSError("no power")

    with monkeypatch.context() as interrupted:
        interrupted.setattr(ResNetModule, "on_train_epoch_start", interrupt, raising=False)
        with pytest.raises(OSError, match="no power"):
            tiny_transfer(data, tmp_path, head_epochs=3)
    source = (tmp_path / "source" / "last.ckpt").read_bytes()
    assert not (tmp_path / "whole").exists()

    tiny_transfer(data, tmp_path, head_epochs=3, resume=True)
    assert (tmp_path / "source" / "last.ckpt").read_bytes() == source
    assert torch.load(tmp_path / "head" / "last.ckpt", weights_only=True)["epoch"] == 2
    body = {name: tensor for name, tensor in checkpoint(tmp_path, "source").items() if name.startswith("body.")}
    assert all(tensor.equal(checkpoint(tmp_path, "head")[name]) for name, tensor in body.items())

    weights = load_file(tmp_path / "resnet.safetensors")
    assert [losses(tmp_path, phase) for phase in ("source", "head", "whole")] == [1, 3, 1]
    report = (tmp_path / "report.json").read_text()
    tiny_transfer(data, tmp_path, head_epochs=3, resume=True)  # nothing is left to do
    assert (tmp_path / "report.json").read_text() == report
    assert all(tensor.equal(weights[name]) for name, tensor in load_file(tmp_path / "resnet.safetensors").items())


def test_without_resume_nothing_of_an_earlier_training_is_used(data: Path, tmp_path: Path) -> None:
    tiny_transfer(data, tmp_path / "first", seed=1)
    tiny_transfer(data, tmp_path / "repeated", seed=2)
    tiny_transfer(data, tmp_path / "repeated", seed=1)
    first, repeated = (load_file(tmp_path / name / "resnet.safetensors") for name in ("first", "repeated"))
    assert all(tensor.equal(first[name]) for name, tensor in repeated.items())


def test_a_split_by_speaker_has_none_in_both_parts(data: Path, tmp_path: Path) -> None:
    assert tiny_transfer(data, tmp_path / "speaker", split="speaker", source="urdu_latif").speakers_in_both == 0
    assert tiny_transfer(data, tmp_path / "random", target="ravdess").speakers_in_both == 4


def test_a_corpus_without_recordings_is_refused(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"goemotions's .* has no recording"):
        tiny_transfer(data, tmp_path, source="goemotions")


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 3 * SAMPLE_RATE), st.integers(8, 64), st.floats(1e-4, 1))
def test_an_image_is_a_standardized_square_for_any_length_and_loudness(length: int, size: int, loudness: float) -> None:
    samples = np.random.default_rng(length).normal(size=length).astype(np.float32)
    found = log_mel_image(loudness * samples, size)
    assert found.shape == (1, size, size)
    assert found.mean().item() == pytest.approx(0, abs=1e-3)
    assert found.std().item() == pytest.approx(1, abs=1e-3)
    torch.testing.assert_close(found, log_mel_image(samples, size), rtol=0.01, atol=0.01)


def test_a_higher_tone_is_in_a_higher_row_of_the_image() -> None:
    rows = [int(log_mel_image(tone(1.0, hertz), 64)[0].mean(dim=1).argmax()) for hertz in (200, 800, 3200)]
    assert rows == sorted(set(rows))


def test_silence_gives_an_even_image() -> None:
    assert log_mel_image(np.zeros(SAMPLE_RATE, np.float32), 16).abs().max() < 0.1
