"""Published checkpoints become bundles with the outputs of the checkpoint, or are refused."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    ASTConfig,
    ASTFeatureExtractor,
    AutoModelForAudioClassification,
    HubertConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForCTC,
    WavLMConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
)

from shared.domain.emotion import EKMAN7, Modality
from shared.errors import BundleError, WeightsMissing
from shared.modeling import hub
from shared.modeling.audio_classifiers import AudioClassifier
from shared.modeling.loading import load_classifier, read_manifest, verify_files
from tests.audio_clips import tone
from tests.tiny_models import StubTranscriber, pipeline
from training.__main__ import run_recipe
from training.recipes.import_checkpoint import import_checkpoint

EMOTIONS = list(EKMAN7.categories)
RAVDESS = ["angry", "calm", "disgust", "fearful", "happy", "neutral", "sad", "surprised"]
TO_EKMAN = dict(
    zip(RAVDESS, ["anger", "neutral", "disgust", "fear", "joy", "neutral", "sadness", "surprise"], strict=True)
)
INDONESIAN = ["bahagia", "jijik", "marah", "netral", "sedih", "takut"]

CONVOLUTIONS: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "conv_dim": (16, 16, 16),
    "conv_kernel": (10, 4, 4),
    "conv_stride": (5, 4, 4),
    "num_feat_extract_layers": 3,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
    "classifier_proj_size": 12,
}
WHISPER: dict[str, Any] = {
    "d_model": 16,
    "encoder_layers": 1,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 16,
    "decoder_layers": 1,
    "decoder_attention_heads": 2,
    "decoder_ffn_dim": 16,
    "classifier_proj_size": 12,
}
AST: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "max_length": 128,
}


def architecture(name: str, labels: Sequence[str]) -> tuple[PreTrainedConfig, Any]:
    """A tiny one, and the feature extractor that goes with it."""
    names: dict[str, Any] = {"id2label": dict(enumerate(labels)), "label2id": {b: a for a, b in enumerate(labels)}}
    if name == "whisper":
        return WhisperConfig(**WHISPER, **names), WhisperFeatureExtractor()
    if name == "audio spectrogram transformer":
        return ASTConfig(**AST, **names), ASTFeatureExtractor(max_length=128)
    # The large models normalise each layer of convolutions, the base models only the first.
    norm: dict[str, Any] = {"feat_extract_norm": "layer", "do_stable_layer_norm": True} if name == "xls-r" else {}
    kind = {"xls-r": Wav2Vec2Config, "wav2vec2": Wav2Vec2Config, "hubert": HubertConfig, "wavlm": WavLMConfig}[name]
    return kind(**CONVOLUTIONS, **norm, **names), Wav2Vec2FeatureExtractor(return_attention_mask=name == "xls-r")


def write_checkpoint(
    folder: Path, labels: Sequence[str] = EMOTIONS, name: str = "xls-r"
) -> tuple[PreTrainedModel, Any]:
    """A checkpoint as its author would publish it."""
    torch.manual_seed(0)
    config, extractor = architecture(name, labels)
    model = AutoModelForAudioClassification.from_config(config).eval()
    for parameter in model.parameters():  # so that the classes are apart
        if parameter.dim() == 2:
            nn.init.normal_(parameter, std=0.5)
    model.save_pretrained(folder)
    extractor.save_pretrained(folder)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# A classifier\n")
    return model, extractor


def change_weights(folder: Path, **changes: Tensor | None) -> dict[str, Tensor]:
    """Write the checkpoint's weights anew; a name that becomes None is left out. Dots are two underscores."""
    state: dict[str, Tensor | None] = {**load_file(folder / "model.safetensors")}
    state |= {name.replace("__", "."): tensor for name, tensor in changes.items()}
    kept = {name: tensor for name, tensor in state.items() if tensor is not None}
    save_file(kept, folder / "model.safetensors")
    return kept


