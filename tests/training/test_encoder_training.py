"""Encoders that train together with the fusion: pretrained ones and those of a bundle; and zero-shot tests."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from safetensors.torch import load_file

from shared.modeling.loading import ENCODERS_FILE, load_encoders, read_manifest
from shared.modeling.pipeline import Pipeline
from shared.modeling.pretrained_encoders import PretrainedSpeechConfig, PretrainedTextConfig
from tests import checkpoints
from tests.tiny_models import FUSION
from training.args import AudioBranch, BatchArgs, ModelArgs, TextBranch, TrainerArgs
from training.data.examples import Example, TextWithContext
from training.data.label_schemes import SCHEMES, common_categories
from training.data.registry import load
from training.data.views import View
from training.encoder_branches import EncoderBranches
from training.finetuning import Lora
from training.fusion_module import FusionModule
from training.predictions import UtterancePredictor, predict
from training.recipes.cross_corpus import cross_corpus
from training.recipes.evaluate import evaluate
from training.recipes.export_bundle import export_bundle
from training.recipes.train import train
from training.report import Report
from training.runs import TrainedRun

Train = Callable[..., TrainedRun]

PLAIN = ModelArgs(fusion=FUSION.model_copy(update={"relative": False}))
"""A model without speakers' baselines."""


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> TextBranch:
    source = checkpoints.xlm_roberta(tmp_path_factory.mktemp("text") / "model")
    return TextBranch(encoder=PretrainedTextConfig(source=str(source), max_tokens=40, context_turns=1))


@pytest.fixture(scope="module")
def audio(tmp_path_factory: pytest.TempPathFactory) -> AudioBranch:
    source = checkpoints.xls_r(tmp_path_factory.mktemp("audio") / "model")
    return AudioBranch(encoder=PretrainedSpeechConfig(source=str(source)))


SHORT = TrainerArgs(steps_per_epoch=2, epochs=1, accelerator="cpu")
BATCHES = BatchArgs(audio=4, text=4)
ONE_STEP = SHORT.model_copy(update={"steps_per_epoch": 1})


def train_into(
    folder: Path,
    data: Path,
    corpora: Sequence[str],
    *,
    text: TextBranch | None = None,
    audio: AudioBranch | None = None,
    relative: bool = False,
    labels: str = "ekman7",
    **options: Any,  # noqa: ANN401 - those of TrainerArgs
) -> TrainedRun:
    model = ModelArgs(text=text, audio=audio, fusion=FUSION.model_copy(update={"relative": relative}))
    trainer = SHORT.model_copy(update=options)
    train(data, folder, corpora, labels=labels, model=model, batches=BATCHES, trainer=trainer)
    return TrainedRun.load(folder)


@pytest.fixture
def trained(data: Path, tmp_path: Path) -> Train:
    """Trains shortly into the folder `run` and returns the trained run."""
    return lambda *corpora, **options: train_into(tmp_path / "run", data, corpora, **options)


@pytest.fixture(scope="module")
def text_run(tmp_path_factory: pytest.TempPathFactory, data: Path, text: TextBranch) -> Path:
    """The folder of a run of MELD's texts."""
    folder = tmp_path_factory.mktemp("text_run")
    train_into(folder, data, ["meld"], text=text)
    return folder


@pytest.fixture(scope="module")
def text_audio_run(tmp_path_factory: pytest.TempPathFactory, data: Path, text: TextBranch, audio: AudioBranch) -> Path:
    """The folder of a run whose two encoders trained."""
    folder = tmp_path_factory.mktemp("text_audio_run")
    train_into(folder, data, ["ravdess", "meld"], text=text, audio=audio)
    return folder


