"""All corpora, by name."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from training.data import emot, goemotions, meld, ravdess, tess, urdu_latif, xed
from training.data.corpus import Utterance, check_leakage


@dataclass(frozen=True)
class Corpus:
    """A corpus: its folder below the data's, its licence, and how its utterances are read."""

    folder: str
    licence: str
    load: Callable[[Path], Iterator[Utterance]]


CORPORA = {
    "ravdess": Corpus("ravdess", ravdess.LICENCE, ravdess.load),
    "urdu_latif": Corpus("urdu_latif", urdu_latif.LICENCE, urdu_latif.load),
    "tess": Corpus("tess", tess.LICENCE, tess.load),
    "meld": Corpus("meld", meld.LICENCE, meld.load),
    "goemotions": Corpus("goemotions_ekman", goemotions.LICENCE, goemotions.load),
    "xed": Corpus("xed", xed.LICENCE, xed.load),
    "emot": Corpus("indonlu_emot", emot.LICENCE, emot.load),
}


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
        corpus = CORPORA[name]
        utterances.extend(corpus.load(data / corpus.folder))
    check_leakage(utterances)
    return utterances