def write_own_head(folder: Path, last: str) -> tuple[PreTrainedModel, dict[str, Tensor]]:
    """A checkpoint whose head transformers does not know: dense, of full width, and `last`."""
    model, _ = write_checkpoint(folder, RAVDESS)
    head = {"dense": nn.Linear(32, 32), last: nn.Linear(32, 8)}
    change_weights(
        folder,
        projector__weight=None,
        projector__bias=None,
        classifier__weight=None,
        classifier__bias=None,
        **{f"classifier__{name}__{k}": t.data for name, layer in head.items() for k, t in layer.named_parameters()},
    )
    return model, {f"{name}.{k}": t.data for name, layer in head.items() for k, t in layer.named_parameters()}


def clips() -> list[np.ndarray]:
    noise = np.random.default_rng(0).normal(size=12_345).astype(np.float32)
    return [tone(1.0), tone(0.7, hertz=330) * 0.3, noise * 0.1]


def classifier(bundle: Path) -> AudioClassifier:
    manifest = read_manifest(bundle)
    verify_files(bundle, manifest)
    assert manifest.classifier is not None
    return load_classifier(bundle, manifest.classifier, manifest.label_space)


@torch.inference_mode()
def logits_of(bundle: Path, audio: Sequence[np.ndarray]) -> Tensor:
    return classifier(bundle)(audio)


@pytest.mark.parametrize("name", ["xls-r", "wav2vec2", "hubert", "wavlm", "whisper", "audio spectrogram transformer"])
def test_the_logits_are_those_of_transformers_and_clips_side_by_side_change_nothing(tmp_path: Path, name: str) -> None:
    model, extractor = write_checkpoint(tmp_path / "checkpoint", name=name)
    import_checkpoint(str(tmp_path / "checkpoint"), tmp_path / "bundle")
    with torch.inference_mode():
        expected = [model(**extractor(clip, sampling_rate=16_000, return_tensors="pt")).logits for clip in clips()]
    torch.testing.assert_close(logits_of(tmp_path / "bundle", clips()), torch.cat(expected), atol=1e-4, rtol=1e-4)


def test_a_bundle_of_a_checkpoint_predicts_from_audio_and_transcribes_it(tmp_path: Path) -> None:
    model, extractor = write_checkpoint(tmp_path / "checkpoint")
    import_checkpoint(str(tmp_path / "checkpoint"), tmp_path / "bundle")
    analysis = pipeline(tmp_path / "bundle", StubTranscriber("I am happy")).analyze(samples=tone(), text=None)
    reading = analysis.prediction
    with torch.inference_mode():
        logits = model(**extractor(tone(), sampling_rate=16_000, return_tensors="pt")).logits[0]
    assert reading.scores is not None
    assert list(reading.scores.categories) == EMOTIONS
    assert list(reading.scores.categories.values()) == pytest.approx(torch.softmax(logits, 0).tolist(), abs=1e-4)
    assert reading.emotion == EMOTIONS[int(logits.argmax())]
    assert reading.audio_only == reading.scores
    assert reading.modalities_used == (Modality.audio,)
    assert (reading.text_only, reading.incongruence, reading.valence) == (None, None, None)
    assert analysis.transcript is not None
    assert analysis.transcript.text == "I am happy"


def test_such_a_bundle_abstains_from_a_text(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "checkpoint")
    import_checkpoint(str(tmp_path / "checkpoint"), tmp_path / "bundle")
    reading = pipeline(tmp_path / "bundle").analyze(samples=None, text="I am happy").prediction
    assert reading.scores is None
    assert reading.abstained
    assert reading.modalities_used == ()


def test_such_a_bundle_abstains_if_there_is_no_speech(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "checkpoint")
    import_checkpoint(str(tmp_path / "checkpoint"), tmp_path / "bundle")
    reading = pipeline(tmp_path / "bundle", StubTranscriber(speaks=False)).analyze(samples=tone(), text=None).prediction
    assert reading.scores is None
    assert reading.abstained


@pytest.mark.parametrize("samples", [np.zeros(16_000, np.float32), np.zeros(0, np.float32), tone(0.001)])
def test_silence_and_very_short_clips_give_finite_logits(tmp_path: Path, samples: np.ndarray) -> None:
    write_checkpoint(tmp_path / "checkpoint")
    import_checkpoint(str(tmp_path / "checkpoint"), tmp_path / "bundle")
    assert logits_of(tmp_path / "bundle", [samples]).isfinite().all()


