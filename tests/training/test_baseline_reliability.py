"""Baselines of one emotion are recognized by their small variance, and count less."""

import torch

from shared.modeling.baseline import SpeakerBaseline, SpeakerPrior
from training.baseline_reliability import SpeakerTurns, fit_baseline_reliability

SHAPE = (2, 1, 8)


def speakers(count: int, emotions: int = 4, each: int = 6) -> list[SpeakerTurns]:
    """Speakers whose summaries differ between speakers and emotions, and half as much between turns."""
    generator = torch.Generator().manual_seed(0)
    emotion = torch.randn(emotions, 1, *SHAPE, generator=generator)
    found = []
    for _ in range(count):
        own = torch.randn(SHAPE, generator=generator)
        turns = own + emotion + 0.5 * torch.randn(emotions, each, *SHAPE, generator=generator)
        found.append((turns.flatten(0, 1), [i for i in range(emotions) for _ in range(each)]))
    return found


def weight_of_baseline(prior: SpeakerPrior, turns: torch.Tensor) -> float:
    """How far the prior moves from the mean of all speakers to the mean of these turns, from 0 to 1."""
    mean, variance = turns.mean(dim=0, keepdim=True), turns.var(dim=0, correction=0, keepdim=True)
    expected, _ = prior.expected(SpeakerBaseline(torch.tensor([float(len(turns))]), mean, variance))
    return ((expected - prior.mean).norm() / (mean - prior.mean).norm()).item()


def test_a_baseline_of_one_emotion_counts_less_than_one_of_several() -> None:
    known, (turns, labels) = speakers(12), speakers(13)[-1]
    prior = SpeakerPrior(SHAPE)
    prior.fit([summaries for summaries, _ in known])
    before = weight_of_baseline(prior, turns[:6])
    fit_baseline_reliability(prior, known, seed=0)
    assert labels[:6] == [0] * 6
    assert weight_of_baseline(prior, turns[:6]) < 0.5 * before
    assert weight_of_baseline(prior, turns[::4]) > 0.7


def test_the_prior_does_not_change_if_every_speaker_has_one_emotion_only() -> None:
    prior = SpeakerPrior(SHAPE)
    before = prior.reliability.clone()
    fit_baseline_reliability(prior, [(turns[:6], labels[:6]) for turns, labels in speakers(3)], seed=0)
    fit_baseline_reliability(prior, [(turns[::6], labels[::6]) for turns, labels in speakers(3)], seed=0)
    assert prior.reliability.equal(before)
