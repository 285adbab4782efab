"""Ways to split utterances for training, validation and test, of which only the random one may share a speaker."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from enum import StrEnum
from itertools import chain
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import BaseModel, ConfigDict
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from sklearn.model_selection import GroupShuffleSplit, StratifiedGroupKFold, StratifiedKFold

from training.data.utterance import Split, Utterance, check_leakage

Indexes = NDArray[np.intp]
Folding = Literal["random", "speaker"]
"""Folds with equal shares of each label, as far as can be, or besides with no speaker in two of them."""


class Strategy(StrEnum):
    """How to split.

    Attributes:
        official: as each loader says: the publisher's split, or where there is none, the one stated there.
        speaker: the same, but only of corpora that name their speakers and keep each in one split.
        random: every label in its share; speakers stand in several splits.
        group_shuffle: speakers (or dialogues, where there is no speaker's voice) drawn at random.
        leave_one_speaker_out: one speaker tests, with whoever shares their dialogues.
        show: drawn at random, or one show tests; neither a speaker nor a show stands in two splits.
    """

    official = "official"
    speaker = "speaker"
    random = "random"
    group_shuffle = "group_shuffle"
    leave_one_speaker_out = "leave_one_speaker_out"
    show = "show"


TIES: dict[Strategy, tuple[str, ...]] = {
    Strategy.official: ("group",),
    Strategy.speaker: ("group", "speaker"),
    Strategy.random: (),
    Strategy.group_shuffle: ("group",),
    Strategy.leave_one_speaker_out: ("group", "speaker"),
    Strategy.show: ("group", "speaker", "show"),
}
"""What two utterances of different splits must not have in common; the last is what is held out by name."""

DRAWN = (Strategy.group_shuffle, Strategy.leave_one_speaker_out, Strategy.show)
"""Those that draw whole groups."""


def split(
    utterances: Iterable[Utterance],
    strategy: Strategy = Strategy.official,
    seed: int = 0,
    validation: float = 0.1,
    test: float = 0.1,
    held_out: str | None = None,
) -> list[Utterance]:
    """The utterances, in their order, each with its split.

    Args:
        utterances: as loaded.
        strategy: how.
        seed: of what is drawn at random.
        validation: its share, of the utterances or of the groups of them that stay together.
        test: the same.
        held_out: the speaker, show or group that tests, in place of a share; as `corpus/name` where two corpora have
            the same name.

    Raises:
        Leakage: a corpus's own split shares what it must not.
        ValueError: the shares leave nothing, a corpus does not name its speakers or shows, too few are apart from one
            another, or what is to be held out is not there or not asked for.
    """
    if min(validation, test) < 0 or validation + test >= 1:
        raise ValueError(f"the shares of validation, {validation}, and test, {test}, leave nothing to train on")
    _check_held_out(strategy, held_out)
    found, ties = list(utterances), TIES[strategy]
    _check_named(found, ties)
    if strategy is Strategy.random:
        found = _assigned(found, *_stratified(found, seed, (validation, test)))
    elif strategy in DRAWN:
        found = _assigned(found, *_by_group(found, ties, seed, (validation, test), held_out))
    if ties:
        check_leakage(found, ties)
    return found


def notes(utterances: Sequence[Utterance], strategy: Strategy) -> list[str]:
    """What whoever reads figures on this split must know of it, for the report."""
    found: list[str] = []
    for corpus in dict.fromkeys(u.corpus for u in utterances):
        voices = {(u.speaker, u.split) for u in utterances if u.corpus == corpus and u.audio is not None}
        splits = Counter(speaker for speaker, _ in voices if speaker is not None)
        if any(speaker is None for speaker, _ in voices):
            found.append(f"{corpus}: the corpus does not name its speakers: the same voice may stand in train and test")
        if shared := sum(count > 1 for count in splits.values()):
            found.append(f"{corpus}: {shared} of {len(splits)} speakers stand in several splits ({strategy})")
    return found


def folds(
    labels: ArrayLike, speakers: Sequence[str] | None, folding: Folding, count: int, seed: int
) -> Iterator[tuple[Indexes, Indexes]]:
    """Of each of `count` folds, the indexes of what trains and of what tests; all is tested once.

    Args:
        labels: shape [utterances].
        speakers: of as many; None where they are not known.
        folding: how.
        count: of folds.
        seed: of the draws.

    Raises:
        ValueError: a fold by speaker, where they are not known.
    """
    if folding == "speaker" and speakers is None:
        raise ValueError("the corpus does not name its speakers, so only the split 'random' is possible")
    kind = StratifiedGroupKFold if folding == "speaker" else StratifiedKFold
    groups = speakers if folding == "speaker" else None
    yield from kind(count, shuffle=True, random_state=seed).split(np.zeros(np.shape(labels)), labels, groups)


def groups_of(utterances: Iterable[Utterance]) -> list[str] | None:
    """Each utterance's group, as `folds` takes for its speaker; None where one's speaker is not named."""
    found = list(utterances)
    return None if any(u.speaker is None for u in found) else [u.group for u in found]


def is_training(utterance: Utterance, fold: int | None, folds: int) -> bool:
    """Whether to train on it: its corpus says so, or for spoken ones in cross-validation, it is not in the fold."""
    if fold is None or utterance.audio is None:
        return utterance.split is Split.train
    return utterance.split is not Split.test and fold_of(utterance, folds) != fold


def fold_of(utterance: Utterance, folds: int) -> int:
    """The fold of an utterance's speaker: the digits of the name, else its letters, count round.

    It does not depend on what else is there, so that runs on several corpora, each with a fold of its own left out, can
    be put together.
    """
    digits = "".join(letter for letter in utterance.group if letter.isdecimal())
    return (int(digits) if digits else sum(map(ord, utterance.group))) % folds


def _assigned(utterances: Sequence[Utterance], validation: Indexes, test: Indexes) -> list[Utterance]:
    splits = [Split.train] * len(utterances)
    for indexes, name in ((validation, Split.validation), (test, Split.test)):
        for i in indexes:
            splits[i] = name
    return [replace(u, split=name) for u, name in zip(utterances, splits, strict=True)]


def _check_held_out(strategy: Strategy, held_out: str | None) -> None:
    if held_out is None and strategy is Strategy.leave_one_speaker_out:
        raise ValueError(f"{strategy} needs held_out: the speaker to leave out")
    if held_out is not None and strategy not in DRAWN:
        raise ValueError(f"{strategy} holds nobody out: {held_out!r} needs one of {', '.join(DRAWN)}")


def _check_named(utterances: Iterable[Utterance], kinds: Iterable[str]) -> None:
    for utterance in utterances:
        for kind in kinds:
            if getattr(utterance, kind) is None:
                raise ValueError(f"{utterance.corpus} does not name its {kind}s, so it cannot be split by them")


def _stratified(utterances: Sequence[Utterance], seed: int, shares: tuple[float, float]) -> tuple[Indexes, Indexes]:
    """Every n-th of the utterances sorted by corpus and label, those of one label in random order.

    scikit-learn's stratified splitters refuse a label with fewer utterances than splits, which some corpora have.
    """
    shuffled = np.random.default_rng(seed).permutation(len(utterances))
    strata = [(u.corpus, u.label_names[0]) for u in utterances]
    order = np.array(sorted(shuffled, key=lambda i: strata[i]), np.intp)
    validation, test = shares
    tested = _every(order, test)
    rest = order[~np.isin(order, tested)]
    return _every(rest, validation / (1 - test)), tested


def _every(order: Indexes, share: float) -> Indexes:
    """An even selection of that share."""
    counts = np.floor(np.arange(len(order) + 1) * share + 0.5)
    return order[np.diff(counts) > 0]


def _by_group(
    utterances: Sequence[Utterance], ties: Sequence[str], seed: int, shares: tuple[float, float], held_out: str | None
) -> tuple[Indexes, Indexes]:
    validation, test = shares
    groups = _components(utterances, ties)
    everything = np.arange(len(utterances))
    if held_out is None:
        tested, validation = _drawn(everything, groups, test, seed), validation / (1 - test)
    else:
        tested = np.flatnonzero(np.isin(groups, groups[_named(utterances, ties[-1], held_out)]))
    return _drawn(np.setdiff1d(everything, tested), groups, validation, seed), tested


def _drawn(among: Indexes, groups: Indexes, share: float, seed: int) -> Indexes:
    """A random share of the groups, leaving one at least."""
    count = len(np.unique(groups[among]))
    if count < (1 if share == 0 else 2):
        raise ValueError(f"too few are apart from one another to split them: {count} left to train and validate on")
    if share == 0:
        return np.zeros(0, np.intp)
    _, chosen = next(GroupShuffleSplit(1, test_size=share, random_state=seed).split(among, groups=groups[among]))
    return among[chosen]


def _named(utterances: Sequence[Utterance], kind: str, name: str) -> list[int]:
    """The utterances of a speaker, show or group."""
    full = [f"{u.corpus}/{getattr(u, kind)}" for u in utterances]
    matching = {value for value in full if name in (value, value.partition("/")[2])}
    if len(matching) != 1:
        raise ValueError(f"held_out: {name!r} is not one {kind}: name one of {', '.join(sorted(set(full)))}")
    return [i for i, value in enumerate(full) if value in matching]


def _components(utterances: Sequence[Utterance], ties: Sequence[str]) -> Indexes:
    """One number for all utterances that have something in common, directly or through others."""
    tied = [[f"{u.corpus}: {kind} {getattr(u, kind)}" for kind in ties] for u in utterances]
    numbers = {name: i for i, name in enumerate(dict.fromkeys(chain.from_iterable(tied)))}
    first = [numbers[names[0]] for names in tied for _ in names]
    other = [numbers[name] for names in tied for name in names]
    graph = coo_array((np.ones(len(first)), (first, other)), shape=(len(numbers), len(numbers)))
    _, component = connected_components(graph, directed=False)
    return component[[numbers[names[0]] for names in tied]]


class SplitPlan(BaseModel):
    """How to split, as it stands in a configuration; see `split`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    strategy: Strategy = Strategy.official
    seed: int = 0
    validation: float = 0.1
    test: float = 0.1
    held_out: str | None = None

    def apply(self, utterances: Iterable[Utterance]) -> list[Utterance]:
        """The utterances, each with its split."""
        return split(utterances, **dict(self))
