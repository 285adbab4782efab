"""Encoders that learn together with the fusion: pretrained ones of either modality, and those of a bundle."""

import json
from collections.abc import Callable
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
from training.branches import Branches, TextBranch, VoiceBranch
from training.data.dataset import Example, Words
from training.data.labels import SCHEMES, common
from training.data.load import load
from training.finetuning import Lora
from training.lit_fusion import LitFusion
from training.recipes.cross_corpus import cross_corpus
from training.recipes.evaluate import Reader, Trained, evaluate, predict
from training.recipes.export_bundle import export_bundle
from training.recipes.train import train
from training.report import Report

Train = Callable[..., Trained]

PLAIN = FUSION.model_copy(update={"relative": False})
"""Reads no voice against its speaker's baseline."""


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> TextBranch:
    source = checkpoints.xlm_roberta(tmp_path_factory.mktemp("text") / "model")
    return TextBranch(encoder=PretrainedTextConfig(source=str(source), max_tokens=40, context_turns=1))


@pytest.fixture(scope="module")
def voice(tmp_path_factory: pytest.TempPathFactory) -> VoiceBranch:
    source = checkpoints.xls_r(tmp_path_factory.mktemp("voice") / "model")
    return VoiceBranch(encoder=PretrainedSpeechConfig(source=str(source)))


@pytest.fixture
def trained(data: Path, tmp_path: Path) -> Train:
    """A short training's result."""

    def of(*corpora: str, relative: bool = False, **options: Any) -> Trained:  # noqa: ANN401 - `train`'s
        fusion = FUSION.model_copy(update={"relative": relative})
        short = {"voices": 4, "texts": 4, "steps_per_epoch": 2, "epochs": 1, "accelerator": "cpu"}
        train(data, tmp_path / "run", corpora, fusion=fusion, **short | options)
        return Trained.load(tmp_path / "run")

    return of


def changed(before: TextBranch | VoiceBranch, trained: Trained, name: str) -> set[str]:
    """The weights of an encoder that are not what they were."""
    branches = Branches(
        text=before if isinstance(before, TextBranch) else None,
        voice=before if isinstance(before, VoiceBranch) else None,
    )
    old, new = getattr(branches, name).state_dict(), getattr(trained.branches, name).state_dict()
    assert old.keys() == new.keys()
    return {key for key in old if not torch.equal(old[key], new[key])}


def test_both_encoders_learn_but_for_the_convolutions_of_the_voice(
    trained: Train, text: TextBranch, voice: VoiceBranch
) -> None:
    result = trained("ravdess", "meld", text=text, voice=voice)
    assert any("layer.2" in name for name in changed(text, result, "text"))
    heard = changed(voice, result, "voice")
    assert any("layers.2" in name for name in heard)
    assert not any("feature_extractor" in name for name in heard)


def test_a_run_is_evaluated_with_the_encoders_that_it_wrote(
    data: Path, tmp_path: Path, trained: Train, text: TextBranch, voice: VoiceBranch
) -> None:
    trained("ravdess", "meld", text=text, voice=voice)
    evaluate(data, [tmp_path / "run"], tmp_path / "report")
    report = Report.model_validate_json((tmp_path / "report" / "metrics.json").read_text())
    assert {name: view.metrics.count for name, view in report.views.items()} == {
        "ravdess voice": 8,
        "ravdess both": 8,
        "meld text": 7,
    }


@pytest.mark.parametrize("freeze", [0, "all"])
def test_a_run_with_encoders_of_its_own_becomes_a_bundle(
    data: Path, tmp_path: Path, trained: Train, text: TextBranch, voice: VoiceBranch, freeze: int | Literal["all"]
) -> None:
    words, sound = (branch.model_copy(update={"freeze": freeze}) for branch in (text, voice))
    result = trained("ravdess", "meld", text=words, voice=sound, relative=True, labels="four")
    export_bundle(data, [tmp_path / "run"], tmp_path / "bundle", name="full", whisper="large-v3-turbo")
    manifest = read_manifest(tmp_path / "bundle")
    assert (manifest.asr.options, manifest.label_space.name) == ({"size": "large-v3-turbo"}, "four")
    (tmp_path / "run").rename(tmp_path / "moved")

    pipeline = Pipeline.load(tmp_path / "bundle", lambda: pytest.fail("nobody speaks"))
    reading = pipeline.analyze(samples=None, text="what a day", context=["I am so happy"]).prediction
    assert reading.scores is not None
    turn = load(data, ["meld"])[0]
    expected = result.read([Example(turn, Words("what a day", ("I am so happy",)), None)])
    temperature = manifest.calibration.text_temperature
    probabilities = torch.softmax(expected.logits[0] / temperature, dim=-1).tolist()
    assert list(reading.scores.categories.values()) == pytest.approx(probabilities, abs=2e-3)


