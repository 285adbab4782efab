"""Fitting how reliable a speaker's baseline is: turns of one emotion vary less than turns of several."""

# scikit-learn has no types.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from shared.modeling.baseline import SpeakerBaseline, SpeakerPrior

DRAWS = 4000
"""How many baselines are drawn to fit the regression."""
TURN_COUNTS = (2, 3, 5, 8)
"""The numbers of turns in a drawn baseline; few speakers have more turns of one emotion."""

SpeakerTurns = tuple[Tensor, Sequence[int]]
"""A speaker's audio summaries, of shape [turns, 2, layers, width], and their labels."""


def fit_baseline_reliability(prior: SpeakerPrior, speakers: Sequence[SpeakerTurns], seed: int) -> None:
    """Fit the regression that tells baselines of several emotions from baselines of one.

    It is fitted to random baselines, half of them of one emotion. The prior does not change if no speaker has several
    emotions and two turns of one of them.
    """
    usable = [turns for turns in speakers if _has_both_kinds(turns[1])]
    if not usable:
        return
    drawn = list(_draw_turns(usable, np.random.default_rng(seed)))
    shape, device = tuple(prior.mean.shape), str(prior.mean.device)
    baselines = (SpeakerBaseline.from_summaries([list(turns.half().numpy())], shape, device) for turns, _ in drawn)
    spreads = torch.cat([prior.reliability_features(baseline).cpu() for baseline in baselines])
    several = [of_several for _, of_several in drawn]
    fitted = LogisticRegression().fit(spreads.numpy(), several)
    prior.reliability.copy_(torch.tensor([*fitted.coef_[0], *fitted.intercept_]))


def _has_both_kinds(labels: Sequence[int]) -> bool:
    return len(set(labels)) > 1 and max(Counter(labels).values()) > 1


def _draw_turns(speakers: Sequence[SpeakerTurns], rng: np.random.Generator) -> Iterator[tuple[Tensor, bool]]:
    """Yields turns of a random speaker, and whether they have several emotions."""
    for i in range(DRAWS):
        summaries, labels = speakers[int(rng.integers(len(speakers)))]
        order, label_array = rng.permutation(len(labels)), np.asarray(labels)
        if of_one := i % 2 == 0:
            emotions = [label for label, count in Counter(labels).items() if count > 1]
            order = order[label_array[order] == emotions[int(rng.integers(len(emotions)))]]
        chosen = order[: int(rng.choice(TURN_COUNTS))]
        if of_one or len(set(label_array[chosen])) > 1:
            yield summaries[chosen], not of_one
