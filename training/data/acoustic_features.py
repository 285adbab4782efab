"""A recording as one vector of acoustic features, by the feature sets of openSMILE.

openSMILE (Eyben et al. 2010) is free for research and education only, see https://github.com/audeering/opensmile.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
import opensmile
from numpy.typing import NDArray
from rich.progress import track

from shared.audio import SAMPLE_RATE, decode
from training.data.utterance import Utterance

SETS = {"egemaps": "eGeMAPSv02", "compare": "ComParE_2016", "is09": "IS09", "is10": "IS10", "prosody": "IS10"}
"""openSMILE's names of: eGeMAPS (88 features, Eyben et al. 2016), ComParE (6373, Weninger et al. 2013), the INTERSPEECH
challenges' of 2009 (384) and 2010 (1582, Schuller et al.), and prosody (124), which is of IS10 what `PROSODY` names."""

PROSODY = ("F0final_", "voicingFinalUnclipped_", "pcm_loudness_")
"""The contours that openSMILE's own prosody configurations extract: pitch, voicing and loudness."""

FULL_SCALE = 32767 / 32768
"""openSMILE takes 16 bits, in which 1.0 would wrap to the lowest value."""


@dataclass(frozen=True)
class AcousticTable:
    """A corpus's clips as feature vectors.

    Attributes:
        features: shape [clips, features].
        labels: each clip's, by the corpus's own name.
        categories: each clip's of `ekman7`, or another name where the label has none there.
        speakers: each clip's, None where the corpus does not tell them.
    """

    features: NDArray[np.float32]
    labels: NDArray[np.str_]
    categories: NDArray[np.str_]
    speakers: NDArray[np.str_] | None

    def __getitem__(self, clips: NDArray[np.integer | np.bool_]) -> "AcousticTable":
        """The clips at these indexes, or where the mask is true."""
        speakers = None if self.speakers is None else self.speakers[clips]
        return AcousticTable(self.features[clips], self.labels[clips], self.categories[clips], speakers)


def extract(utterances: Sequence[Utterance], features: str, cache: Path) -> NDArray[np.float32]:
    """The utterances' feature vectors, shape [utterances, features].

    Args:
        utterances: of one corpus, all with recordings.
        features: one of `SETS`, or the path of an openSMILE configuration file.
        cache: a folder of the corpus's own; what it holds already is not extracted again.

    Raises:
        ValueError: there is no such feature set or file, or a recording is too short for it.
    """
    smile = _smile(features)
    file = cache / f"{_name(features)}.npz"
    vectors = _read(file)
    missing = [utterance for utterance in utterances if utterance.id not in vectors]
    if missing:
        vectors |= {u.id: _vector(smile, u, features) for u in track(missing, f"{missing[0].corpus}, {features}")}
        _write(file, vectors)
    return np.stack([vectors[utterance.id] for utterance in utterances])


def _smile(features: str) -> opensmile.Smile:
    if features in SETS:
        return opensmile.Smile(opensmile.FeatureSet[SETS[features]])
    if not Path(features).is_file():
        raise ValueError(
            f"{features!r} is neither one of {', '.join(SETS)} nor the path of an openSMILE configuration file, as "
            "there are at https://github.com/audeering/opensmile/tree/master/config"
        )
    return opensmile.Smile(features)


def _name(features: str) -> str:
    """The cache's name of a feature set; a configuration file's changes with its content."""
    if features in SETS:
        return features
    path = Path(features)
    return f"{path.stem}-{sha256(path.read_bytes()).hexdigest()[:8]}"


def _vector(smile: opensmile.Smile, utterance: Utterance, features: str) -> NDArray[np.float32]:
    if utterance.audio is None:
        raise ValueError(f"{utterance.corpus}'s {utterance.id} has no recording")
    found = smile.process_signal(np.clip(decode(utterance.audio), -1, FULL_SCALE), SAMPLE_RATE)
    if features == "prosody":
        found = found[[name for name in found.columns if name.startswith(PROSODY)]]
    vector = found.to_numpy(np.float32)[0]
    if not np.isfinite(vector).all():
        raise ValueError(f"{utterance.audio} is too short for the features {features}")
    return vector


def _read(file: Path) -> dict[str, NDArray[np.float32]]:
    if not file.exists():
        return {}
    with np.load(file) as stored:
        return dict(zip(stored["ids"].tolist(), stored["features"], strict=True))


def _write(file: Path, vectors: dict[str, NDArray[np.float32]]) -> None:
    """The file exists once it is whole."""
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(".part.npz")
    np.savez(part, ids=np.array(list(vectors)), features=np.stack(list(vectors.values())))
    part.replace(file)