def test_a_run_that_lacks_a_modality_is_no_bundle(data: Path, tmp_path: Path, trained: Train, text: TextBranch) -> None:
    trained("meld", text=text)
    with pytest.raises(ValueError, match="no speech branch"):
        export_bundle(data, [tmp_path / "run"], tmp_path / "bundle")
    with pytest.raises(ValueError, match="give one"):
        export_bundle(data, [tmp_path / "run"] * 2, tmp_path / "bundle")


def test_a_text_encoder_that_learned_tells_what_it_was_read_with(
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


def test_pooled_runs_each_answer_for_themselves(data: Path, tmp_path: Path, trained: Train, text: TextBranch) -> None:
    trained("meld", text=text)
    evaluate(data, [tmp_path / "run"] * 3, tmp_path / "report", pooled=True)
    view = Report.model_validate_json((tmp_path / "report" / "metrics.json").read_text()).views["meld text"]
    assert (view.seeds, view.utterances, view.metrics.count) == (3, 7, 21)
    with pytest.raises(ValueError, match="either folds"):
        evaluate(data, [tmp_path / "run"], tmp_path / "report", folds=2, pooled=True)


def test_a_voice_alone_is_trained_without_words(data: Path, trained: Train, voice: VoiceBranch) -> None:
    result = trained("ravdess", "urdu_latif", voice=voice)
    utterances = result.run.utterances(data)
    assert {u.corpus for u in utterances} == {"ravdess", "urdu_latif"}
    assert not any(u.text for u in utterances)


def test_low_rank_changes_end_up_in_plain_weights(trained: Train, text: TextBranch, voice: VoiceBranch) -> None:
    low_rank = {"lora": Lora(rank=2)}
    words = text.model_copy(update=low_rank)
    sound = voice.model_copy(update=low_rank | {"recompute": True})
    result = trained("ravdess", "meld", text=words, voice=sound)
    assert all("query" in name or "value" in name for name in changed(text, result, "text"))
    assert all("q_proj" in name or "v_proj" in name for name in changed(voice, result, "voice"))
    assert changed(voice, result, "voice")


def test_a_frozen_encoder_stays_as_it_is_served(trained: Train, text: TextBranch, voice: VoiceBranch) -> None:
    frozen = voice.model_copy(update={"freeze": "all"})
    result = trained("ravdess", "meld", text=text, voice=frozen)
    assert not changed(voice, result, "voice")
    assert changed(text, result, "text")


def test_encoders_that_learn_drop_out_and_frozen_ones_do_not(
    trained: Train, text: TextBranch, voice: VoiceBranch, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[bool, bool]] = []

    def look(module: LitFusion) -> None:
        assert module.branches is not None
        assert module.branches.text is not None
        assert module.branches.voice is not None
        seen.append((module.branches.text.training, module.branches.voice.training))

    monkeypatch.setattr(LitFusion, "on_train_epoch_start", look, raising=False)
    trained("ravdess", "meld", text=text, voice=voice.model_copy(update={"freeze": "all"}), epochs=2)
    assert seen == [(True, False)] * 2


def test_a_voice_that_is_read_against_its_speaker_with_an_encoder_that_learns(
    data: Path, trained: Train, voice: VoiceBranch
) -> None:
    result = trained("ravdess", voice=voice, relative=True)
    readers = [Reader(result, result.run.utterances(data))]
    first, later = (predict(readers, "ravdess", text=False, voice=True, earlier_turns=n)[1] for n in (0, 3))
    assert first.shape == later.shape == (32, 7)
    assert not torch.allclose(torch.from_numpy(first), torch.from_numpy(later))


@pytest.mark.parametrize("kind", ["concat", "gated", "cross_attention"])
def test_half_precision(kind: str, data: Path, tmp_path: Path, text: TextBranch, voice: VoiceBranch) -> None:
    fusion = FUSION.model_copy(update={"kind": kind})
    short = {"voices": 4, "texts": 4, "steps_per_epoch": 2, "epochs": 1, "accumulate": 2, "accelerator": "cpu"}
    train(data, tmp_path, ["ravdess", "meld"], text=text, voice=voice, fusion=fusion, precision="bf16-mixed", **short)
    assert all(weight.isfinite().all() for weight in load_file(tmp_path / "fusion.safetensors").values())


def test_a_training_of_encoders_goes_on_where_it_was(tmp_path: Path, trained: Train, voice: VoiceBranch) -> None:
    trained("ravdess", voice=voice)
    trained("ravdess", voice=voice, epochs=2, resume=True)
    assert torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)["global_step"] == 4


