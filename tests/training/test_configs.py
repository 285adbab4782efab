"""Every shipped configuration loads, and runs on small corpora and small checkpoints of the published depth."""

import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from shared.domain.job import Lane
from shared.settings import Batches, BatchLimits
from tests import checkpoints
from tests.audio_clips import tone, wav
from tests.tiny_models import StubTranscriber, pipeline
from tests.training.corpus_samples import TEXTS
from training.__main__ import run_recipe
from training.data.corpora.meld import CLIPS
from training.data.registry import CORPORA
from training.data.utterance import Split
from training.report import Report
from training.runs import RunConfig
from workers.stages import Stages

ROOT = Path(__file__).parents[2]
OTHERS = {"classical", "resnet34"}
"""Folders of the recipes `classical` and `transfer`, which run in their own tests."""
FOLDER = ROOT / "training" / "configs"
PUBLISHED_CONFIGS = sorted(path for path in FOLDER.glob("*/*.yaml") if path.parent.name not in OTHERS)
CONFIGS = [FOLDER / "full.yaml", *PUBLISHED_CONFIGS]
EVERY_CONFIG = sorted(FOLDER.rglob("*.yaml"))
PUBLISHED: dict[str, Callable[[Path], Path]] = {
    "facebook/wav2vec2-xls-r-300m": partial(checkpoints.xls_r, layers=24),
    "facebook/wav2vec2-large-xlsr-53": partial(checkpoints.xls_r, layers=24),
    "ehcalabres/wav2vec2-lg-xlsr-en-speech-emotion-recognition": partial(checkpoints.xls_r, layers=24),
    "facebook/wav2vec2-base": partial(checkpoints.wav2vec2, layers=12),
    "microsoft/wavlm-base": partial(checkpoints.wavlm, layers=12),
    "FacebookAI/roberta-base": partial(checkpoints.roberta, layers=12, positions=512),
    "FacebookAI/xlm-roberta-base": partial(checkpoints.xlm_roberta, layers=12, positions=512),
}
SMALL = [f"--model.fusion.{shape}" for shape in ("width=16", "heads=2", "hidden=16", "head_width=8")]
SMALL_PATCHES = [f"--model.fusion.patches.{shape}" for shape in ("patch=8", "width=16", "heads=2")]
TRAINER = ("epochs=1", "steps_per_epoch=1", "accumulate=1", "accelerator=cpu")
SHORT = [*(f"--trainer.{option}" for option in TRAINER), "--batches.audio=2", "--batches.text=2"]


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Returns a small checkpoint for a name on the hub."""
    folder = tmp_path_factory.mktemp("published")

    def of(name: str) -> Path:
        path = folder / name.replace("/", "-")
        return path if path.exists() else PUBLISHED[name](path)

    return of


@pytest.fixture(scope="module")
def corpora(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All corpora, and MELD with its clips."""
    folder = tmp_path_factory.mktemp("corpora")
    for corpus in {corpus.folder for corpus in CORPORA.values()} - {"meld"}:
        (folder / corpus).symlink_to(data / corpus)
    (folder / "meld").mkdir()
    for table in (data / "meld").iterdir():
        (folder / "meld" / table.name).symlink_to(table)
    for split in (Split.train, Split.validation):
        (folder / "meld" / CLIPS[split]).mkdir()
        for i in range(len(TEXTS)):
            clip = folder / "meld" / CLIPS[split] / f"dia0_utt{i}.mp4"
            clip.write_bytes(wav(tone(0.3, 100 + 20 * i)))
    return folder