def test_a_clip_longer_than_the_window_is_classified_in_parts(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "checkpoint")
    import_checkpoint(str(tmp_path / "checkpoint"), tmp_path / "bundle", window_s=1.0)
    parts = [tone(0.9), 0.2 * tone(0.9, hertz=500)]
    expected = logits_of(tmp_path / "bundle", parts).mean(dim=0)
    torch.testing.assert_close(logits_of(tmp_path / "bundle", [np.concatenate(parts)])[0], expected)


@pytest.mark.parametrize(("name", "seconds"), [("audio spectrogram transformer", 1.28), ("whisper", 30), ("xls-r", 45)])
def test_the_window_is_no_longer_than_the_feature_extractor_takes(tmp_path: Path, name: str, seconds: float) -> None:
    write_checkpoint(tmp_path / "checkpoint", name=name)
    import_checkpoint(str(tmp_path / "checkpoint"), tmp_path / "bundle", window_s=45)
    manifest = read_manifest(tmp_path / "bundle")
    assert manifest.classifier is not None
    assert manifest.classifier.options["window_s"] == seconds


@pytest.mark.parametrize("head_activation", ["tanh", "none"])
@pytest.mark.parametrize("last", ["output", "out_proj"])
def test_a_head_of_other_names_is_the_checkpoints_own(tmp_path: Path, last: str, head_activation: Any) -> None:  # noqa: ANN401
    model, head = write_own_head(tmp_path / "checkpoint", last)
    import_checkpoint(str(tmp_path / "checkpoint"), tmp_path / "bundle", head_activation=head_activation)
    with torch.inference_mode():
        inputs = Wav2Vec2FeatureExtractor()(tone(), sampling_rate=16_000, return_tensors="pt")
        pooled = model.base_model(**inputs).last_hidden_state.mean(dim=1)
        dense = pooled @ head["dense.weight"].T + head["dense.bias"]
        expected = (dense.tanh() if head_activation == "tanh" else dense) @ head[f"{last}.weight"].T + head[
            f"{last}.bias"
        ]
    torch.testing.assert_close(logits_of(tmp_path / "bundle", [tone()]), expected, atol=1e-4, rtol=1e-4)
    assert read_manifest(tmp_path / "bundle").label_space.categories == tuple(RAVDESS)


