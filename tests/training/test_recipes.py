"""The recipes from corpora to a bundle that is served, as run from the command line."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from shared.domain.emotion import EKMAN7, Modality
from shared.domain.turn import MAX_CONTEXT_TURNS
from shared.modeling.loading import MANIFEST, load_encoders, read_manifest
from shared.modeling.pipeline import Pipeline
from shared.modeling.pretrained_encoders import PretrainedSpeechConfig, PretrainedTextConfig
from shared.modeling.transcriber import Transcriber
from tests.tiny_models import FUSION
from training.__main__ import run_recipe
from training.args import AudioBranch, AugmentationArgs, BatchArgs, ModelArgs, TextBranch, TrainerArgs
from training.data.feature_cache import FeatureFile
from training.data.registry import load
from training.data.views import views
from training.fusion_module import FusionModule
from training.losses import LossConfig
from training.predictions import EARLIER_TURNS
from training.recipes.cache_features import cache_features
from training.recipes.evaluate import evaluate
from training.recipes.export_bundle import export_bundle
from training.recipes.train import train
from training.runs import RunConfig

CONFIGS = Path(__file__).parents[2] / "training" / "configs"
SHAPES = [
    f"--model.fusion.{name}={value}"
    for name, value in FUSION.model_dump(exclude={"relative"}, exclude_none=True).items()
]
TRAINER = [f"--trainer.{option}" for option in ("epochs=1", "steps_per_epoch=2", "accelerator=cpu")]
SHORT = [*TRAINER, "--batches.audio=4", "--batches.text=4"]


def no_transcriber() -> Transcriber:
    pytest.fail("the speech models were loaded")


def test_the_text_encoder_of_compact_trains_with_preceding_turns(data: Path, encoders: Path, tmp_path: Path) -> None:
    config, source = CONFIGS / "compact_text.yaml", f"--model.text.encoder.source={encoders}"
    shapes = ["--model.fusion.width=16", "--model.fusion.head_width=8", "--model.text.freeze=0"]
    places = [f"--data={data}", f"--out={tmp_path}"]
    run_recipe(["train", str(config), *places, source, *shapes, *SHORT, "--trainer.precision=32-true"])
    learned, _ = load_encoders(tmp_path / "encoders")
    assert learned.config.context_turns == 2
    cache_features(tmp_path / "encoders", data, tmp_path / "cache", ["meld"])
    assert FeatureFile.exists(tmp_path / "cache" / "meld" / "text")


def test_the_configuration_of_compact_makes_a_bundle_that_is_served(
    data: Path, cache: Path, encoders: Path, tmp_path: Path
) -> None:
    config = CONFIGS / "compact.yaml"
    options = yaml.safe_load(config.read_text())
    cache_features(encoders, data, cache, options["corpora"], options["augmentation"]["kinds"])
    places = [f"--data={data}", f"--cache={cache}"]
    corpora = options["corpora"]
    known = views(load(data, corpora))
    measured = {
        f"{name}, {turns} earlier turn{'s' if turns != 1 else ''}" if view.audio else name
        for name, view in known.items()
        for turns in EARLIER_TURNS
    }
    trained = [f"--config={config}", *places, *SHAPES, *SHORT]
    run_recipe(["train", *trained, f"--out={tmp_path / 'run'}"])
    for fold in range(2):
        run_recipe(["train", *trained, f"--out={tmp_path / f'fold{fold}'}", f"--fold.index={fold}", "--fold.count=2"])

    once = tmp_path / "validation"
    run_recipe(["evaluate", *places, f"--runs=[{tmp_path / 'run'}]", f"--out={once}"])
    figures = json.loads((once / "metrics.json").read_text())["views"]
    assert set(figures) == measured
    assert counts(figures) == (8, 7)
    assert {path.suffix for path in once.iterdir()} == {".json", ".md", ".png"}
    unseen = tmp_path / "unseen"
    # Each view and number of turns has a plot, which takes most of the time of a report this small.
    few = "--earlier_turns=[0,3]"
    run_recipe(["evaluate", *places, f"--runs=[{tmp_path / 'run'}]", "--unseen=[tess]", few, f"--out={unseen}"])
    figures = json.loads((unseen / "metrics.json").read_text())["views"]
    assert figures["tess audio, 3 earlier turns"]["utterances"] == 14
    folds = tmp_path / "folds"
    runs = f"--runs=[{tmp_path / 'fold0'},{tmp_path / 'fold1'}]"
    run_recipe(["evaluate", *places, runs, few, f"--out={folds}", "--folds=2"])
    figures = json.loads((folds / "metrics.json").read_text())["views"]
    assert set(figures) == {name for name in measured if name.endswith((", 0 earlier turns", ", 3 earlier turns"))}
    # Every speaker once, except those of the test split.
    assert counts(figures) == (24, 11)

    bundle = tmp_path / "bundle"
    runs = f"--runs=[{tmp_path / 'run'},{tmp_path / 'fold0'}]"
    exported = [
        f"--encoders={encoders}",
        runs,
        f"--cross_validation={folds / 'metrics.json'}",
        "--version=2",
        "--accepted_risk=0.5",
    ]
    run_recipe(["export_bundle", *places, *exported, f"--out={bundle}"])
    manifest = read_manifest(bundle)
    assert (manifest.version, manifest.calibration.accepted_risk) == ("2", 0.5)
    assert set(manifest.metrics["validation"]) == measured
    assert manifest.metrics["cross_validation"]["ravdess both, 0 earlier turns"]["count"] == 24
    assert [corpus["name"] for corpus in manifest.training_data] == corpora
    assert {path.suffix for path in bundle.iterdir()} == {".safetensors", ".json", ".yaml"}

    reading = Pipeline.load(bundle, no_transcriber).analyze(samples=None, text="what a lovely day").prediction
    assert reading.modalities_used == (Modality.text,)
    assert reading.scores is not None
    assert set(reading.scores.categories) == set(EKMAN7.categories)
    assert sum(reading.scores.categories.values()) == pytest.approx(1)


def counts(figures: dict[str, dict[str, int]]) -> tuple[int, int]:
    """How many utterances with audio were predicted."""
    ravdess, urdu = (figures[f"{corpus} audio, 3 earlier turns"] for corpus in ("ravdess", "urdu_latif"))
    return ravdess["utterances"], urdu["utterances"]


def short_training(
    data: Path,
    cache: Path,
    out: Path,
    corpora: list[str],
    *,
    model: ModelArgs = ModelArgs(fusion=FUSION),  # noqa: B008 - frozen
    augmentation: AugmentationArgs = AugmentationArgs(),  # noqa: B008 - frozen
    **options: Any,  # noqa: ANN401 - those of TrainerArgs
) -> None:
    args = TrainerArgs.model_validate({"steps_per_epoch": 2, "epochs": 2, "accelerator": "cpu", **options})
    batches = BatchArgs(audio=4, text=4)
    train(data, out, corpora, cache, model=model, batches=batches, augmentation=augmentation, trainer=args)


def last(out: Path) -> dict[str, int]:
    return torch.load(out / "last.ckpt", weights_only=True)


def test_an_interrupted_training_continues(
    data: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(module: FusionModule) -> None:
        if module.current_epoch == 1:
            raise OSError("no power")

    with monkeypatch.context() as interrupted:
        interrupted.setattr(FusionModule, "on_train_epoch_start", interrupt, raising=False)
        with pytest.raises(OSError, match="no power"):
            short_training(data, cache, tmp_path, ["ravdess", "meld"])
    assert last(tmp_path)["global_step"] == 2
    assert not (tmp_path / "fusion.safetensors").exists()

    short_training(data, cache, tmp_path, ["ravdess", "meld"], resume=True)
    assert last(tmp_path)["global_step"] == 4
    assert {path.name for path in tmp_path.glob("*.ckpt")} == {"best.ckpt", "last.ckpt"}
    weights = load_file(tmp_path / "fusion.safetensors")

    short_training(data, cache, tmp_path, ["ravdess", "meld"], resume=True)  # nothing is left to do
    assert last(tmp_path)["global_step"] == 4
    for name, tensor in load_file(tmp_path / "fusion.safetensors").items():
        torch.testing.assert_close(tensor, weights[name])


def test_the_last_checkpoint_is_that_of_the_latest_training_in_a_folder(
    data: Path, cache: Path, tmp_path: Path
) -> None:
    for epochs in (2, 1):
        short_training(data, cache, tmp_path, ["meld"], epochs=epochs)
    assert last(tmp_path)["global_step"] == 2


def test_a_corpus_without_validation_is_not_validated(data: Path, cache: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(data / "ravdess", tmp_path / "data" / "ravdess")).parent
    shutil.copytree(data / "meld", copy / "meld")
    shutil.rmtree(copy / "ravdess" / "Actor_19")
    short_training(copy, cache, tmp_path / "run", ["ravdess", "meld"], epochs=1)
    columns = (tmp_path / "run" / "metrics.csv").read_text().splitlines()[0]
    assert "val/meld text/uar" in columns
    assert "ravdess" not in columns


def test_the_seed_decides_the_weights(data: Path, cache: Path, tmp_path: Path) -> None:
    first, second, other = (tmp_path / name for name in ("first", "second", "other"))
    for out, seed in ((first, 1), (second, 1), (other, 2)):
        short_training(data, cache, out, ["ravdess"], epochs=1, seed=seed)
    weights = [load_file(out / "fusion.safetensors") for out in (first, second, other)]
    assert all(weights[0][name].equal(weights[1][name]) for name in weights[0])
    assert not all(weights[0][name].equal(weights[2][name]) for name in weights[0])


@pytest.mark.parametrize("corpora", [["urdu_latif"], ["goemotions"]], ids=["audio", "text"])
def test_a_bundle_of_one_modality(data: Path, cache: Path, encoders: Path, tmp_path: Path, corpora: list[str]) -> None:
    short_training(data, cache, tmp_path / "run", corpora, epochs=1)
    export_bundle(data, [tmp_path / "run"], tmp_path / "bundle", cache, encoders)
    calibration = yaml.safe_load((tmp_path / "bundle" / MANIFEST).read_text())["calibration"]
    assert calibration["temperature"] == 1.0


def multi_label_model(multi_label: bool) -> ModelArgs:
    return ModelArgs(fusion=FUSION, loss=LossConfig(multi_label=multi_label))


def test_texts_with_several_categories_have_multi_label_metrics_after_a_multi_label_training(
    data: Path, cache: Path, tmp_path: Path
) -> None:
    for multi_label in (True, False):
        run, out = tmp_path / f"run {multi_label}", tmp_path / f"report {multi_label}"
        short_training(data, cache, run, ["goemotions"], epochs=1, model=multi_label_model(multi_label))
        evaluate(data, [run, run], out, cache, pooled=True, accelerator="cpu")
        found = json.loads((out / "metrics.json").read_text())["views"]["goemotions text"]["multi_label"]
        assert ("## Several categories per utterance" in (out / "report.md").read_text()) == multi_label
        assert (None if found is None else found["count"]) == (16 if multi_label else None)


def test_each_of_several_categories_counts_as_1_with_a_multi_label_loss(data: Path) -> None:
    for multi_label, counted in ((True, 1.0), (False, 0.5)):
        config = RunConfig(corpora=("goemotions",), model=multi_label_model(multi_label))
        several = next(u for u in config.utterances(data) if "of two minds" in (u.text or ""))
        assert several.target == (counted, 0, 0, 0, 0, counted, 0)


def test_cached_features_are_opened_once_for_all_views(
    data: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short_training(data, cache, tmp_path / "run", ["ravdess"], epochs=1)
    opened: list[Path] = []
    opening = FeatureFile.__init__
    monkeypatch.setattr(FeatureFile, "__init__", lambda file, folder: opened.append(folder) or opening(file, folder))
    evaluate(data, [tmp_path / "run"], tmp_path / "report", cache, earlier_turns=(0, 3), accelerator="cpu")
    assert sorted(opened) == [cache / "ravdess" / "original", cache / "ravdess" / "text"]


def test_masking_bands_of_features_that_are_not_cached_is_refused(data: Path, tmp_path: Path) -> None:
    model = ModelArgs(audio=AudioBranch(encoder=PretrainedSpeechConfig(source="none")))
    with pytest.raises(ValueError, match=r"masked_bands is 0\.2, but it masks cached features"):
        train(data, tmp_path, ["ravdess"], model=model, augmentation=AugmentationArgs(masked_bands=0.2))


def test_the_error_names_an_augmentation_that_is_not_cached(data: Path, cache: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no 'reverberation' of ravdess.*cache_features"):
        short_training(data, cache, tmp_path, ["ravdess"], augmentation=AugmentationArgs(kinds=("reverberation",)))


def test_cached_features_are_not_computed_again(
    data: Path, encoders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache_features(encoders, data, tmp_path, ["ravdess"], ["original"])
    assert {path.name for path in (tmp_path / "ravdess").iterdir()} == {"text", "original"}
    monkeypatch.setattr("training.recipes.cache_features.decode", lambda path: pytest.fail("it was decoded again"))
    cache_features(encoders, data, tmp_path, ["ravdess"], ["original"])


def test_training_with_more_context_than_serving_gives_is_refused() -> None:
    encoder = PretrainedTextConfig(source="none", context_turns=MAX_CONTEXT_TURNS)
    assert TextBranch(encoder=encoder).encoder.context_turns == MAX_CONTEXT_TURNS
    with pytest.raises(ValueError, match="context_turns is 3, but serving gives a text at most 2 preceding turns"):
        TextBranch(encoder=encoder.model_copy(update={"context_turns": 3}))


def test_encoders_that_read_more_context_than_serving_gives_are_refused(
    data: Path, cache: Path, encoders: Path, tmp_path: Path
) -> None:
    copied = Path(shutil.copytree(encoders, tmp_path / "encoders"))
    options = json.loads((copied / "encoders.json").read_text())
    options["text_encoder"]["context_turns"] = 3
    (copied / "encoders.json").write_text(json.dumps(options))
    with pytest.raises(ValueError, match="context_turns is 3, but serving gives a text at most 2"):
        cache_features(copied, data, tmp_path / "cache", ["meld"])
    short_training(data, cache, tmp_path / "run", ["goemotions"], epochs=1)
    with pytest.raises(ValueError, match="context_turns is 3, but serving gives a text at most 2"):
        export_bundle(data, [tmp_path / "run"], tmp_path / "bundle", cache, copied)
