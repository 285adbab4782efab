"""Splitting utterances for training, validation and test; only the random strategy may share a speaker."""

# scikit-learn and SciPy have no types.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false

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

from training.args import FoldArgs
from training.data.utterance import Split, Utterance, check_leakage

Indexes = NDArray[np.intp]
Folding = Literal["random", "speaker"]
"""Folds with equal shares of each label as far as possible; `speaker` also puts no speaker into two folds."""


class Strategy(StrEnum):
    """How to split.

    Attributes:
        official: the split of the loader: the publisher's, or the one that the loader states.
        speaker: the same, only for corpora that identify their speakers and keep each in one split.
        random: the same share of every label; a speaker may be in several splits.
        group_shuffle: whole groups drawn at random: speakers, or dialogues of texts without recordings.
        leave_one_speaker_out: one speaker tests, together with the speakers who share a dialogue.
        show: shows drawn at random, or one named show tests; no speaker and no show is in two splits.
    """

    official = "official"
    speaker = "speaker"
    random = "random"
    group_shuffle = "group_shuffle"
    leave_one_speaker_out = "leave_one_speaker_out"
    show = "show"


SHARED_ATTRIBUTES: dict[Strategy, tuple[str, ...]] = {
    Strategy.official: ("group",),
    Strategy.speaker: ("group", "speaker"),
    Strategy.random: (),
    Strategy.group_shuffle: ("group",),
    Strategy.leave_one_speaker_out: ("group", "speaker"),
    Strategy.show: ("group", "speaker", "show"),
}
"""The attributes that utterances of different splits must not share; the last one is that of `held_out`."""

GROUP_STRATEGIES = (Strategy.group_shuffle, Strategy.leave_one_speaker_out, Strategy.show)
"""The strategies that draw whole groups."""


def split(
    utterances: Iterable[Utterance],
    strategy: Strategy = Strategy.official,
    seed: int = 0,
    validation: float = 0.1,
    test: float = 0.1,
    held_out: str | None = None,
) -> list[Utterance]:
    """Returns the utterances in their order, each with its split.

    Args:
        utterances: as loaded.
        strategy: how to split.
        seed: of what is drawn at random.
        validation: the share of the utterances, or of the groups, that validate.
        test: the share of the utterances, or of the groups, that test.
        held_out: the speaker, show or group that tests, in place of a share; `corpus/name` if two corpora have the
            same name.

    Raises:
        Leakage: utterances of different splits share an attribute that they must not.
        ValueError: the shares leave nothing to train on, a corpus does not identify its speakers or shows, there are
            too few groups, or `held_out` is missing, unknown or not used by the strategy.
    """
    if min(validation, test) < 0 or validation + test >= 1:
        raise ValueError(f"the shares of validation, {validation}, and test, {test}, leave nothing to train on")
    _check_held_out(strategy, held_out)
    found, attributes = list(utterances), SHARED_ATTRIBUTES[strategy]
    _check_identified(found, attributes)
    if strategy is Strategy.random:
        found = _assigned(found, *_stratified(found, seed, (validation, test)))
    elif strategy in GROUP_STRATEGIES:
        found = _assigned(found, *_by_group(found, attributes, seed, (validation, test), held_out))
    if attributes:
        check_leakage(found, attributes)
    return found


def split_notes(utterances: Sequence[Utterance], strategy: Strategy) -> list[str]:
    """Returns what a reader of metrics on this split must know, for the report."""
    found: list[str] = []
    for corpus in dict.fromkeys(u.corpus for u in utterances):
        spoken = {(u.speaker, u.split) for u in utterances if u.corpus == corpus and u.audio is not None}
        splits = Counter(speaker for speaker, _ in spoken if speaker is not None)
        if any(speaker is None for speaker, _ in spoken):
            found.append(
                f"{corpus}: the corpus does not identify its speakers: the same speaker may be in train and test"
            )
        if shared := sum(count > 1 for count in splits.values()):
            found.append(f"{corpus}: {shared} of {len(splits)} speakers are in several splits ({strategy})")
    return found


def folds(
    labels: ArrayLike, speakers: Sequence[str] | None, folding: Folding, count: int, seed: int
) -> Iterator[tuple[Indexes, Indexes]]:
    """Yields, for each of `count` folds, the indexes that train and the indexes that test.

    Args:
        labels: shape [utterances].
        speakers: the speaker of each utterance; None if they are unknown.
        folding: how to draw the folds.
        count: the number of folds.
        seed: of the draws.

    Raises:
        ValueError: the folds are by speaker, and the speakers are unknown.
    """
    if folding == "speaker" and speakers is None:
        raise ValueError("the corpus does not identify its speakers, so only the split 'random' is possible")
    kind = StratifiedGroupKFold if folding == "speaker" else StratifiedKFold
    groups = speakers if folding == "speaker" else None
    yield from kind(count, shuffle=True, random_state=seed).split(np.zeros(np.shape(labels)), labels, groups)


def speaker_groups(utterances: Iterable[Utterance]) -> list[str] | None:
    """Returns the group of each utterance, which `folds` takes as its speaker; None if a speaker is unknown."""
    found = list(utterances)
    return None if any(u.speaker is None for u in found) else [u.group for u in found]


