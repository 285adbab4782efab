"""The multilingual valence classifier, under whatever names its weights are published, becomes a bundle."""

import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel, Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2ForPreTraining

from shared.domain.emotion import Modality
from shared.errors import BundleError
from shared.modeling.audio_classifiers import PatchTransformer, PatchTransformerConfig
from shared.modeling.loading import load_classifier, read_manifest
from tests.audio_clips import tone
from tests.tiny_models import StubTranscriber, pipeline
from tests.training.test_import_checkpoint import CONVOLUTIONS, change_weights
from training.__main__ import run_recipe
from training.recipes.import_valence_classifier import import_valence_classifier

FEATURES, PATCH, WIDTH, HEADS = 32, 8, 16, 4


class Published(nn.Module):
    """As somebody else may have written it, over vectors of 32 numbers in patches of 8."""

    def __init__(self, by_convolution: bool, norm: bool) -> None:
        super().__init__()
        self.patch_embed: Any = nn.Conv1d(1, WIDTH, PATCH, PATCH) if by_convolution else nn.Linear(PATCH, WIDTH)
        self.cls_token = nn.Parameter(torch.randn(1, 1, WIDTH))
        self.pos_embed = nn.Parameter(torch.randn(1, FEATURES // PATCH + 1, WIDTH))
        layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 24, 0.2, "gelu", batch_first=True)
        self.blocks = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        norms = [nn.LayerNorm(WIDTH)] if norm else []
        self.classifier = nn.Sequential(*norms, nn.Linear(WIDTH, 12), nn.GELU(), nn.Dropout(0.2), nn.Linear(12, 3))

    def forward(self, vectors: Tensor) -> Tensor:
        if isinstance(self.patch_embed, nn.Conv1d):
            patches = self.patch_embed(vectors[:, None]).transpose(1, 2)
        else:
            patches = self.patch_embed(vectors.reshape(len(vectors), -1, PATCH))
        tokens = torch.cat([self.cls_token.expand(len(vectors), -1, -1), patches], 1) + self.pos_embed
        return self.classifier(self.blocks(tokens)[:, 0])


def write_published(folder: Path, by_convolution: bool = False, norm: bool = False) -> tuple[nn.Module, StandardScaler]:
    torch.manual_seed(1)
    folder.mkdir()
    model = Published(by_convolution, norm).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    save_file(model.state_dict(), folder / "emotion_classifier_complete.safetensors")
    scaler = StandardScaler().fit(np.random.default_rng(0).normal(0.1, 0.5, (50, FEATURES)).astype(np.float32))
    (folder / "emotion_classifier_scaler.pkl").write_bytes(pickle.dumps(scaler))
    return model, scaler


def write_encoder(folder: Path) -> PreTrainedModel:
    """As XLSR-53 is published: with the parts that only pretraining needs."""
    torch.manual_seed(2)
    norm: dict[str, Any] = {"feat_extract_norm": "layer", "do_stable_layer_norm": True}
    model = Wav2Vec2ForPreTraining(Wav2Vec2Config(**CONVOLUTIONS, **norm)).eval()
    model.save_pretrained(folder)
    Wav2Vec2FeatureExtractor(return_attention_mask=True).save_pretrained(folder)
    return model


def bundle_of(folder: Path, **options: Any) -> Path:  # noqa: ANN401
    import_valence_classifier(
        str(folder / "published"), str(folder / "encoder"), folder / "bundle", licence="MIT", heads=HEADS, **options
    )
    return folder / "bundle"


@pytest.mark.parametrize("by_convolution", [False, True])
@pytest.mark.parametrize("norm", [False, True])
def test_the_logits_are_those_of_the_published_model_on_scaled_means(
    tmp_path: Path, by_convolution: bool, norm: bool
) -> None:
    model, scaler = write_published(tmp_path / "published", by_convolution, norm)
    encoder = write_encoder(tmp_path / "encoder")
    manifest = read_manifest(bundle_of(tmp_path))
    assert manifest.classifier is not None
    network = load_classifier(tmp_path / "bundle", manifest.classifier, manifest.label_space)
    with torch.inference_mode():
        inputs = Wav2Vec2FeatureExtractor()(tone(), sampling_rate=16_000, return_tensors="pt")
        pooled = encoder.base_model(**inputs).last_hidden_state.mean(dim=1)
        expected = model(torch.tensor(scaler.transform(pooled.numpy())).float())
        torch.testing.assert_close(network([tone()]), expected, atol=1e-4, rtol=1e-4)


def test_a_bundle_of_it_predicts_three_valences(tmp_path: Path) -> None:
    write_published(tmp_path / "published")
    write_encoder(tmp_path / "encoder")
    reading = pipeline(bundle_of(tmp_path), StubTranscriber()).analyze(samples=tone(), text=None).prediction
    assert reading.scores is not None
    assert reading.scores.label_space == "published"
    assert list(reading.scores.categories) == ["negative", "neutral", "positive"]
    assert reading.modalities_used == (Modality.audio,)


def test_a_bundle_of_it_holds_no_pickle(tmp_path: Path) -> None:
    write_published(tmp_path / "published")
    write_encoder(tmp_path / "encoder")
    assert {path.suffix for path in bundle_of(tmp_path).iterdir()} == {".safetensors", ".json", ".yaml"}


def rewritten(folder: Path, changes: Mapping[str, Tensor | None]) -> None:
    path = folder / "published" / "emotion_classifier_complete.safetensors"
    state = {**load_file(path), **changes}
    save_file({name: tensor for name, tensor in state.items() if tensor is not None}, path)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"cls_token": None}, "class_token"),
        ({"pos_embed": None}, "positions"),
        ({"classifier.3.bias": None}, r"head\.3\.bias"),
        ({"blocks.layers.1.linear2.weight": None}, r"layers\.1\.linear2\.weight"),
        ({"classifier.4.weight": torch.zeros(3, 12)}, r"second.*head\.3\.weight"),
        ({"classifier.4.running_mean": torch.zeros(7)}, "no place.*running_mean"),
        ({"pos_embed": torch.zeros(1, 4, WIDTH)}, "positions"),
    ],
)
def test_weights_that_do_not_make_up_the_model_are_refused(
    tmp_path: Path, changes: dict[str, Tensor | None], why: str
) -> None:
    write_published(tmp_path / "published")
    write_encoder(tmp_path / "encoder")
    rewritten(tmp_path, changes)
    with pytest.raises(BundleError, match=why):
        bundle_of(tmp_path)