def changed(before: TextBranch | AudioBranch, trained: TrainedRun, name: str) -> set[str]:
    """The weights of an encoder that are not what they were."""
    branches = EncoderBranches(
        text=before if isinstance(before, TextBranch) else None,
        audio=before if isinstance(before, AudioBranch) else None,
    )
    old, new = getattr(branches, name).state_dict(), getattr(trained.branches, name).state_dict()
    assert old.keys() == new.keys()
    return {key for key in old if not torch.equal(old[key], new[key])}


def test_both_encoders_train_except_the_convolutions_of_the_audio_encoder(
    text_audio_run: Path, text: TextBranch, audio: AudioBranch
) -> None:
    result = TrainedRun.load(text_audio_run)
    assert any("layer.2" in name for name in changed(text, result, "text"))
    changed_audio = changed(audio, result, "audio")
    assert any("layers.2" in name for name in changed_audio)
    assert not any("feature_extractor" in name for name in changed_audio)


def test_a_run_is_evaluated_with_its_trained_encoders(data: Path, tmp_path: Path, text_audio_run: Path) -> None:
    evaluate(data, [text_audio_run], tmp_path / "report")
    report = Report.model_validate_json((tmp_path / "report" / "metrics.json").read_text())
    assert {name: view.metrics.count for name, view in report.views.items()} == {
        "ravdess audio": 8,
        "ravdess both": 8,
        "meld text": 7,
    }


@pytest.mark.parametrize("freeze", [0, "all"])
def test_a_run_with_encoders_of_its_own_becomes_a_bundle(
    data: Path, tmp_path: Path, trained: Train, text: TextBranch, audio: AudioBranch, freeze: int | Literal["all"]
) -> None:
    trained_text, trained_audio = (branch.model_copy(update={"freeze": freeze}) for branch in (text, audio))
    result = trained("ravdess", "meld", text=trained_text, audio=trained_audio, relative=True, labels="four")
    runs, bundle = [tmp_path / "run"], tmp_path / "bundle"
    export_bundle(data, runs, bundle, name="full", whisper="large-v3-turbo", context_turns=1)
    manifest = read_manifest(tmp_path / "bundle")
    assert (manifest.asr.options, manifest.label_space.name) == ({"size": "large-v3-turbo"}, "four")
    (tmp_path / "run").rename(tmp_path / "moved")

    pipeline = Pipeline.load(tmp_path / "bundle", lambda: pytest.fail("no audio is given"))
    reading = pipeline.analyze(samples=None, text="what a day", context=["I am so happy"]).prediction
    assert reading.scores is not None
    turn = load(data, ["meld"])[0]
    expected = result.predict([Example(turn, TextWithContext("what a day", ("I am so happy",)), None)])
    temperature = manifest.calibration.text_temperature
    probabilities = torch.softmax(expected.logits[0] / temperature, dim=-1).tolist()
    assert list(reading.scores.categories.values()) == pytest.approx(probabilities, abs=2e-3)


def test_a_run_of_one_modality_cannot_be_exported(data: Path, tmp_path: Path, text_run: Path) -> None:
    with pytest.raises(ValueError, match="no speech encoder"):
        export_bundle(data, [text_run], tmp_path / "bundle")
    with pytest.raises(ValueError, match="give one"):
        export_bundle(data, [text_run] * 2, tmp_path / "bundle")


def test_a_trained_text_encoder_states_its_context_and_origin(
    data: Path, tmp_path: Path, trained: Train, encoders: Path
) -> None:
    own = TextBranch(encoder=PretrainedTextConfig(source=str(encoders), context_turns=2), learning_rate=1e-2)
    trained("meld", text=own)
    learned, _ = load_encoders(tmp_path / "run" / "encoders")
    assert learned.config.context_turns == 2
    before, _ = load_encoders(encoders)
    assert not torch.equal(learned(["the day"]).features, before(["the day"]).features)
    sources = json.loads((tmp_path / "run" / "encoders" / ENCODERS_FILE).read_text())["sources"]
    assert sources == {"text_encoder": "random, fine-tuned", "speech_encoder": "random"}