@pytest.mark.parametrize("config", EVERY_CONFIG, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_configuration_loads_without_running(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = [f"--data={tmp_path}", f"--cache={tmp_path}", f"--out={tmp_path}"]
    recipe = recipe_of(config)
    places = [place for place in places if recipe != "transfer" or "cache" not in place]
    with pytest.raises(SystemExit, match="0"):
        run_recipe([recipe, str(config), *places, "--print_config"])
    loaded = yaml.safe_load(capsys.readouterr().out)
    assert yaml.safe_load(config.read_text()).keys() <= loaded.keys()


def test_every_published_system_has_a_configuration() -> None:
    assert {path.parent.name for path in PUBLISHED_CONFIGS} == {
        "bilingual_urdu_english",
        "cross_corpus",
        "indonesian",
        "transfer_learning",
        "valence",
    }


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_configuration_runs(
    config: Path,
    corpora: Path,
    published: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    name = recipe_of(config)
    options = yaml.safe_load(config.read_text())
    seeds = ["--seeds=[0]"] if name == "cross_corpus" else []
    places = [f"--data={corpora}", f"--out={tmp_path}"]
    small = SMALL_PATCHES if options["model"]["fusion"]["kind"] == "patch_transformer" else SMALL
    run_recipe([name, str(config), *places, *sources(options, published), *small, *SHORT, *seeds])
    if name == "cross_corpus":
        report = Report.model_validate_json((tmp_path / "metrics.json").read_text())
        assert len(report.views) == 1 + options.get("both_directions", False)
    for file in tmp_path.rglob("run.json"):
        check_run(file.parent, options)
    assert list(tmp_path.rglob("run.json"))


def test_the_full_profile_predicts_the_same_in_batches_as_one_by_one(
    corpora: Path, published: Callable[[str], Path], tmp_path: Path
) -> None:
    config, run, bundle = FOLDER / "full.yaml", tmp_path / "run", tmp_path / "bundle"
    options = yaml.safe_load(config.read_text())
    places = [f"--data={corpora}", f"--out={run}"]
    few = ["--corpora=[ravdess,meld]", "--batches.corpus_weights=null"]
    run_recipe(["train", str(config), *places, *few, *sources(options, published), *SMALL, *SHORT])
    export = [f"--data={corpora}", f"--runs=[{run}]", f"--out={bundle}", "--name=full", "--whisper=large-v3-turbo"]
    run_recipe(["export_bundle", *export])
    subject = pipeline(bundle, StubTranscriber("what a day"))
    turns = [(tone(0.3 + 0.4 * (row % 5), 150 + 10 * row), "so happy" if row % 4 == 0 else None) for row in range(16)]
    alone = [subject.analyze(samples=samples, text=text) for samples, text in turns]
    # Long waits, so that batches fill up.
    limits = Batches(**{name: BatchLimits(budget=1e6, wait_s=0.1) for name in Batches.model_fields})
    stages = Stages(subject, limits, max_bulk_pause_s=0)
    lane = stages.stage_runner(Lane.interactive, timeout_s=60)
    with ThreadPoolExecutor(len(turns)) as threads:
        together = threads.map(lambda turn: subject.analyze(samples=turn[0], text=turn[1], submit=lane), turns)
        for one, other in zip(together, alone, strict=True):
            assert one.transcript == other.transcript
            assert one.prediction.scores is not None
            assert other.prediction.scores is not None
            assert one.prediction.scores.categories == pytest.approx(other.prediction.scores.categories, abs=1e-4)
            assert one.prediction.scores.dimensions == pytest.approx(other.prediction.scores.dimensions, abs=1e-4)
    stages.close()


def recipe_of(config: Path) -> str:
    """Returns the recipe in the command of the comment at the top."""
    called = re.search(r"#   (?:tenor|python -m training) (\w+) (?:--config )?(\S+)", config.read_text())
    assert called is not None, "the comment at the top has no command"
    assert called[2] == str(config.relative_to(ROOT))
    return called[1]


def sources(options: dict[str, Any], published: Callable[[str], Path]) -> Iterator[str]:
    """Yields options that replace the published checkpoints, which are named by a commit, by small ones."""
    for name in {"text", "audio"} & options["model"].keys():
        encoder = options["model"][name]["encoder"]
        assert re.fullmatch("[0-9a-f]{40}", encoder["revision"])
        yield f"--model.{name}.encoder.source={published(encoder['source'])}"
    if "seconds" in options["model"].get("audio", {}):
        yield "--model.audio.seconds=[0.1,10]"  # the small corpora's clips are shorter than any real one


def check_run(folder: Path, options: dict[str, Any]) -> None:
    config = RunConfig.model_validate_json((folder / "run.json").read_text())
    trained = {"text", "audio"} & options["model"].keys()
    assert {name for name in ("text", "audio") if getattr(config.model, name) is not None} == trained
    labels = options.get("labels", "ekman7")
    assert config.labels.space.name == (labels["space"]["name"] if isinstance(labels, dict) else labels)
    assert config.model.fusion.categories == len(config.labels.space.categories)
    assert all(torch.isfinite(weight).all() for weight in load_file(folder / "fusion.safetensors").values())
    assert {path.name for path in (folder / "encoders").iterdir()} == trained