def is_training(utterance: Utterance, fold: FoldArgs | None = None) -> bool:
    """Whether the utterance trains: by its split, or, with audio in cross-validation, if it is not in the fold."""
    if fold is None or utterance.audio is None:
        return utterance.split is Split.train
    return utterance.split is not Split.test and fold_of(utterance, fold.count) != fold.index


def fold_of(utterance: Utterance, folds: int) -> int:
    """Returns the fold of an utterance's speaker: the number in the name, or the sum of its letters, modulo `folds`.

    It does not depend on the other utterances, so that the folds of runs on different corpora fit together.
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
    if held_out is not None and strategy not in GROUP_STRATEGIES:
        raise ValueError(f"{strategy} does not hold out {held_out!r}: use one of {', '.join(GROUP_STRATEGIES)}")


def _check_identified(utterances: Iterable[Utterance], kinds: Iterable[str]) -> None:
    for utterance in utterances:
        for kind in kinds:
            if getattr(utterance, kind) is None:
                raise ValueError(f"{utterance.corpus} does not identify its {kind}s, so it cannot be split by them")


def _stratified(utterances: Sequence[Utterance], seed: int, shares: tuple[float, float]) -> tuple[Indexes, Indexes]:
    """Returns every n-th utterance, sorted by corpus and label and in random order within a label.

    scikit-learn's stratified splitters refuse a label with fewer utterances than splits, which some corpora have.
    """
    shuffled: list[int] = np.random.default_rng(seed).permutation(len(utterances)).tolist()
    strata = [(u.corpus, u.label_names[0]) for u in utterances]
    order = np.array(sorted(shuffled, key=lambda i: strata[i]), np.intp)
    validation, test = shares
    tested = _every(order, test)
    rest = order[~np.isin(order, tested)]
    return _every(rest, validation / (1 - test)), tested


def _every(order: Indexes, share: float) -> Indexes:
    """Returns an evenly spaced selection of that share."""
    counts = np.floor(np.arange(len(order) + 1) * share + 0.5)
    return order[np.diff(counts) > 0]


def _by_group(
    utterances: Sequence[Utterance],
    attributes: Sequence[str],
    seed: int,
    shares: tuple[float, float],
    held_out: str | None,
) -> tuple[Indexes, Indexes]:
    validation, test = shares
    groups = _components(utterances, attributes)
    everything = np.arange(len(utterances))
    if held_out is None:
        tested, validation = _draw_groups(everything, groups, test, seed), validation / (1 - test)
    else:
        tested = np.flatnonzero(np.isin(groups, groups[_named(utterances, attributes[-1], held_out)]))
    return _draw_groups(np.setdiff1d(everything, tested), groups, validation, seed), tested


def _draw_groups(among: Indexes, groups: Indexes, share: float, seed: int) -> Indexes:
    """Returns the utterances of a random share of the groups; at least one group is left."""
    count = len(np.unique(groups[among]))
    if count < (1 if share == 0 else 2):
        raise ValueError(f"there are too few separate groups to split: {count} left to train and validate on")
    if share == 0:
        return np.zeros(0, np.intp)
    _, chosen = next(GroupShuffleSplit(1, test_size=share, random_state=seed).split(among, groups=groups[among]))
    return among[chosen]


def _named(utterances: Sequence[Utterance], kind: str, name: str) -> list[int]:
    """Returns the indexes of the utterances of a speaker, show or group."""
    full = [f"{u.corpus}/{getattr(u, kind)}" for u in utterances]
    matching = {value for value in full if name in (value, value.partition("/")[2])}
    if len(matching) != 1:
        raise ValueError(f"held_out: {name!r} is not exactly one {kind}: use one of {', '.join(sorted(set(full)))}")
    return [i for i, value in enumerate(full) if value in matching]


def _components(utterances: Sequence[Utterance], attributes: Sequence[str]) -> Indexes:
    """Returns one number for all utterances that share an attribute, directly or through other utterances."""
    keys = [[f"{u.corpus}: {kind} {getattr(u, kind)}" for kind in attributes] for u in utterances]
    numbers = {name: i for i, name in enumerate(dict.fromkeys(chain.from_iterable(keys)))}
    first = [numbers[names[0]] for names in keys for _ in names]
    other = [numbers[name] for names in keys for name in names]
    graph = coo_array((np.ones(len(first)), (first, other)), shape=(len(numbers), len(numbers)))
    component: Indexes = connected_components(graph, directed=False)[1]
    return component[[numbers[names[0]] for names in keys]]


class SplitArgs(BaseModel):
    """The arguments of `split`, as they are written in a configuration."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    strategy: Strategy = Strategy.official
    """How to split."""
    seed: int = 0
    """The seed of what is drawn at random."""
    validation: float = 0.1
    """The share of the utterances, or of the groups, that validate."""
    test: float = 0.1
    """The share of the utterances, or of the groups, that test."""
    held_out: str | None = None
    """The speaker, show or group that tests, in place of a share."""

    def apply(self, utterances: Iterable[Utterance]) -> list[Utterance]:
        """Returns the utterances, each with its split."""
        return split(utterances, **dict(self))