def test_pooled_runs_are_counted_one_by_one(data: Path, tmp_path: Path, text_run: Path) -> None:
    evaluate(data, [text_run] * 3, tmp_path / "report", pooled=True)
    view = Report.model_validate_json((tmp_path / "report" / "metrics.json").read_text()).views["meld text"]
    assert (view.seeds, view.utterances, view.metrics.count) == (3, 7, 21)
    with pytest.raises(ValueError, match="either folds"):
        evaluate(data, [text_run], tmp_path / "report", folds=2, pooled=True)


def test_a_model_of_audio_alone_reads_no_text(data: Path, trained: Train, audio: AudioBranch) -> None:
    result = trained("ravdess", "urdu_latif", audio=audio)
    utterances = result.config.utterances(data)
    assert {u.corpus for u in utterances} == {"ravdess", "urdu_latif"}
    assert not any(u.text for u in utterances)


def test_lora_is_merged_into_the_plain_weights(trained: Train, text: TextBranch, audio: AudioBranch) -> None:
    low_rank = {"lora": Lora(rank=2)}
    low_rank_text = text.model_copy(update=low_rank)
    low_rank_audio = audio.model_copy(update=low_rank | {"recompute": True})
    result = trained("ravdess", "meld", text=low_rank_text, audio=low_rank_audio)
    assert all("query" in name or "value" in name for name in changed(text, result, "text"))
    assert all("q_proj" in name or "v_proj" in name for name in changed(audio, result, "audio"))
    assert changed(audio, result, "audio")


def test_a_frozen_encoder_does_not_change(trained: Train, text: TextBranch, audio: AudioBranch) -> None:
    frozen = audio.model_copy(update={"freeze": "all"})
    result = trained("ravdess", "meld", text=text, audio=frozen)
    assert not changed(audio, result, "audio")
    assert changed(text, result, "text")


def test_only_encoders_that_train_have_dropout(
    trained: Train, text: TextBranch, audio: AudioBranch, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[bool, bool]] = []

    def look(module: FusionModule) -> None:
        assert module.branches is not None
        assert module.branches.text is not None
        assert module.branches.audio is not None
        seen.append((module.branches.text.training, module.branches.audio.training))

    monkeypatch.setattr(FusionModule, "on_train_epoch_start", look, raising=False)
    trained("ravdess", "meld", text=text, audio=audio.model_copy(update={"freeze": "all"}), epochs=2)
    assert seen == [(True, False)] * 2


def test_baselines_change_the_predictions_of_a_model_whose_encoder_trained(
    data: Path, trained: Train, audio: AudioBranch
) -> None:
    result = trained("ravdess", audio=audio, relative=True)
    ensemble = [UtterancePredictor(result, result.config.utterances(data))]
    first, later = (predict(ensemble, View("ravdess", text=False, audio=True), turns)[1] for turns in (0, 3))
    assert first.shape == later.shape == (32, 7)
    assert not torch.allclose(torch.from_numpy(first), torch.from_numpy(later))


@pytest.mark.parametrize("kind", ["concat", "gated", "cross_attention"])
def test_training_in_half_precision_gives_finite_weights(
    kind: str, data: Path, tmp_path: Path, text: TextBranch, audio: AudioBranch
) -> None:
    model = ModelArgs(text=text, audio=audio, fusion=FUSION.model_copy(update={"kind": kind}))
    trainer = SHORT.model_copy(update={"accumulate": 2, "precision": "bf16-mixed"})
    train(data, tmp_path, ["ravdess", "meld"], model=model, batches=BATCHES, trainer=trainer)
    assert all(weight.isfinite().all() for weight in load_file(tmp_path / "fusion.safetensors").values())


def test_an_interrupted_training_of_encoders_continues(tmp_path: Path, trained: Train, audio: AudioBranch) -> None:
    trained("ravdess", audio=audio)
    trained("ravdess", audio=audio, epochs=2, resume=True)
    assert torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)["global_step"] == 4


