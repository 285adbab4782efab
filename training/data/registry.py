"""The registry of all corpora by name, and `load`, which reads some of them."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from training.data.corpora import (
    crema_d,
    emodb,
    emot,
    goemotions,
    iemocap,
    iitkgp_sehsc,
    indonesian,
    manifest,
    meld,
    punjabi_rasa,
    ravdess,
    savee,
    shemo,
    tess,
    urdu_latif,
    urduser,
    xed,
)
from training.data.label_schemes import SCHEMES, LabelScheme, relabel
from training.data.utterance import Utterance, check_leakage


@dataclass(frozen=True)
class Corpus:
    """A corpus: its folder below the data folder, its licence, its languages and its loader."""

    folder: str
    licence: str
    languages: tuple[str, ...]
    load: Callable[[Path], Iterator[Utterance]]


CORPORA = {
    "ravdess": Corpus("ravdess", ravdess.LICENCE, ("en",), ravdess.load),
    "urdu_latif": Corpus("urdu_latif", urdu_latif.LICENCE, ("ur",), urdu_latif.load),
    "tess": Corpus("tess", tess.LICENCE, ("en",), tess.load),
    "crema_d": Corpus("crema_d", crema_d.LICENCE, ("en",), crema_d.load),
    "savee": Corpus("savee", savee.LICENCE, ("en",), savee.load),
    "emodb": Corpus("emodb", emodb.LICENCE, ("de",), emodb.load),
    "urduser": Corpus("urduser", urduser.LICENCE, ("ur",), urduser.load),
    "punjabi_rasa": Corpus("punjabi_rasa", punjabi_rasa.LICENCE, ("pa",), punjabi_rasa.load),
    "shemo": Corpus("shemo", shemo.LICENCE, ("fa",), shemo.load),
    "iitkgp_sehsc": Corpus("iitkgp_sehsc", iitkgp_sehsc.LICENCE, ("hi",), iitkgp_sehsc.load),
    "indonesian": Corpus("indonesian", indonesian.LICENCE, ("id",), indonesian.load),
    "meld": Corpus("meld", meld.LICENCE, ("en",), meld.load),
    "iemocap": Corpus("iemocap", iemocap.LICENCE, ("en",), iemocap.load),
    "goemotions": Corpus("goemotions_ekman", goemotions.LICENCE, ("en",), goemotions.load),
    "xed": Corpus("xed", xed.LICENCE, ("mul",), xed.load),
    "emot": Corpus("indonlu_emot", emot.LICENCE, ("id",), emot.load),
}
"""Languages are codes of BCP 47; `mul` stands for several."""


def load(data: Path, names: Iterable[str], scheme: LabelScheme | None = SCHEMES["ekman7"]) -> list[Utterance]:
    """Returns the utterances of the named corpora, with targets over the scheme's categories.

    Args:
        data: the folder with the corpora.
        names: names of corpora, or paths of manifests (`*.csv`, `*.jsonl`) below `data`.
        scheme: the label scheme; utterances whose label it does not map are left out. None leaves out nothing, and the
            targets are those of `EKMAN7`.

    Raises:
        CorpusMissing: a corpus is not in its folder.
        Leakage: a corpus has the same group in two splits.
        ValueError: there is no corpus of that name.
    """
    corpora = [corpus_named(name) for name in names]
    utterances = [utterance for corpus in corpora for utterance in corpus.load(data / corpus.folder)]
    check_leakage(utterances)
    return utterances if scheme is None else relabel(utterances, scheme)


def corpus_named(name: str) -> Corpus:
    """Returns a registered corpus, or one that a manifest describes.

    Raises:
        ValueError: the name is neither a registered corpus nor a manifest below the data folder.
    """
    if name in CORPORA:
        return CORPORA[name]
    if not name.endswith(manifest.SUFFIXES):
        raise ValueError(
            f"{name!r} is not a corpus: use some of {', '.join(CORPORA)}, or the path of a manifest (.csv, .jsonl)"
        )
    # A feature cache keeps each corpus in a subfolder of its name.
    if Path(name).is_absolute():
        raise ValueError(f"{name}: name a manifest by its path below the data folder")
    return Corpus(name, manifest.LICENCE, (manifest.UNKNOWN_LANGUAGE,), partial(manifest.load, name=name))
