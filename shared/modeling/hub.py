"""Downloads of model files from the Hugging Face hub."""

from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path

from huggingface_hub import HfApi, snapshot_download  # pyright: ignore[reportUnknownVariableType] - its dict is bare
from huggingface_hub.errors import (
    HFValidationError,
    HTTPError,  # pyright: ignore[reportPrivateImportUsage] - the root of its HTTP errors
    LocalEntryNotFoundError,
)

from shared.errors import WeightsMissing

TIMEOUT_S = 5.0
"""How long the hub may take to answer before a download is given up."""


def download(
    repository: str,
    revision: str | None,
    files: Sequence[str],
    weights: Sequence[Sequence[str]],
    *,
    remedy: str,
) -> Path:
    """Returns the folder with a repository's files: from the local cache, or else downloaded from the hub.

    Args:
        repository: OWNER/NAME.
        revision: a commit, so that the same files are used tomorrow; None is the main branch.
        files: patterns of the files to download besides the weights.
        weights: patterns of the weight files, one list for each format, in order of preference. The first format that
            the repository has is downloaded.
        remedy: for the error message: what to do where the hub cannot be reached.

    Raises:
        WeightsMissing: the files are not in the cache, and the hub cannot be reached or has no such repository.
    """
    try:
        # Answers without a connection. A cached repository is never asked for again, since a commit does not change.
        return Path(snapshot_download(repository, revision=revision, local_files_only=True))
    except LocalEntryNotFoundError:
        pass
    except HFValidationError as error:
        raise WeightsMissing(f"{repository!r} is not the name of a repository of the model hub: {error}") from error
    try:
        # A download retries for half a minute if the hub cannot be reached. This request fails at once.
        info = HfApi().model_info(repository, revision=revision, timeout=TIMEOUT_S)
        names = [file.rfilename for file in info.siblings or ()]
        wanted = [*files, *_first_format(names, weights)]
        return Path(snapshot_download(repository, revision=revision, allow_patterns=wanted))
    except (OSError, HTTPError) as error:
        where = repository if revision is None else f"{repository} at {revision}"
        raise WeightsMissing(f"{where} cannot be downloaded from the model hub ({error}): {remedy}") from error


def _first_format(names: Sequence[str], formats: Sequence[Sequence[str]]) -> Sequence[str]:
    for patterns in formats:
        if any(fnmatch(name, pattern) for name in names for pattern in patterns):
            return patterns
    return ()