def test_a_bundles_encoders_learn_too(data: Path, encoders: Path, tmp_path: Path, trained: Train) -> None:
    text = TextBranch(encoder=PretrainedTextConfig(source=str(encoders)))
    voice = VoiceBranch(encoder=PretrainedSpeechConfig(source=str(encoders)))
    result = trained("ravdess", "meld", text=text, voice=voice)
    assert {path.name for path in (tmp_path / "run" / "encoders").iterdir()} == {
        path.name for path in encoders.iterdir()
    }
    assert changed(voice, result, "voice")


def test_a_bundles_words_and_a_pretrained_voice(encoders: Path, trained: Train, voice: VoiceBranch) -> None:
    text = TextBranch(encoder=PretrainedTextConfig(source=str(encoders)))
    result = trained("ravdess", "meld", text=text, voice=voice)
    assert changed(voice, result, "voice")


def test_a_branch_with_nothing_to_read_is_an_error(trained: Train, text: TextBranch, voice: VoiceBranch) -> None:
    with pytest.raises(ValueError, match="goemotions: there is nothing"):
        trained("ravdess", "goemotions", voice=voice)
    with pytest.raises(ValueError, match="voice branch has nothing to hear"):
        trained("meld", text=text, voice=voice)
    with pytest.raises(ValueError, match="text branch has nothing to read"):
        trained("urdu_latif", text=text, voice=voice)
    with pytest.raises(ValueError, match="either a cache"):
        trained("ravdess")


def test_a_corpus_is_tested_that_was_never_trained_on(data: Path, cache: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"voices": 4, "steps_per_epoch": 1, "epochs": 1, "fusion": PLAIN, "accelerator": "cpu"}
    sides = {"corpora": ["ravdess"], "tested": ["urdu_latif"], "both_directions": True, "seeds": [0, 1]}
    cross_corpus(data, tmp_path, cache=cache, **sides, **options)
    report = Report.model_validate_json((tmp_path / "metrics.json").read_text())
    counts = {name: (view.utterances, view.seeds) for name, view in report.views.items()}
    # RAVDESS has four actors with calm among the neutral, and three more labels that URDU has too.
    assert counts["ravdess to urdu_latif voice"] == (11, 2)
    assert counts["urdu_latif to ravdess voice"] == (4 * 5, 2)
    assert "anger, joy, neutral, sadness" in report.notes[0]
    assert (tmp_path / "trained on ravdess" / "seed 1" / "run.json").exists()


def test_only_some_speakers_are_tested(data: Path, cache: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"voices": 4, "steps_per_epoch": 1, "epochs": 1, "fusion": PLAIN, "accelerator": "cpu"}
    sides = {"corpora": ["urdu_latif"], "tested": ["ravdess"], "seeds": [0], "cache": cache}
    cross_corpus(data, tmp_path, test_speakers=["actor 21"], **sides, **options)
    report = Report.model_validate_json((tmp_path / "metrics.json").read_text())
    assert report.views["urdu_latif to ravdess voice"].utterances == 5
    with pytest.raises(ValueError, match="nothing of ravdess is left to test"):
        cross_corpus(data, tmp_path, test_speakers=["nobody"], **sides, **options)


def test_what_is_trained_on_cannot_be_tested_zero_shot(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="ravdess cannot be both"):
        cross_corpus(data, tmp_path, ["ravdess", "tess"], ["ravdess"])


def test_two_sides_have_the_categories_in_common_that_both_have(data: Path) -> None:
    sides = [load(data, [name], None) for name in ("ravdess", "urdu_latif")]
    assert common(SCHEMES["ekman7"], sides).space.categories == ("anger", "joy", "neutral", "sadness")
    assert common(SCHEMES["four"], sides) == SCHEMES["four"]
    with pytest.raises(ValueError, match="nothing to tell apart"):
        common(SCHEMES["indonesian6"], sides)
