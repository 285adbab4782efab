"""A speaker's baseline: the same in whatever order it is derived, and believed the more, the more turns it has."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shared.modeling.baseline import AudioSummary, SpeakerBaseline, SpeakerPrior, summarize_audio
from shared.modeling.tokens import Tokens

SHAPE = (2, 1, 3)


def summary(seed: int) -> AudioSummary:
    return np.random.default_rng(seed).normal(size=SHAPE).astype(np.float16)


@pytest.fixture
def prior() -> SpeakerPrior:
    """Fitted to twenty speakers of forty turns, whose own ways vary with a deviation of 2, and their turns with 1."""
    generator = torch.Generator().manual_seed(0)
    own = 5 + 2 * torch.randn(20, 1, *SHAPE, generator=generator)
    fitted = SpeakerPrior(SHAPE)
    fitted.fit(list(own + torch.randn(20, 40, *SHAPE, generator=generator)))
    return fitted


def baseline(*turns: AudioSummary) -> SpeakerBaseline:
    return SpeakerBaseline.from_summaries([turns], SHAPE)


@given(st.permutations(list(range(6))))
def test_a_baseline_does_not_depend_on_the_order_of_turns(order: list[int]) -> None:
    expected, found = (baseline(*(summary(i) for i in turns)) for turns in (range(6), order))
    torch.testing.assert_close(found.mean, expected.mean)
    torch.testing.assert_close(found.variance, expected.variance)


def test_count_mean_and_variance_worked_out_by_hand() -> None:
    known = SpeakerBaseline.from_summaries([[np.full(SHAPE, 1, np.float16), np.full(SHAPE, 4, np.float16)], []], SHAPE)
    assert known.count.tolist() == [2, 0]
    assert known.mean.flatten(1).tolist() == [[2.5] * 6, [0] * 6]
    assert known.variance.flatten(1).tolist() == [[2.25] * 6, [0] * 6]


def test_a_summary_is_mean_and_deviation_of_what_is_real() -> None:
    voices = [torch.tensor([1.0, 3.0]).reshape(2, 1, 1), torch.tensor([7.0]).reshape(1, 1, 1), torch.zeros(0, 1, 1)]
    found = summarize_audio(Tokens.padded(voices))
    assert found.flatten(1).tolist() == [[2, 1], [7, 0], [0, 0]]


def test_without_earlier_turns_the_baseline_is_the_prior(prior: SpeakerPrior) -> None:
    mean, deviation = prior.expected(baseline())
    torch.testing.assert_close(mean[0], prior.mean)
    torch.testing.assert_close(deviation[0], (prior.within + prior.between).sqrt())


def about_ten(count: int, spread: float) -> SpeakerBaseline:
    """Of turns around 10 that vary so widely."""
    return SpeakerBaseline(torch.tensor([float(count)]), torch.full((1, *SHAPE), 10.0), torch.full((1, *SHAPE), spread))


def far_from_ten(prior: SpeakerPrior, count: int, spread: float = 1.0) -> float:
    return (prior.expected(about_ten(count, spread))[0] - 10).abs().max().item()


def test_a_baseline_shrinks_towards_the_prior(prior: SpeakerPrior) -> None:
    distances = [far_from_ten(prior, count) for count in (0, 1, 3, 20)]
    assert distances == sorted(distances, reverse=True)
    # By hand, of variances 4 and 1: 1 / (1 + 20 x 4) of the way back to 5.
    assert distances[-1] < 0.2


def test_similar_turns_make_a_baseline_less_reliable(prior: SpeakerPrior) -> None:
    prior.reliability.copy_(torch.tensor([5.0, 0.0, 2.0]))
    distances = [far_from_ten(prior, 10, spread) for spread in (1.5, 1.0, 0.5, 0.2)]
    assert distances == sorted(distances)
    assert distances[-1] > 2 * distances[0]


def test_a_single_turn_is_not_treated_as_similar_turns(prior: SpeakerPrior) -> None:
    prior.reliability.copy_(torch.tensor([5.0, 0.0, -20.0]))
    assert far_from_ten(prior, 1, 0.0) == pytest.approx(1, abs=0.5)  # 1 / (1 + 4) of the way back to 5


def test_variance_within_and_between_speakers_is_estimated_separately(prior: SpeakerPrior) -> None:
    torch.testing.assert_close(prior.within.mean(), torch.tensor(1.0), atol=0.1, rtol=0)
    assert 2 < prior.between.mean() < 7


def test_one_speaker_gives_no_variance_between_speakers() -> None:
    fitted = SpeakerPrior(SHAPE)
    fitted.fit([torch.randn(5, *SHAPE), torch.randn(1, *SHAPE)])
    mean, deviation = fitted.expected(baseline(summary(0)))
    torch.testing.assert_close(mean[0], fitted.mean)
    assert (deviation > 0).all()
