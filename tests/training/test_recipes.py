"""From corpora to a bundle that is served, by the recipes as they are run from the command line."""

import json
import runpy
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from shared.domain.emotion import EKMAN7, Modality
from shared.modeling.loading import MANIFEST, load_encoders, read_manifest
from shared.modeling.pipeline import Pipeline
from shared.modeling.pretrained_encoders import PretrainedSpeechConfig
from shared.modeling.transcriber import Transcriber
from tests.tiny_models import FUSION
from training.branches import VoiceBranch
from training.data.corpus import views
from training.data.features import FeatureFile
from training.data.load import load
from training.lit_fusion import LitFusion
from training.losses import LossConfig
from training.recipes.cache_features import cache_features
from training.recipes.evaluate import EARLIER_TURNS, evaluate
from training.recipes.export_bundle import export_bundle
from training.recipes.train import Run, train

CONFIGS = Path(__file__).parents[2] / "training" / "configs"
SHAPES = [
    f"--fusion.{name}={value}" for name, value in FUSION.model_dump(exclude={"relative"}, exclude_none=True).items()
]
SHORT = ["--epochs=1", "--steps_per_epoch=2", "--voices=4", "--texts=4", "--accelerator=cpu"]


def recipe(monkeypatch: pytest.MonkeyPatch, name: str, *options: str) -> None:
    """`python -m training NAME OPTIONS`."""
    monkeypatch.setattr("sys.argv", ["training", name, *options])
    runpy.run_module("training", run_name="__main__")


def untouched() -> Transcriber:
    pytest.fail("the speech models were touched")


