"""The fusion's promises: padding changes nothing, and a missing modality is learned, not zero."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.modeling.encoders import Tokens
from shared.modeling.fusion import CrossAttentionFusion, Fused, FusionConfig, FusionEnsemble, Standardization

CONFIG = FusionConfig(
    text_width=6, voice_width=5, voice_layers=2, width=16, heads=2, hidden=16, pooling_heads=2, head_width=8
)


@pytest.fixture(scope="module")
def fusion() -> CrossAttentionFusion:
    torch.manual_seed(0)
    return CrossAttentionFusion(CONFIG).eval()


def text(length: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(length, 6, generator=torch.Generator().manual_seed(seed))


def voice(length: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(length, 2, 5, generator=torch.Generator().manual_seed(seed))


@torch.inference_mode()
def fuse(fusion: CrossAttentionFusion, words: list[torch.Tensor], sounds: list[torch.Tensor]) -> Fused:
    return fusion(Tokens.padded(words), Tokens.padded(sounds))


@settings(max_examples=20, deadline=None)
@given(lengths=st.lists(st.tuples(st.integers(0, 7), st.integers(0, 9)), min_size=2, max_size=5))
def test_a_batch_equals_its_rows_one_by_one(fusion: CrossAttentionFusion, lengths: list[tuple[int, int]]) -> None:
    words = [text(t, i) for i, (t, _) in enumerate(lengths)]
    sounds = [voice(v, i) for i, (_, v) in enumerate(lengths)]
    together = fuse(fusion, words, sounds)
    for i, (word, sound) in enumerate(zip(words, sounds, strict=True)):
        alone = fuse(fusion, [word], [sound])
        torch.testing.assert_close(together.logits[i], alone.logits[0], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(together.valence[i], alone.valence[0], atol=1e-4, rtol=1e-4)


def test_what_lies_behind_a_mask_is_never_seen(fusion: CrossAttentionFusion) -> None:
    words, sounds = Tokens.padded([text(4)]), Tokens.padded([voice(5)])
    hidden = Tokens(words.features, torch.zeros_like(words.mask))
    other = Tokens(words.features * 100 + 7, torch.zeros_like(words.mask))
    with torch.inference_mode():
        torch.testing.assert_close(fusion(hidden, sounds).logits, fusion(other, sounds).logits)


def test_both_modalities_matter(fusion: CrossAttentionFusion) -> None:
    base = fuse(fusion, [text(4)], [voice(5)]).logits
    assert not torch.allclose(base, fuse(fusion, [text(4, seed=1)], [voice(5)]).logits)
    assert not torch.allclose(base, fuse(fusion, [text(4)], [voice(5, seed=1)]).logits)
    assert not torch.allclose(base, fuse(fusion, [text(0)], [voice(5)]).logits)


def test_valence_is_bounded_and_every_weight_learns(fusion: CrossAttentionFusion) -> None:
    learner = CrossAttentionFusion(CONFIG)
    fused = learner(Tokens.padded([text(3), text(0), text(2)]), Tokens.padded([voice(4), voice(3), voice(0)]))
    assert fused.valence.abs().max() <= 1
    (fused.logits.square().sum() + fused.valence.sum()).backward()
    still = [name for name, weight in learner.named_parameters() if weight.grad is None]
    assert still == []


def test_standardized_features_have_mean_0_and_deviation_1() -> None:
    standardization = Standardization(2, 3)
    tokens = torch.randn(500, 2, 3) * torch.tensor([1.0, 50.0, 0.01]) + 7
    standardization.fit(tokens)
    standard = standardization(tokens)
    torch.testing.assert_close(standard.mean(dim=0), torch.zeros(2, 3), atol=1e-3, rtol=0)
    torch.testing.assert_close(standard.std(dim=0), torch.ones(2, 3), atol=1e-3, rtol=0)


def test_a_feature_that_never_changes_stays_finite() -> None:
    standardization = Standardization(3)
    standardization.fit(torch.full((10, 3), 4.0))
    assert standardization(torch.full((1, 3), 4.0)).tolist() == [[0, 0, 0]]


def test_an_ensemble_averages_its_members() -> None:
    torch.manual_seed(1)
    members = [CrossAttentionFusion(CONFIG).eval() for _ in range(3)]
    words, sounds = Tokens.padded([text(4)]), Tokens.padded([voice(5)])
    with torch.inference_mode():
        together = FusionEnsemble(members)(words, sounds)
        alone = [member(words, sounds) for member in members]
    torch.testing.assert_close(together.logits, sum(one.logits for one in alone) / 3)
    torch.testing.assert_close(together.valence, sum(one.valence for one in alone) / 3)
