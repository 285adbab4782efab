"""Every configuration is loaded and runs, on small corpora and checkpoints of the published depth."""

import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from shared.domain.job import Lane
from shared.settings import Batches, BatchLimits
from tests import checkpoints
from tests.audio_clips import tone, wav
from tests.tiny_models import Heard, pipeline
from tests.training.corpora import FEELINGS
from tests.training.test_recipes import recipe
from training.data.corpus import Split
from training.data.load import CORPORA
from training.data.meld import CLIPS
from training.recipes.train import Run
from training.report import Report
from workers.stages import Stages

ROOT = Path(__file__).parents[2]
OTHERS = {"classical", "resnet34"}
"""Folders of recipes that have tests of their own."""
FOLDER = ROOT / "training" / "configs"
PUBLISHED_CONFIGS = sorted(path for path in FOLDER.glob("*/*.yaml") if path.parent.name not in OTHERS)
CONFIGS = [FOLDER / "full.yaml", *PUBLISHED_CONFIGS]
PUBLISHED: dict[str, Callable[[Path], Path]] = {
    "facebook/wav2vec2-xls-r-300m": partial(checkpoints.xls_r, layers=24),
    "facebook/wav2vec2-large-xlsr-53": partial(checkpoints.xls_r, layers=24),
    "ehcalabres/wav2vec2-lg-xlsr-en-speech-emotion-recognition": partial(checkpoints.xls_r, layers=24),
    "facebook/wav2vec2-base": partial(checkpoints.wav2vec2, layers=12),
    "microsoft/wavlm-base": partial(checkpoints.wavlm, layers=12),
    "FacebookAI/roberta-base": partial(checkpoints.roberta, layers=12, positions=512),
    "FacebookAI/xlm-roberta-base": partial(checkpoints.xlm_roberta, layers=12, positions=512),
}
SMALL = ["--fusion.width=16", "--fusion.heads=2", "--fusion.hidden=16", "--fusion.head_width=8"]
SMALL_PATCHES = ["--fusion.patches.patch=8", "--fusion.patches.width=16", "--fusion.patches.heads=2"]
SHORT = ["--epochs=1", "--steps_per_epoch=1", "--voices=2", "--texts=2", "--accumulate=1", "--accelerator=cpu"]


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A checkpoint by its name on the hub."""
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
        for i in range(len(FEELINGS)):
            clip = folder / "meld" / CLIPS[split] / f"dia0_utt{i}.mp4"
            clip.write_bytes(wav(tone(0.3, 100 + 20 * i)))
    return folder


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
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name = recipe_of(config)
    options = yaml.safe_load(config.read_text())
    seeds = ["--seeds=[0]"] if name == "cross_corpus" else []
    places = [f"--data={corpora}", f"--out={tmp_path}"]
    small = SMALL_PATCHES if options["fusion"]["kind"] == "patch_transformer" else SMALL
    recipe(monkeypatch, name, str(config), *places, *sources(options, published), *small, *SHORT, *seeds)
    if name == "cross_corpus":
        report = Report.model_validate_json((tmp_path / "metrics.json").read_text())
        assert len(report.views) == 1 + options.get("both_directions", False)
    for file in tmp_path.rglob("run.json"):
        check_run(file.parent, options)
    assert list(tmp_path.rglob("run.json"))


def test_the_full_profile_reads_turns_in_batches_as_one_by_one(
    corpora: Path, published: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, run, bundle = FOLDER / "full.yaml", tmp_path / "run", tmp_path / "bundle"
    options = yaml.safe_load(config.read_text())
    places = [f"--data={corpora}", f"--out={run}"]
    few = ["--corpora=[ravdess,meld]", "--corpus_weights=null"]
    recipe(monkeypatch, "train", str(config), *places, *few, *sources(options, published), *SMALL, *SHORT)
    export = [f"--data={corpora}", f"--runs=[{run}]", f"--out={bundle}", "--name=full", "--whisper=large-v3-turbo"]
    recipe(monkeypatch, "export_bundle", *export)
    subject = pipeline(bundle, Heard("what a day"))
    turns = [(tone(0.3 + 0.4 * (row % 5), 150 + 10 * row), "so happy" if row % 4 == 0 else None) for row in range(16)]
    alone = [subject.analyze(samples=sound, text=text) for sound, text in turns]
    # Long waits, so that batches fill up.
    limits = Batches(**{name: BatchLimits(budget=1e6, wait_s=0.1) for name in Batches.model_fields})
    stages = Stages(subject, limits, courtesy_s=0)
    lane = stages.lane(Lane.interactive, timeout_s=60)
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
    """What the comment at its top runs it with."""
    called = re.search(r"#   (?:tenor|python -m training) (\w+) (\S+)", config.read_text())
    assert called is not None, "the comment at the top does not say how to run it"
    assert called[2] == str(config.relative_to(ROOT))
    return called[1]


def sources(options: dict[str, dict[str, dict[str, str]]], published: Callable[[str], Path]) -> Iterator[str]:
    """Small checkpoints in place of the published ones, which are named by a commit."""
    for branch in {"text", "voice"} & options.keys():
        encoder = options[branch]["encoder"]
        assert re.fullmatch("[0-9a-f]{40}", encoder["revision"])
        yield f"--{branch}.encoder.source={published(encoder['source'])}"
    if "seconds" in options.get("voice", {}):
        yield "--voice.seconds=[0.1,10]"  # the small corpora's clips are shorter than any real one


def check_run(folder: Path, options: dict[str, object]) -> None:
    run = Run.model_validate_json((folder / "run.json").read_text())
    assert (run.text is not None, run.voice is not None) == ("text" in options, "voice" in options)
    labels = options.get("labels", "ekman7")
    assert run.labels.space.name == (labels["space"]["name"] if isinstance(labels, dict) else labels)
    assert run.fusion.categories == len(run.labels.space.categories)
    assert all(torch.isfinite(weight).all() for weight in load_file(folder / "fusion.safetensors").values())
    assert {path.name for path in (folder / "encoders").iterdir()} == {"text", "voice"} & options.keys()
