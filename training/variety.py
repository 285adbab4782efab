"""How turns in one mood are told from turns in several, by how widely a speaker's voice varies among them."""

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from shared.modeling.baseline import SpeakerBaseline, SpeakerPrior

DRAWS = 4000
COUNTS = (2, 3, 5, 8)
"""Turns of a draw; more of them in one mood are rarely there."""

Voices = tuple[Tensor, Sequence[int]]
"""A speaker's summaries, shape [turns, 2, layers, width], and their labels."""


def fit_variety(prior: SpeakerPrior, speakers: Sequence[Voices], seed: int) -> None:
    """Fit `prior.reliability` to draws of turns, half of them in one emotion. Without draws it is left as it is."""
    known = [voices for voices in speakers if _is_heard_in_both(voices[1])]
    if not known:
        return
    drawn = list(_draws(known, np.random.default_rng(seed)))
    shape, device = tuple(prior.mean.shape), str(prior.mean.device)
    baselines = (SpeakerBaseline.from_summaries([list(turns.half().numpy())], shape, device) for turns, _ in drawn)
    spreads = torch.cat([prior.reliability_features(baseline).cpu() for baseline in baselines])
    several = [in_several for _, in_several in drawn]
    fitted = LogisticRegression().fit(spreads.numpy(), several)
    prior.reliability.copy_(torch.tensor([*fitted.coef_[0], *fitted.intercept_]))


def _is_heard_in_both(labels: Sequence[int]) -> bool:
    return len(set(labels)) > 1 and max(Counter(labels).values()) > 1


def _draws(speakers: Sequence[Voices], rng: np.random.Generator) -> Iterator[tuple[Tensor, bool]]:
    """Turns of a speaker, and whether they are in several moods."""
    for i in range(DRAWS):
        summaries, labels = speakers[int(rng.integers(len(speakers)))]
        order, of = rng.permutation(len(labels)), np.asarray(labels)
        if in_one := i % 2 == 0:
            moods = [label for label, count in Counter(labels).items() if count > 1]
            order = order[of[order] == moods[int(rng.integers(len(moods)))]]
        chosen = order[: int(rng.choice(COUNTS))]
        if in_one or len(set(of[chosen])) > 1:
            yield summaries[chosen], not in_one