@pytest.mark.parametrize("name", ["projector.weight", "projector.bias", "classifier.weight", "classifier.bias"])
def test_a_head_with_a_weight_missing_is_refused_by_its_name(tmp_path: Path, name: str) -> None:
    write_checkpoint(tmp_path / "checkpoint")
    change_weights(tmp_path / "checkpoint", **{name.replace(".", "__"): None})
    with pytest.raises(BundleError, match=f"lacks.*{name}"):
        import_checkpoint(str(tmp_path / "checkpoint"), tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize("name", ["dense.weight", "dense.bias", "output.bias"])
def test_a_head_of_other_names_with_a_weight_missing_is_refused(tmp_path: Path, name: str) -> None:
    write_own_head(tmp_path / "checkpoint", "output")
    change_weights(tmp_path / "checkpoint", **{f"classifier__{name.replace('.', '__')}": None})
    with pytest.raises(BundleError, match=f"lacks.*{name}"):
        import_checkpoint(str(tmp_path / "checkpoint"), tmp_path / "bundle")


def test_an_encoder_with_a_weight_missing_is_refused(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "checkpoint")
    change_weights(tmp_path / "checkpoint", wav2vec2__encoder__layers__1__attention__q_proj__weight=None)
    with pytest.raises(BundleError, match=r"lacks.*layers\.1\.attention\.q_proj\.weight"):
        import_checkpoint(str(tmp_path / "checkpoint"), tmp_path / "bundle")


def test_a_head_with_a_layer_too_many_is_refused(tmp_path: Path) -> None:
    write_own_head(tmp_path / "checkpoint", "output")
    change_weights(tmp_path / "checkpoint", classifier__norm__weight=torch.ones(32))
    with pytest.raises(BundleError, match=r"no place.*classifier\.norm\.weight"):
        import_checkpoint(str(tmp_path / "checkpoint"), tmp_path / "bundle")


def test_a_head_of_another_shape_is_refused(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "checkpoint")
    change_weights(tmp_path / "checkpoint", classifier__weight=torch.zeros(5, 12), classifier__bias=torch.zeros(5))
    with pytest.raises(BundleError, match=r"other shapes.*classifier\.weight"):
        import_checkpoint(str(tmp_path / "checkpoint"), tmp_path / "bundle")


def test_a_checkpoint_without_a_classifier_is_refused(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "checkpoint")
    config: Any = architecture("xls-r", EMOTIONS)[0]
    config.vocab_size = 9
    Wav2Vec2ForCTC(config).save_pretrained(tmp_path / "checkpoint")
    with pytest.raises(BundleError, match=r"lacks.*projector\.weight"):
        import_checkpoint(str(tmp_path / "checkpoint"), tmp_path / "bundle")


def test_weights_with_names_of_older_versions_are_read(tmp_path: Path) -> None:
    model, extractor = write_checkpoint(tmp_path / "checkpoint")
    norm = "wav2vec2.encoder.pos_conv_embed.conv"
    state = model.state_dict()
    older = {
        f"{norm}.weight_g": state[f"{norm}.parametrizations.weight.original0"],
        f"{norm}.weight_v": state[f"{norm}.parametrizations.weight.original1"],
    }
    newer = {name: None for name in state if "parametrizations" in name}
    change_weights(tmp_path / "checkpoint", **{k.replace(".", "__"): v for k, v in (older | newer).items()})
    import_checkpoint(str(tmp_path / "checkpoint"), tmp_path / "bundle")
    with torch.inference_mode():
        expected = model(**extractor(tone(), sampling_rate=16_000, return_tensors="pt")).logits
    torch.testing.assert_close(logits_of(tmp_path / "bundle", [tone()]), expected, atol=1e-4, rtol=1e-4)


def test_pickled_weights_are_read_where_they_are_tensors(tmp_path: Path) -> None:
    model, extractor = write_checkpoint(tmp_path / "checkpoint")
    (tmp_path / "checkpoint" / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "checkpoint" / "pytorch_model.bin")
    import_checkpoint(str(tmp_path / "checkpoint"), tmp_path / "bundle")
    assert {path.suffix for path in (tmp_path / "bundle").iterdir()} == {".safetensors", ".json", ".yaml"}
    with torch.inference_mode():
        expected = model(**extractor(tone(), sampling_rate=16_000, return_tensors="pt")).logits
    torch.testing.assert_close(logits_of(tmp_path / "bundle", [tone()]), expected, atol=1e-4, rtol=1e-4)


class Attack:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.target}",)


@pytest.mark.parametrize("old_format", [False, True])
def test_pickled_weights_that_hold_more_than_tensors_are_refused_and_nothing_runs(
    tmp_path: Path, old_format: bool
) -> None:
    model, _ = write_checkpoint(tmp_path / "checkpoint")
    (tmp_path / "checkpoint" / "model.safetensors").unlink()
    bad = {**model.state_dict(), "extra": Attack(tmp_path / "was-here")}
    path = tmp_path / "checkpoint" / "pytorch_model.bin"
    torch.save(bad, path, _use_new_zipfile_serialization=not old_format)
    with pytest.raises(BundleError, match=r"pytorch_model\.bin is not a file of tensors only"):
        import_checkpoint(str(tmp_path / "checkpoint"), tmp_path / "bundle")
    assert not (tmp_path / "was-here").exists()


def test_weights_in_several_files_are_combined(tmp_path: Path) -> None:
    model, extractor = write_checkpoint(tmp_path / "checkpoint")
    (tmp_path / "checkpoint" / "model.safetensors").unlink()
    model.save_pretrained(tmp_path / "checkpoint", max_shard_size="20KB")
    assert len(list((tmp_path / "checkpoint").glob("*.safetensors"))) > 1
    import_checkpoint(str(tmp_path / "checkpoint"), tmp_path / "bundle")
    with torch.inference_mode():
        expected = model(**extractor(tone(), sampling_rate=16_000, return_tensors="pt")).logits
    torch.testing.assert_close(logits_of(tmp_path / "bundle", [tone()]), expected, atol=1e-4, rtol=1e-4)