def test_the_encoders_of_a_bundle_can_train(data: Path, encoders: Path, tmp_path: Path, trained: Train) -> None:
    text = TextBranch(encoder=PretrainedTextConfig(source=str(encoders)))
    audio = AudioBranch(encoder=PretrainedSpeechConfig(source=str(encoders)))
    result = trained("ravdess", "meld", text=text, audio=audio)
    assert {path.name for path in (tmp_path / "run" / "encoders").iterdir()} == {
        path.name for path in encoders.iterdir()
    }
    assert changed(audio, result, "audio")


def test_a_bundles_text_encoder_trains_with_a_pretrained_audio_encoder(
    encoders: Path, trained: Train, audio: AudioBranch
) -> None:
    text = TextBranch(encoder=PretrainedTextConfig(source=str(encoders)))
    result = trained("ravdess", "meld", text=text, audio=audio)
    assert changed(audio, result, "audio")


def test_an_encoder_with_nothing_to_read_is_refused(trained: Train, text: TextBranch, audio: AudioBranch) -> None:
    with pytest.raises(ValueError, match="goemotions: the encoders of this run read nothing"):
        trained("ravdess", "goemotions", audio=audio)
    with pytest.raises(ValueError, match="audio encoder has nothing to read"):
        trained("meld", text=text, audio=audio)
    with pytest.raises(ValueError, match="text encoder has nothing to read"):
        trained("urdu_latif", text=text, audio=audio)
    with pytest.raises(ValueError, match="either a cache"):
        trained("ravdess")


def test_a_zero_shot_report_has_both_directions_and_all_seeds(data: Path, cache: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"model": PLAIN, "batches": BATCHES, "trainer": ONE_STEP}
    sides = {"corpora": ["ravdess"], "tested": ["urdu_latif"], "both_directions": True, "seeds": [0, 1]}
    cross_corpus(data, tmp_path, cache=cache, **sides, **options)
    report = Report.model_validate_json((tmp_path / "metrics.json").read_text())
    counts = {name: (view.utterances, view.seeds) for name, view in report.views.items()}
    # RAVDESS has four actors with calm among the neutral, and three more labels that URDU has too.
    assert counts["ravdess to urdu_latif audio"] == (11, 2)
    assert counts["urdu_latif to ravdess audio"] == (4 * 5, 2)
    assert "anger, joy, neutral, sadness" in report.notes[0]
    assert (tmp_path / "trained on ravdess" / "seed 1" / "run.json").exists()


def test_a_zero_shot_test_can_be_limited_to_some_speakers(data: Path, cache: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"model": PLAIN, "batches": BATCHES, "trainer": ONE_STEP}
    sides = {"corpora": ["urdu_latif"], "tested": ["ravdess"], "seeds": [0], "cache": cache}
    cross_corpus(data, tmp_path, test_speakers=["actor 21"], **sides, **options)
    report = Report.model_validate_json((tmp_path / "metrics.json").read_text())
    assert report.views["urdu_latif to ravdess audio"].utterances == 5
    with pytest.raises(ValueError, match="nothing of ravdess is left to test"):
        cross_corpus(data, tmp_path, test_speakers=["nobody"], **sides, **options)


def test_a_corpus_cannot_be_on_both_sides(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="ravdess cannot be both"):
        cross_corpus(data, tmp_path, ["ravdess", "tess"], ["ravdess"])


def test_the_common_categories_are_those_that_occur_on_both_sides(data: Path) -> None:
    sides = [load(data, [name], None) for name in ("ravdess", "urdu_latif")]
    assert common_categories(SCHEMES["ekman7"], sides).space.categories == ("anger", "joy", "neutral", "sadness")
    assert common_categories(SCHEMES["four"], sides) == SCHEMES["four"]
    with pytest.raises(ValueError, match="fewer than two categories of indonesian6"):
        common_categories(SCHEMES["indonesian6"], sides)
