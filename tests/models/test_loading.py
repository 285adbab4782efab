"""Bundles are whole and what they say they are, or they are refused."""

from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from shared.domain.bundle import Component, ModelBundle
from shared.domain.turn import MAX_CONTEXT_TURNS
from shared.errors import BundleError
from shared.modeling import hub, loading, whisper_weights
from shared.modeling.loading import MANIFEST, SHIPPED_BUNDLES, bundle_folder, read_manifest, verify_files
from shared.modeling.model_selection import load_pipeline
from shared.modeling.pipeline import Pipeline
from shared.modeling.predictor import ClassifierPredictor
from shared.settings import ModelSettings, Settings
from tests import checkpoints
from tests.audio_clips import tone
from tests.tiny_models import pipeline, write_bundle

LIMIT_BYTES = 120_000_000


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_bundle(tmp_path / "bundle")


def edit(folder: Path, **changes: object) -> None:
    manifest = yaml.safe_load((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(yaml.safe_dump(manifest | changes))


def component_of(folder: Path, name: str) -> Component:
    component = getattr(read_manifest(folder), name)
    assert isinstance(component, Component)
    return component


def test_a_whole_bundle_is_accepted(folder: Path) -> None:
    verify_files(folder, read_manifest(folder))
    loading.load_text_encoder(folder, component_of(folder, "text_encoder"))
    loading.load_speech_encoder(folder, component_of(folder, "speech_encoder"))
    loading.load_fusion(folder, component_of(folder, "fusion"))


def test_a_changed_file_is_refused(folder: Path) -> None:
    with (folder / "fusion.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x7f")
    with pytest.raises(BundleError, match=r"fusion\.safetensors.*sha256"):
        verify_files(folder, read_manifest(folder))


def test_a_missing_file_is_refused(folder: Path) -> None:
    (folder / "speech_encoder.safetensors").unlink()
    with pytest.raises(BundleError, match=r"speech_encoder.*missing"):
        verify_files(folder, read_manifest(folder))


def test_an_unknown_kind_is_refused_by_name(folder: Path) -> None:
    component = component_of(folder, "fusion").model_copy(update={"kind": "telepathy"})
    with pytest.raises(BundleError, match=r"telepathy.*cross_attention"):
        loading.load_fusion(folder, component)


def with_context_turns(folder: Path, trained: int, served: int) -> Path:
    component = component_of(folder, "text_encoder")
    options = component.options | {"context_turns": trained}
    edit(folder, text_encoder=component.model_copy(update={"options": options}).model_dump(), context_turns=served)
    return folder


@pytest.mark.parametrize("context_turns", [0, 1, MAX_CONTEXT_TURNS])
def test_a_pipeline_reads_as_many_context_turns_as_its_manifest_says(folder: Path, context_turns: int) -> None:
    subject = pipeline(with_context_turns(folder, MAX_CONTEXT_TURNS, context_turns))
    assert subject.context_turns == context_turns
    context = ["it broke", "he is here", "hello"]
    expected = subject.analyze(samples=None, text="so what", context=context[3 - context_turns :]).prediction
    prediction = subject.analyze(samples=None, text="so what", context=context).prediction
    assert prediction == expected
    assert prediction.context_turns == context_turns


def test_a_manifest_that_names_no_number_of_context_turns_reads_none(folder: Path) -> None:
    manifest = read_manifest(folder).model_dump(exclude={"context_turns"})
    assert ModelBundle.model_validate(manifest).context_turns == 0


def test_a_bundle_that_reads_more_context_than_its_text_encoder_was_trained_with_is_refused(folder: Path) -> None:
    with pytest.raises(BundleError, match="reads 2 turns as context, but its text encoder was trained with 1"):
        pipeline(with_context_turns(folder, 1, 2))


def test_a_bundle_trained_with_more_context_turns_than_the_service_passes_is_refused(folder: Path) -> None:
    with pytest.raises(BundleError, match=rf"context_turns {MAX_CONTEXT_TURNS + 1}, .* at most {MAX_CONTEXT_TURNS} "):
        pipeline(with_context_turns(folder, MAX_CONTEXT_TURNS + 1, 0))


def test_a_classifier_of_audio_reads_no_context_turns(folder: Path) -> None:
    subject = ClassifierPredictor(read_manifest(folder), lambda: pytest.fail("the classifier was loaded"))
    assert subject.context_turns == 0


def test_weights_that_do_not_fit_are_refused(folder: Path) -> None:
    component = component_of(folder, "fusion")
    wrong = component.model_copy(update={"options": {**component.options, "width": 32}})
    with pytest.raises(BundleError, match="does not fit"):
        loading.load_fusion(folder, wrong)


@pytest.mark.parametrize("content", ["", "[1, 2]", "name: x", "{", "name: !!python/object:os.system {}"])
def test_an_invalid_manifest_is_refused(folder: Path, content: str) -> None:
    (folder / MANIFEST).write_text(content)
    with pytest.raises(BundleError, match="not a valid manifest"):
        read_manifest(folder)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"fusion": None}, "either"),
        ({"classifier": {"kind": "audio_classification", "source": "", "licence": ""}}, "either"),
        ({"text_encoder": None, "speech_encoder": None, "fusion": None}, "either"),
    ],
)
def test_a_bundle_with_two_kinds_of_predictor_or_none_is_refused(
    folder: Path, changes: dict[str, object], why: str
) -> None:
    edit(folder, **changes)
    with pytest.raises(BundleError, match=why):
        read_manifest(folder)


