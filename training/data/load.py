"""All corpora, by name."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from training.data import goemotions, meld, ravdess, urdu_latif, xed
from training.data.corpus import Utterance, check_leakage

CORPORA: dict[str, tuple[str, Callable[[Path], Iterator[Utterance]]]] = {
    "ravdess": ("ravdess", ravdess.load),
    "urdu_latif": ("urdu_latif", urdu_latif.load),
    "meld": ("meld", meld.load),
    "goemotions": ("goemotions_ekman", goemotions.load),
    "xed": ("xed", xed.load),
}
"""Name to folder and loader."""


def load(data: Path, names: Iterable[str]) -> list[Utterance]:
    """The utterances of the corpora named, from their folders below `data`.

    Raises:
        CorpusMissing: one is not there.
        Leakage: one has the same group in two splits.
        ValueError: Tenor knows no corpus of that name.
    """
    utterances: list[Utterance] = []
    for name in names:
        if name not in CORPORA:
            raise ValueError(f"{name!r} is not a corpus: use some of {', '.join(CORPORA)}")
        folder, read = CORPORA[name]
        utterances.extend(read(data / folder))
    check_leakage(utterances)
    return utterances
