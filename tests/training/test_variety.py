"""One mood is told from several by how widely a speaker's voice varies."""

import torch

from shared.modeling.baseline import SpeakerBaseline, SpeakerPrior
from training.variety import Voices, fit_variety

SHAPE = (2, 1, 8)


def speakers(count: int, moods: int = 4, each: int = 6) -> list[Voices]:
    """Speakers with ways of their own, whose voices differ from mood to mood, and half as much from turn to turn."""
    generator = torch.Generator().manual_seed(0)
    mood = torch.randn(moods, 1, *SHAPE, generator=generator)
    found = []
    for _ in range(count):
        own = torch.randn(SHAPE, generator=generator)
        turns = own + mood + 0.5 * torch.randn(moods, each, *SHAPE, generator=generator)
        found.append((turns.flatten(0, 1), [i for i in range(moods) for _ in range(each)]))
    return found


def believed(prior: SpeakerPrior, turns: torch.Tensor) -> float:
    """How far the prior goes from everybody towards what these turns sound like, as a share of how far it could."""
    mean, variance = turns.mean(dim=0, keepdim=True), turns.var(dim=0, correction=0, keepdim=True)
    expected, _ = prior.expected(SpeakerBaseline(torch.tensor([float(len(turns))]), mean, variance))
    return ((expected - prior.mean).norm() / (mean - prior.mean).norm()).item()


def test_turns_in_one_mood_are_believed_less_than_turns_in_several() -> None:
    known, (turns, labels) = speakers(12), speakers(13)[-1]
    prior = SpeakerPrior(SHAPE)
    prior.fit([voices for voices, _ in known])
    before = believed(prior, turns[:6])
    fit_variety(prior, known, seed=0)
    assert labels[:6] == [0] * 6
    assert believed(prior, turns[:6]) < 0.5 * before
    assert believed(prior, turns[::4]) > 0.7


def test_speakers_heard_in_one_mood_only_teach_nothing_of_moods() -> None:
    prior = SpeakerPrior(SHAPE)
    before = prior.reliability.clone()
    fit_variety(prior, [(turns[:6], labels[:6]) for turns, labels in speakers(3)], seed=0)
    fit_variety(prior, [(turns[::6], labels[::6]) for turns, labels in speakers(3)], seed=0)
    assert prior.reliability.equal(before)