def test_a_written_manifest_is_read_as_it_was(folder: Path) -> None:
    before = read_manifest(folder)
    loading.write_manifest(folder, before)
    assert read_manifest(folder) == before


def test_absent_components_do_not_change_the_id_of_a_bundle(folder: Path) -> None:
    before = read_manifest(folder).id
    edit(folder, classifier=None)
    assert read_manifest(folder).id == before


def test_an_unknown_bundle_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="compact"):
        bundle_folder(str(tmp_path / "nothing"))


def test_bundles_that_predict_differently_have_different_ids(folder: Path) -> None:
    before = read_manifest(folder).id
    edit(folder, version="2", metrics={"new": 1})
    assert read_manifest(folder).id == before
    edit(folder, calibration={"temperature": 2.0})
    assert read_manifest(folder).id != before


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The repositories of Whisper models that the hub was asked for, one of which knows how to hear nonsense."""
    found: list[str] = []
    model = checkpoints.transcriber(tmp_path / "whisper", bands=128, languages=100)

    def snapshot_download(repository: str, **_: object) -> str:
        found.append(repository)
        return str(model)

    monkeypatch.setattr(hub, "snapshot_download", snapshot_download)
    return found


def loaded(folder: Path, **settings: object) -> Pipeline:
    return load_pipeline(Settings.model_validate({"models": {"bundle": str(folder), "device": "cpu", **settings}}))


def test_the_bundles_whisper_is_loaded_unless_another_is_named(folder: Path, asked: list[str]) -> None:
    edit(folder, asr=whisper_weights.transcriber_component("large-v3-turbo").model_dump())
    for settings in ({}, {"whisper": "small"}, {"whisper": f"someone/whisper@{'0a' * 20}"}):
        assert loaded(folder, **settings).vad.run([tone(0.05)]) == [[]]
    assert asked == [
        "mobiuslabsgmbh/faster-whisper-large-v3-turbo",
        "Systran/faster-whisper-small",
        "someone/whisper",
    ]


def test_the_id_of_a_bundle_depends_on_its_transcriber(folder: Path, tmp_path: Path) -> None:
    one, other = (tmp_path / name for name in ("one", "other"))
    for place in (one, other):
        place.mkdir()
        (place / "model.bin").write_text(place.name)
    settings = ({}, {"whisper": "small"}, {"whisper": "large-v3"}, {"whisper_dir": one}, {"whisper_dir": other})
    ids = [loaded(folder, **some).bundle.id for some in settings]
    assert len(set(ids)) == len(ids)
    assert ids[0] == read_manifest(folder).id
    assert loaded(folder, whisper_dir=one.rename(tmp_path / "moved")).bundle.id == ids[3]


def test_naming_two_whisper_models_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="TENOR_MODELS_WHISPER and TENOR_MODELS_WHISPER_DIR name two models"):
        Settings(models=ModelSettings(whisper="small", whisper_dir=tmp_path))


def test_a_transcriber_of_an_unknown_kind_is_refused_by_name(folder: Path) -> None:
    edit(folder, asr={"kind": "telepathy", "source": "", "licence": ""})
    with pytest.raises(BundleError, match=r"telepathy.*faster_whisper"):
        loaded(folder).vad.run([tone(0.05)])


@pytest.mark.parametrize(
    "folder", sorted(path.parent for path in SHIPPED_BUNDLES.glob(f"*/{MANIFEST}")), ids=lambda p: p.name
)
def test_a_shipped_bundle_is_complete_and_small(folder: Path) -> None:
    verify_files(folder, read_manifest(folder))
    assert sum(path.stat().st_size for path in folder.rglob("*")) < LIMIT_BYTES
    assert {path.suffix for path in folder.iterdir()} <= {".safetensors", ".json", ".yaml", ".md"}