def test_labels_that_map_to_one_category_add_up(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "checkpoint", RAVDESS)
    import_checkpoint(str(tmp_path / "checkpoint"), tmp_path / "own", name="own")
    import_checkpoint(str(tmp_path / "checkpoint"), tmp_path / "mapped", categories=TO_EKMAN)
    own, joined = (
        pipeline(tmp_path / name, StubTranscriber()).analyze(samples=tone(), text=None).prediction.scores
        for name in ("own", "mapped")
    )
    assert own is not None
    assert joined is not None
    assert (own.label_space, joined.label_space) == ("own", "ekman7")
    expected = dict.fromkeys(EKMAN7.categories, 0.0)
    for label, category in TO_EKMAN.items():
        expected[category] += own.categories[label]
    assert joined.categories == pytest.approx(expected, abs=1e-5)


def test_labels_of_another_language_are_kept_or_mapped(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "six", INDONESIAN)
    import_checkpoint(str(tmp_path / "six"), tmp_path / "own")
    space = read_manifest(tmp_path / "own").label_space
    assert (space.name, space.categories, space.dimensions) == ("six", tuple(INDONESIAN), ())
    ekman = ["joy", "disgust", "anger", "neutral", "sadness", "fear"]
    import_checkpoint(str(tmp_path / "six"), tmp_path / "mapped", categories=dict(zip(INDONESIAN, ekman, strict=True)))
    scores = pipeline(tmp_path / "mapped", StubTranscriber()).analyze(samples=tone(), text=None).prediction.scores
    assert scores is not None
    assert scores.categories["surprise"] == 0


@pytest.mark.parametrize(("changed", "named"), [({"calm": None}, "calm"), ({"bored": "neutral"}, "bored")])
def test_a_mapping_that_does_not_fit_is_refused(tmp_path: Path, changed: dict[str, str | None], named: str) -> None:
    write_checkpoint(tmp_path / "checkpoint", RAVDESS)
    mapping = {label: category for label, category in ({**TO_EKMAN, **changed}).items() if category is not None}
    with pytest.raises(BundleError, match=f"check {named}"):
        import_checkpoint(str(tmp_path / "checkpoint"), tmp_path / "bundle", categories=mapping)


def test_a_model_of_several_labels_at_once_is_refused(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "checkpoint")
    config = json.loads((tmp_path / "checkpoint" / "config.json").read_text())
    (tmp_path / "checkpoint" / "config.json").write_text(json.dumps(config | {"problem_type": "regression"}))
    with pytest.raises(BundleError, match="regression"):
        import_checkpoint(str(tmp_path / "checkpoint"), tmp_path / "bundle")


def test_a_checkpoint_without_a_feature_extractor_takes_the_one_that_is_named(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "base")
    write_checkpoint(tmp_path / "checkpoint")
    (tmp_path / "checkpoint" / "preprocessor_config.json").unlink()
    with pytest.raises(BundleError, match="--extractor"):
        import_checkpoint(str(tmp_path / "checkpoint"), tmp_path / "bundle")
    import_checkpoint(str(tmp_path / "checkpoint"), tmp_path / "bundle", extractor=str(tmp_path / "base"))
    assert logits_of(tmp_path / "bundle", [tone()]).isfinite().all()


def test_the_licence_is_that_of_the_model_card_or_must_be_given(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "checkpoint")
    import_checkpoint(str(tmp_path / "checkpoint"), tmp_path / "bundle")
    assert read_manifest(tmp_path / "bundle").licence == "mit"
    (tmp_path / "checkpoint" / "README.md").unlink()
    with pytest.raises(BundleError, match="--licence"):
        import_checkpoint(str(tmp_path / "checkpoint"), tmp_path / "bundle")
    import_checkpoint(str(tmp_path / "checkpoint"), tmp_path / "bundle", licence="Apache-2.0")
    assert read_manifest(tmp_path / "bundle").licence == "Apache-2.0"


