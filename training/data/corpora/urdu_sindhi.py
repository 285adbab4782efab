"""Urdu-Sindhi: 734 Urdu and 701 Sindhi recordings, seven acted emotions, published as acoustic features only.

Syed et al. 2020, "Introducing the Urdu-Sindhi Speech Emotion Corpus", https://doi.org/10.5281/zenodo.3685274, which
states the terms of use. Each of the two archives unpacks to a folder, with a folder for each feature set and in it a
MATLAB file for each recording, named by its label and a number, which holds the set's functionals as one vector:

    Feats - Urdu/eGeMAPS funcs/Matfiles/Anger_0001.mat
    Feats - Sindhi/IS10Paraling funcs/Matfiles/Sarcasm_0017.mat

The names do not identify the speakers, so the same speaker may be on both sides of any split.
"""

# SciPy has no types.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.io import loadmat

from training.data.acoustic_features import AcousticTable
from training.data.utterance import look_up, require_path

SOURCE = "https://zenodo.org/records/3685274 (Feats - Urdu.zip, Feats - Sindhi.zip), unpacked"
FOLDER = "urdu_sindhi"
CORPORA = {"urdu_syed": "Feats - Urdu", "sindhi_syed": "Feats - Sindhi"}
FEATURES = {
    "egemaps": "eGeMAPS funcs",
    "compare": "ComParE funcs",
    "is09": "IS09Emotion funcs",
    "is10": "IS10Paraling funcs",
    "prosody": "Prosody funcs",
}
LABELS = {
    "Anger": "anger",
    "Disgust": "disgust",
    "Happiness": "joy",
    "Neutral": "neutral",
    "Sadness": "sadness",
    "Sarcasm": "sarcasm",  # not a category of `EKMAN7`
    "Surprise": "surprise",
}


def load(folder: Path, corpus: str, features: str) -> AcousticTable:
    """Returns one feature set of one language's recordings.

    Args:
        folder: the folder with the two unpacked archives.
        corpus: one of `CORPORA`.
        features: one of `FEATURES`.

    Raises:
        CorpusMissing: the feature set's folder does not exist.
        ValueError: the corpus has no such feature set, or a file's name or content does not fit the corpus.
    """
    if features not in FEATURES:
        raise ValueError(f"{corpus} is published without {features!r}: use one of {', '.join(FEATURES)}")
    place = require_path(folder / CORPORA[corpus] / FEATURES[features] / "Matfiles", f"Urdu-Sindhi's {corpus}", SOURCE)
    paths = sorted(place.glob("*.mat"))
    if not paths:
        raise ValueError(f"{place} holds no .mat files")
    labels = [path.stem.split("_")[0] for path in paths]
    categories = [look_up(label, LABELS, path.name) for label, path in zip(labels, paths, strict=True)]
    return AcousticTable(_stacked(paths), np.array(labels), np.array(categories), speakers=None)


def _stacked(paths: list[Path]) -> NDArray[np.float32]:
    vectors = [_vector(path) for path in paths]
    for path, vector in zip(paths, vectors, strict=True):
        if vector.size != vectors[0].size:
            raise ValueError(f"{path.name} holds {vector.size} features, where {paths[0].name} has {vectors[0].size}")
    return np.stack(vectors)


def _vector(path: Path) -> NDArray[np.float32]:
    """Returns the file's largest numeric array; its name differs between feature sets."""
    content: dict[str, Any] = loadmat(path)
    values: list[NDArray[Any]] = [value for value in content.values() if isinstance(value, np.ndarray)]
    arrays = [array for array in values if array.dtype.kind in "fiu"]
    if not arrays:
        raise ValueError(f"{path} holds no numeric array")
    return max(arrays, key=lambda array: array.size).astype(np.float32).ravel()
