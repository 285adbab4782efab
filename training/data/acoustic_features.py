"""Acoustic features: one vector for a recording, by the feature sets of openSMILE.

openSMILE (Eyben et al. 2010) is free for research and education only, see https://github.com/audeering/opensmile.
"""

# openSMILE has no types, and pandas has no complete ones.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
import opensmile
from numpy.typing import NDArray
from rich.progress import track

from shared.audio.decoder import SAMPLE_RATE, decode
from training.data.utterance import Utterance

SETS = {"egemaps": "eGeMAPSv02", "compare": "ComParE_2016", "is09": "IS09", "is10": "IS10", "prosody": "IS10"}
"""openSMILE's names of eGeMAPS (88 features, Eyben et al. 2016), ComParE (6373, Weninger et al. 2013), the sets of the
INTERSPEECH challenges of 2009 (384) and 2010 (1582, Schuller et al.), and prosody (124), which is the part of IS10 that
`PROSODY` names."""

PROSODY = ("F0final_", "voicingFinalUnclipped_", "pcm_loudness_")
"""Prefixes of the features that openSMILE's prosody configurations extract: pitch, voicing and loudness."""

FULL_SCALE = 32767 / 32768
"""The highest sample for openSMILE, which converts to 16 bits: 1.0 would wrap to the lowest value."""


@dataclass(frozen=True)
class AcousticTable:
    """The clips of a corpus as feature vectors.

    Attributes:
        features: shape [clips, features].
        labels: the corpus's own label of each clip.
        categories: the category of `EKMAN7` of each clip, or another name if the label has none.
        speakers: the speaker of each clip; None if the corpus does not identify them.
    """

    features: NDArray[np.float32]
    labels: NDArray[np.str_]
    categories: NDArray[np.str_]
    speakers: NDArray[np.str_] | None

    def __getitem__(self, clips: NDArray[np.integer | np.bool_]) -> "AcousticTable":
        """Returns the clips at these indexes, or where the mask is true."""
        speakers = None if self.speakers is None else self.speakers[clips]
        return AcousticTable(self.features[clips], self.labels[clips], self.categories[clips], speakers)


def extract(utterances: Sequence[Utterance], features: str, cache: Path) -> NDArray[np.float32]:
    """Returns the utterances' feature vectors, of shape [utterances, features].

    Args:
        utterances: utterances of one corpus, all with recordings.
        features: one of `SETS`, or the path of an openSMILE configuration file.
        cache: a folder for this corpus; vectors that it has are not extracted again.

    Raises:
        ValueError: there is no such feature set or file, or a recording is too short.
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
            f"{features!r} is neither one of {', '.join(SETS)} nor the path of an openSMILE configuration file: see "
            "https://github.com/audeering/opensmile/tree/master/config"
        )
    return opensmile.Smile(features)


def _name(features: str) -> str:
    """Returns the name of a feature set in the cache; that of a configuration file changes with its content."""
    if features in SETS:
        return features
    path = Path(features)
    return f"{path.stem}-{sha256(path.read_bytes()).hexdigest()[:8]}"


def _vector(smile: opensmile.Smile, utterance: Utterance, features: str) -> NDArray[np.float32]:
    if utterance.audio is None:
        raise ValueError(f"{utterance.corpus}'s {utterance.id} has no recording")
    found = smile.process_signal(np.clip(decode(utterance.audio).samples, -1, FULL_SCALE), SAMPLE_RATE)
    if features == "prosody":
        found = found.filter(items=[name for name in found.columns if name.startswith(PROSODY)])
    vector: NDArray[np.float32] = found.to_numpy(np.float32)[0]
    if not np.isfinite(vector).all():
        raise ValueError(f"{utterance.audio} is too short for the features {features}")
    return vector


def _read(file: Path) -> dict[str, NDArray[np.float32]]:
    if not file.exists():
        return {}
    with np.load(file) as stored:
        return dict(zip(stored["ids"].tolist(), stored["features"], strict=True))


def _write(file: Path, vectors: dict[str, NDArray[np.float32]]) -> None:
    """Write the file under another name and rename it, so that it exists only when it is complete."""
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(".part.npz")
    np.savez(part, ids=np.array(list(vectors)), features=np.stack(list(vectors.values())))
    part.replace(file)