@pytest.mark.parametrize("revision", [None, "main", "abc123"])
def test_a_repository_without_a_commit_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, revision: str | None
) -> None:
    monkeypatch.setattr(hub, "snapshot_download", lambda *_, **__: pytest.fail("the hub was asked"))
    with pytest.raises(WeightsMissing, match="40 hex digits"):
        import_checkpoint("somebody/emotions", tmp_path / "bundle", revision)


def test_a_repository_at_a_commit_comes_from_the_hub_and_is_named_in_the_manifest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_checkpoint(tmp_path / "snapshot")
    asked: list[tuple[str, str]] = []

    def download(
        repository: str, *, revision: str, allow_patterns: Sequence[str] = (), local_files_only: bool = False
    ) -> str:
        if local_files_only:
            raise LocalEntryNotFoundError("not in the cache")
        asked.append((repository, revision))
        assert "*.safetensors" in allow_patterns
        assert not any(pattern.endswith(".bin") for pattern in allow_patterns), "safetensors are there"
        return str(tmp_path / "snapshot")

    names = ["config.json", "model.safetensors", "pytorch_model.bin"]
    info = SimpleNamespace(siblings=[SimpleNamespace(rfilename=name) for name in names])
    monkeypatch.setattr(hub, "HfApi", lambda: SimpleNamespace(model_info=lambda *_, **__: info))
    monkeypatch.setattr(hub, "snapshot_download", download)
    import_checkpoint("somebody/emotions", tmp_path / "bundle", "a" * 40)
    manifest = read_manifest(tmp_path / "bundle")
    assert asked == [("somebody/emotions", "a" * 40)]
    assert manifest.name == "emotions"
    assert manifest.classifier is not None
    assert manifest.classifier.source == f"somebody/emotions@{'a' * 40}"


def test_the_error_says_that_the_hub_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(*_: object, **__: object) -> str:
        raise LocalEntryNotFoundError("not in the cache")

    def unreachable(*_: object, **__: object) -> None:
        raise ConnectionError("no connection")

    monkeypatch.setattr(hub, "snapshot_download", absent)
    monkeypatch.setattr(hub, "HfApi", lambda: SimpleNamespace(model_info=unreachable))
    with pytest.raises(WeightsMissing, match=r"somebody/emotions.*no connection"):
        import_checkpoint("somebody/emotions", tmp_path / "bundle", "a" * 40)


def test_the_command_takes_a_mapping(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "checkpoint", RAVDESS)
    args = ["import_checkpoint", f"--source={tmp_path / 'checkpoint'}", f"--out={tmp_path / 'bundle'}"]
    run_recipe([*args, f"--categories={json.dumps(TO_EKMAN)}"])
    assert read_manifest(tmp_path / "bundle").label_space.name == "ekman7"


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json", "classifier.safetensors"])
def test_every_file_of_such_a_bundle_is_checked(tmp_path: Path, name: str) -> None:
    write_checkpoint(tmp_path / "checkpoint")
    import_checkpoint(str(tmp_path / "checkpoint"), tmp_path / "bundle")
    with (tmp_path / "bundle" / name).open("ab") as file:
        file.write(b" ")
    with pytest.raises(BundleError, match="sha256"):
        pipeline(tmp_path / "bundle")


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"kind": "telepathy"}, "telepathy"),
        ({"files": {}}, r"config\.json"),
        ({"options": {"outputs": ["glee"] * 7}}, "glee"),
        ({"options": {"outputs": EMOTIONS, "colour": 1}}, "colour"),
    ],
)
def test_an_unknown_kind_of_classifier_is_refused(tmp_path: Path, changes: dict[str, object], why: str) -> None:
    write_checkpoint(tmp_path / "checkpoint")
    import_checkpoint(str(tmp_path / "checkpoint"), tmp_path / "bundle")
    manifest = read_manifest(tmp_path / "bundle")
    assert manifest.classifier is not None
    with pytest.raises(BundleError, match=why):
        load_classifier(tmp_path / "bundle", manifest.classifier.model_copy(update=changes), manifest.label_space)