def test_an_encoder_of_another_width_is_refused(tmp_path: Path) -> None:
    write_published(tmp_path / "published")
    write_encoder(tmp_path / "encoder")
    scaler = StandardScaler().fit(np.random.default_rng(0).normal(size=(50, 24)))
    (tmp_path / "published" / "emotion_classifier_scaler.pkl").write_bytes(pickle.dumps(scaler))
    rewritten(tmp_path, {"pos_embed": torch.zeros(1, 4, WIDTH)})
    with pytest.raises(BundleError, match=r"24 numbers.*32"):
        bundle_of(tmp_path)


def test_an_encoder_with_a_weight_missing_is_refused(tmp_path: Path) -> None:
    write_published(tmp_path / "published")
    write_encoder(tmp_path / "encoder")
    change_weights(tmp_path / "encoder", wav2vec2__feature_projection__projection__weight=None)
    with pytest.raises(BundleError, match=r"lacks.*feature_projection\.projection\.weight"):
        bundle_of(tmp_path)


def test_a_folder_without_a_scaler_is_refused(tmp_path: Path) -> None:
    write_published(tmp_path / "published")
    write_encoder(tmp_path / "encoder")
    (tmp_path / "published" / "emotion_classifier_scaler.pkl").unlink()
    with pytest.raises(BundleError, match="one pickled StandardScaler"):
        bundle_of(tmp_path)


def test_labels_must_be_as_many_as_the_outputs(tmp_path: Path) -> None:
    write_published(tmp_path / "published")
    write_encoder(tmp_path / "encoder")
    with pytest.raises(BundleError, match="3 outputs, not 2"):
        bundle_of(tmp_path, labels=["bad", "good"])


def test_the_command_takes_labels(tmp_path: Path) -> None:
    write_published(tmp_path / "published")
    write_encoder(tmp_path / "encoder")
    paths = [f"--source={tmp_path / 'published'}", f"--encoder={tmp_path / 'encoder'}", f"--out={tmp_path / 'bundle'}"]
    more = [f"--heads={HEADS}", "--licence=MIT", f"--labels={json.dumps(['low', 'middle', 'high'])}"]
    run_recipe(["import_valence_classifier", *paths, *more])
    assert read_manifest(tmp_path / "bundle").label_space.categories == ("low", "middle", "high")


def test_a_patch_transformer_learns() -> None:
    torch.manual_seed(0)
    network = PatchTransformer(
        PatchTransformerConfig(features=32, patch=8, width=16, layers=1, heads=2, hidden=16, dropout=0)
    )
    vectors = torch.randn(96, 32) * 5 + 3
    labels = (vectors[:, :8].mean(dim=1) > 3).long() + (vectors[:, 8:16].mean(dim=1) > 3).long()
    network.standardization.fit(vectors)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
    for _ in range(200):
        loss = functional.cross_entropy(network(vectors), labels, label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (network.eval()(vectors).argmax(dim=1) == labels).float().mean() > 0.9


def test_the_default_has_the_published_size() -> None:
    count = sum(parameter.numel() for parameter in PatchTransformer(PatchTransformerConfig()).parameters())
    assert count == pytest.approx(3e6, rel=0.1)