def test_the_text_encoder_of_compact_learns_to_read_with_the_turns_before(
    data: Path, encoders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, source = CONFIGS / "compact_text.yaml", f"--text.encoder.source={encoders}"
    fusion = ["--fusion.width=16", "--fusion.head_width=8", "--precision=32-true", "--text.freeze=0"]
    recipe(monkeypatch, "train", str(config), f"--data={data}", f"--out={tmp_path}", source, *fusion, *SHORT)
    learned, _ = load_encoders(tmp_path / "encoders")
    assert learned.config.context_turns == 2
    cache_features(tmp_path / "encoders", data, tmp_path / "cache", ["meld"])
    assert FeatureFile.exists(tmp_path / "cache" / "meld" / "text")


def test_the_configuration_of_compact_makes_a_bundle_that_is_served(
    data: Path, cache: Path, encoders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = CONFIGS / "compact.yaml"
    options = yaml.safe_load(config.read_text())
    cache_features(encoders, data, cache, options["corpora"], options["augmentations"])
    places = [f"--data={data}", f"--cache={cache}"]
    corpora = options["corpora"]
    known = views(load(data, corpora))
    measured = {
        f"{name}, {turns} earlier turn{'s' if turns != 1 else ''}" if voice else name
        for name, (_, _, voice) in known.items()
        for turns in EARLIER_TURNS
    }
    trained = [f"--config={config}", *places, *SHAPES, *SHORT]
    recipe(monkeypatch, "train", *trained, f"--out={tmp_path / 'run'}")
    for fold in range(2):
        recipe(monkeypatch, "train", *trained, f"--out={tmp_path / f'fold{fold}'}", f"--fold={fold}", "--folds=2")

    once = tmp_path / "validation"
    recipe(monkeypatch, "evaluate", *places, f"--runs=[{tmp_path / 'run'}]", f"--out={once}")
    figures = json.loads((once / "metrics.json").read_text())["views"]
    assert set(figures) == measured
    assert counts(figures) == (8, 7)
    assert {path.suffix for path in once.iterdir()} == {".json", ".md", ".png"}
    elsewhere = tmp_path / "elsewhere"
    recipe(monkeypatch, "evaluate", *places, f"--runs=[{tmp_path / 'run'}]", "--unseen=[tess]", f"--out={elsewhere}")
    figures = json.loads((elsewhere / "metrics.json").read_text())["views"]
    assert figures["tess voice, 3 earlier turns"]["utterances"] == 14
    folds = tmp_path / "folds"
    runs = f"--runs=[{tmp_path / 'fold0'},{tmp_path / 'fold1'}]"
    recipe(monkeypatch, "evaluate", *places, runs, f"--out={folds}", "--folds=2")
    figures = json.loads((folds / "metrics.json").read_text())["views"]
    assert set(figures) == {name for name in measured if "earlier" in name}
    # Every speaker once, but for those that test.
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
    recipe(monkeypatch, "export_bundle", *places, *exported, f"--out={bundle}")
    manifest = read_manifest(bundle)
    assert (manifest.version, manifest.calibration.accepted_risk) == ("2", 0.5)
    assert set(manifest.metrics["validation"]) == measured
    assert manifest.metrics["cross_validation"]["ravdess both, 0 earlier turns"]["count"] == 24
    assert [corpus["name"] for corpus in manifest.training_data] == corpora
    assert {path.suffix for path in bundle.iterdir()} == {".safetensors", ".json", ".yaml"}

    reading = Pipeline.load(bundle, untouched).analyze(samples=None, text="what a lovely day").prediction
    assert reading.modalities_used == (Modality.text,)
    assert reading.scores is not None
    assert set(reading.scores.categories) == set(EKMAN7.categories)
    assert sum(reading.scores.categories.values()) == pytest.approx(1)


def counts(figures: dict[str, dict[str, int]]) -> tuple[int, int]:
    """How many voices were read."""
    ravdess, urdu = (figures[f"{corpus} voice, 3 earlier turns"] for corpus in ("ravdess", "urdu_latif"))
    return ravdess["utterances"], urdu["utterances"]


def short_training(data: Path, cache: Path, out: Path, corpora: list[str], **options: Any) -> None:  # noqa: ANN401
    sizes: dict[str, Any] = {"voices": 4, "texts": 4, "steps_per_epoch": 2, "epochs": 2} | options
    train(data, out, corpora, cache, fusion=FUSION, accelerator="cpu", **sizes)


def last(out: Path) -> dict[str, int]:
    return torch.load(out / "last.ckpt", weights_only=True)


def test_a_training_that_was_broken_off_goes_on_where_it_was(
    data: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def break_off(module: LitFusion) -> None:
        if module.current_epoch == 1:
            raise OSError("no power")

    with monkeypatch.context() as broken:
        broken.setattr(LitFusion, "on_train_epoch_start", break_off, raising=False)
        with pytest.raises(OSError, match="no power"):
            short_training(data, cache, tmp_path, ["ravdess", "meld"])
    assert last(tmp_path)["global_step"] == 2
    assert not (tmp_path / "fusion.safetensors").exists()

    short_training(data, cache, tmp_path, ["ravdess", "meld"], resume=True)
    assert last(tmp_path)["global_step"] == 4
    assert {path.name for path in tmp_path.glob("*.ckpt")} == {"best.ckpt", "last.ckpt"}
    weights = load_file(tmp_path / "fusion.safetensors")

    short_training(data, cache, tmp_path, ["ravdess", "meld"], resume=True)  # there is nothing left to do
    assert last(tmp_path)["global_step"] == 4
    for name, tensor in load_file(tmp_path / "fusion.safetensors").items():
        torch.testing.assert_close(tensor, weights[name])


def test_resuming_goes_on_from_the_latest_training_in_a_folder(data: Path, cache: Path, tmp_path: Path) -> None:
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


@pytest.mark.parametrize("corpora", [["urdu_latif"], ["goemotions"]], ids=["voices", "texts"])
def test_a_bundle_of_one_modality(data: Path, cache: Path, encoders: Path, tmp_path: Path, corpora: list[str]) -> None:
    short_training(data, cache, tmp_path / "run", corpora, epochs=1)
    export_bundle(data, [tmp_path / "run"], tmp_path / "bundle", cache, encoders)
    calibration = yaml.safe_load((tmp_path / "bundle" / MANIFEST).read_text())["calibration"]
    assert calibration["temperature"] == 1.0


def test_several_categories_of_a_text_are_measured_where_each_is_a_question_of_its_own(
    data: Path, cache: Path, tmp_path: Path
) -> None:
    for multi_label in (True, False):
        run, out = tmp_path / f"run {multi_label}", tmp_path / f"report {multi_label}"
        short_training(data, cache, run, ["goemotions"], epochs=1, loss=LossConfig(multi_label=multi_label))
        evaluate(data, [run, run], out, cache, pooled=True, accelerator="cpu")
        found = json.loads((out / "metrics.json").read_text())["views"]["goemotions text"]["multi_label"]
        assert ("## Several categories at once" in (out / "report.md").read_text()) == multi_label
        assert (None if found is None else found["count"]) == (16 if multi_label else None)


def test_each_of_several_categories_counts_whole_where_it_is_a_question_of_its_own(data: Path) -> None:
    for multi_label, counted in ((True, 1.0), (False, 0.5)):
        run = Run(corpora=("goemotions",), fusion=FUSION, loss=LossConfig(multi_label=multi_label))
        several = next(u for u in run.utterances(data) if "of two minds" in (u.text or ""))
        assert several.target == (counted, 0, 0, 0, 0, counted, 0)


def test_what_is_cached_is_opened_once_however_many_views_there_are(
    data: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short_training(data, cache, tmp_path / "run", ["ravdess"], epochs=1)
    opened: list[Path] = []
    opening = FeatureFile.__init__
    monkeypatch.setattr(FeatureFile, "__init__", lambda file, folder: opened.append(folder) or opening(file, folder))
    evaluate(data, [tmp_path / "run"], tmp_path / "report", cache, accelerator="cpu")
    assert sorted(opened) == [cache / "ravdess" / "original", cache / "ravdess" / "text"]


def test_bands_of_what_is_not_cached_are_refused(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"bands is 0\.2, but it masks cached features"):
        train(data, tmp_path, ["ravdess"], voice=VoiceBranch(encoder=PretrainedSpeechConfig(source="none")), bands=0.2)


def test_a_way_of_recording_that_is_not_cached_is_named(data: Path, cache: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no 'reverberation' of ravdess.*cache_features"):
        short_training(data, cache, tmp_path, ["ravdess"], augmentations=["reverberation"])


def test_what_is_cached_is_not_done_again(
    data: Path, encoders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache_features(encoders, data, tmp_path, ["ravdess"], ["original"])
    assert {path.name for path in (tmp_path / "ravdess").iterdir()} == {"text", "original"}
    monkeypatch.setattr("training.recipes.cache_features.decode", lambda path: pytest.fail("it was decoded again"))
    cache_features(encoders, data, tmp_path, ["ravdess"], ["original"])
