"""The registry of all corpora by name, and `load`, which reads some of them."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

from training.data.corpora import (
    ased,
    baved,
    crema_d,
    dialogues,
    emodb,
    emospeech_india,
    emot,
    goemotions,
    iemocap,
    iitkgp_sehsc,
    indonesian,
    manifest,
    meld,
    nemo,
    punjabi_rasa,
    ravdess,
    savee,
    selvas_emotional,
    shemo,
    tess,
    texts,
    turev,
    urdu_latif,
    urduser,
    xed,
)
from training.data.corpora.text_corpus import Commercial, TextCorpus
from training.data.label_schemes import SCHEMES, LabelScheme, relabel
from training.data.utterance import Utterance, check_leakage


@dataclass(frozen=True)
class Corpus:
    """A corpus and its loader.

    Attributes:
        folder: where it is, below the data folder.
        source: where to get it.
        licence: its licence, as published.
        commercial: whether its publisher permits commercial use; unclear where no licence is stated.
        languages: codes of BCP 47; `mul` stands for several.
        labels: the category in `EKMAN7` of every label, or None.
    """

    folder: str
    source: str
    licence: str
    commercial: Commercial
    languages: tuple[str, ...]
    labels: Mapping[str, str | None]
    load: Callable[[Path], Iterator[Utterance]]


class CorpusModule(Protocol):
    """A module with the loader of one corpus."""

    @property
    def SOURCE(self) -> str: ...  # noqa: N802
    @property
    def LICENCE(self) -> str: ...  # noqa: N802
    @property
    def LABELS(self) -> Mapping[str, str | None]: ...  # noqa: N802
    def load(self, folder: Path, /) -> Iterator[Utterance]: ...


def _described(module: CorpusModule, folder: str, commercial: Commercial, *languages: str) -> Corpus:
    return Corpus(folder, module.SOURCE, module.LICENCE, commercial, languages, module.LABELS, module.load)


def _of_texts(corpus: TextCorpus) -> Corpus:
    return Corpus(
        corpus.name, corpus.source, corpus.licence, corpus.commercial, corpus.languages, corpus.labels, corpus.load
    )


CORPORA = {
    "ravdess": _described(ravdess, "ravdess", "no", "en"),
    "urdu_latif": _described(urdu_latif, "urdu_latif", "no", "ur"),
    "tess": _described(tess, "tess", "no", "en"),
    "crema_d": _described(crema_d, "crema_d", "yes", "en"),
    "savee": _described(savee, "savee", "no", "en"),
    "emodb": _described(emodb, "emodb", "yes", "de"),
    "urduser": _described(urduser, "urduser", "unclear", "ur"),
    "punjabi_rasa": _described(punjabi_rasa, "punjabi_rasa", "yes", "pa"),
    "shemo": _described(shemo, "shemo", "yes", "fa"),
    "iitkgp_sehsc": _described(iitkgp_sehsc, "iitkgp_sehsc", "no", "hi"),
    "indonesian": _described(indonesian, "indonesian", "unclear", "id"),
    "ased": _described(ased, "ased", "unclear", "am"),
    "emospeech_india": _described(emospeech_india, "emospeech_india", "no", "en", "hi", "und"),
    "nemo": _described(nemo, "nemo", "no", "pl"),
    "turev": _described(turev, "turev", "no", "tr"),
    "selvas_emotional": _described(selvas_emotional, "selvas_emotional", "no", "ko"),
    "baved": _described(baved, "baved", "unclear", "ar"),
    "meld": _described(meld, "meld", "unclear", "en"),
    "iemocap": _described(iemocap, "iemocap", "no", "en"),
    "goemotions": _described(goemotions, "goemotions_ekman", "yes", "en"),
    "xed": _described(xed, "xed", "yes", "mul"),
    "emot": _described(emot, "indonlu_emot", "yes", "id"),
    **{corpus.name: _of_texts(corpus) for corpus in (*dialogues.CORPORA, *texts.CORPORA)},
}


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
    load_rows = partial(manifest.load, name=name)
    return Corpus(name, name, manifest.LICENCE, "unclear", (manifest.UNKNOWN_LANGUAGE,), {}, load_rows)
