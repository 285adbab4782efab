"""The figures of `tenor bench device`, on tiny encoders."""

import json
from pathlib import Path

import pytest
import torch
from transformers import Wav2Vec2Config, WhisperConfig, XLMRobertaConfig
from typer.testing import CliRunner

from benchmarks import device
from benchmarks.device import DeviceFigure, bundle_encoders, flops_of, full_encoders, matrix_rate, measure
from services.cli.main import app
from shared.errors import BundleError
from shared.modeling.execution import ON_CPU, Execution
from shared.modeling.loading import MANIFEST, read_manifest, write_manifest
from shared.settings import Batches, BatchLimits, ModelSettings, Settings
from tests.tiny_models import write_bundle

TEXT = XLMRobertaConfig(
    vocab_size=8, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, pad_token_id=1
)
SPEECH = Wav2Vec2Config(
    hidden_size=16,
    num_hidden_layers=3,
    num_attention_heads=2,
    intermediate_size=32,
    conv_dim=(8,) * 7,
    num_conv_pos_embeddings=16,
    num_conv_pos_embedding_groups=2,
    feat_extract_norm="layer",
    do_stable_layer_norm=True,
)
WHISPER = WhisperConfig(num_mel_bins=128, d_model=16, encoder_layers=2, encoder_attention_heads=2, encoder_ffn_dim=32)


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "XLM_R_BASE", TEXT)
    monkeypatch.setattr(device, "XLS_R_300M", SPEECH)
    monkeypatch.setattr(device, "XLS_R_LAYERS", (1, 2))
    monkeypatch.setattr(device, "WHISPER_TURBO", WHISPER)
    monkeypatch.setattr(device, "MATRIX_SIZES", {"cpu": 64})


def settings(**batches: BatchLimits) -> Settings:
    return Settings(batches=Batches(**batches), models=ModelSettings(device="cpu"))


def test_every_encoder_is_measured_with_every_number_of_clips_in_flight() -> None:
    small = settings(speech=BatchLimits(items=3, budget=4))
    figures = list(measure(small, full_encoders(small, seconds=0.5), sizes=[1, 5], rounds=2))
    alone, together, by_twos = (1, 1), (5, 5), (5, 2)
    assert [(f.in_flight, f.batch_size) for f in figures] == [alone, together, alone, by_twos, alone, by_twos]
    assert len({figure.encoder for figure in figures}) == 3
    for figure in figures:
        assert 0 < figure.p50_s <= figure.p95_s
        assert figure.clips_per_s > 0
        assert figure.share > 0


def test_the_operations_follow_from_the_shapes() -> None:
    words, width, hidden, layers = 9, TEXT.hidden_size, TEXT.intermediate_size, TEXT.num_hidden_layers
    tokens = words + 2
    (spec, *_) = full_encoders(settings(), seconds=words / device.WORDS_PER_SECOND)
    linear = 2 * tokens * (4 * width * width + 2 * width * hidden)
    attention = 2 * 2 * tokens * tokens * width
    assert flops_of(spec.make().eval(), spec.clip) == layers * (linear + attention)


def test_layers_whose_output_is_unused_are_not_counted() -> None:
    _, spec, _ = full_encoders(settings(), seconds=0.5)
    whole, placed = spec.make().eval(), ON_CPU.place(spec.make().eval())
    assert flops_of(placed, spec.clip) < flops_of(whole, spec.clip)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_a_device_has_a_matrix_rate_in_every_precision(precision: torch.dtype) -> None:
    assert matrix_rate(Execution(precision=precision), rounds=3) > 0


def test_published_shapes_have_the_published_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    # XLM-R base has 278 million with the pooler, XLS-R 300M 315, and the Whisper's encoder 637.
    monkeypatch.undo()
    with torch.device("meta"):
        sizes = [sum(weight.numel() for weight in spec.make().parameters()) for spec in full_encoders(Settings(), 1.0)]
    assert [round(size / 1e6) for size in sizes] == [277, 315, 637]


def test_the_command_measures_the_encoders_of_a_bundle(tmp_path: Path) -> None:
    options = ["--bundle", str(write_bundle(tmp_path)), "--sizes", "1,2", "--rounds", "1", "--seconds", "0.5"]
    result = CliRunner().invoke(app, ["bench", "device", *options, "--format", "json"])
    assert result.exit_code == 0, result.output
    figures = [DeviceFigure.model_validate(figure) for figure in json.loads(result.stdout)]
    assert [(f.encoder, f.in_flight) for f in figures] == [
        (name, size) for name in ("tiny, text", "tiny, audio") for size in (1, 2)
    ]


def test_a_bundle_without_encoders_cannot_be_measured(tmp_path: Path) -> None:
    bundle = read_manifest(write_bundle(tmp_path))
    nothing = dict.fromkeys(("text_encoder", "speech_encoder", "fusion"))
    space = bundle.label_space.model_copy(update={"dimensions": ()})
    classifier = bundle.asr.model_copy(update={"kind": "audio_classification"})
    (tmp_path / MANIFEST).unlink()
    write_manifest(tmp_path, bundle.model_copy(update={**nothing, "label_space": space, "classifier": classifier}))
    with pytest.raises(BundleError, match="'tiny' has a classifier and no encoders"):
        bundle_encoders(str(tmp_path), Settings(), 1.0)
