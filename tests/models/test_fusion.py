"""The fusion's promises: padding changes nothing, and a missing modality is learned, not zero."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.modeling.audio_classifiers import PatchTransformerConfig
from shared.modeling.baseline import AudioSummary, SpeakerBaseline, summarize_audio
from shared.modeling.fusion import AudioPatches, Fusion, FusionConfig, FusionEnsemble, FusionOutput, build_fusion
from shared.modeling.tokens import Standardization, Tokens

CONFIG = FusionConfig(
    text_width=6, audio_width=5, audio_layers=2, width=16, heads=2, hidden=16, pooling_heads=2, head_width=8
)


def made(config: FusionConfig) -> Fusion:
    fusion = build_fusion(config)
    assert isinstance(fusion, Fusion)
    return fusion


KINDS = [
    CONFIG.model_copy(update={"kind": kind, "pooling": pooling})
    for kind in ("concat", "gated", "cross_attention")
    for pooling in ("mean", "attentive")
]


@pytest.fixture(scope="module", params=KINDS, ids=lambda config: f"{config.kind}, {config.pooling}")
def fusion(request: pytest.FixtureRequest) -> Fusion:
    torch.manual_seed(0)
    return made(request.param).eval()


def text(length: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(length, 6, generator=torch.Generator().manual_seed(seed))


def voice(length: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(length, 2, 5, generator=torch.Generator().manual_seed(seed))


@torch.inference_mode()
def fuse(fusion: Fusion, words: list[torch.Tensor], sounds: list[torch.Tensor]) -> FusionOutput:
    return fusion(Tokens.padded(words), Tokens.padded(sounds))


@settings(max_examples=20, deadline=None)
@given(lengths=st.lists(st.tuples(st.integers(0, 7), st.integers(0, 9)), min_size=2, max_size=5))
def test_a_batch_equals_its_rows_one_by_one(fusion: Fusion, lengths: list[tuple[int, int]]) -> None:
    words = [text(t, i) for i, (t, _) in enumerate(lengths)]
    sounds = [voice(v, i) for i, (_, v) in enumerate(lengths)]
    together = fuse(fusion, words, sounds)
    for i, (word, sound) in enumerate(zip(words, sounds, strict=True)):
        alone = fuse(fusion, [word], [sound])
        torch.testing.assert_close(together.logits[i], alone.logits[0], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(together.valence[i], alone.valence[0], atol=1e-4, rtol=1e-4)


def test_masked_tokens_do_not_change_the_output(fusion: Fusion) -> None:
    words, sounds = Tokens.padded([text(4)]), Tokens.padded([voice(5)])
    hidden = Tokens(words.features, torch.zeros_like(words.mask))
    other = Tokens(words.features * 100 + 7, torch.zeros_like(words.mask))
    with torch.inference_mode():
        torch.testing.assert_close(fusion(hidden, sounds).logits, fusion(other, sounds).logits)


def test_both_modalities_change_the_output(fusion: Fusion) -> None:
    base = fuse(fusion, [text(4)], [voice(5)]).logits
    assert not torch.allclose(base, fuse(fusion, [text(4, seed=1)], [voice(5)]).logits)
    assert not torch.allclose(base, fuse(fusion, [text(4)], [voice(5, seed=1)]).logits)
    assert not torch.allclose(base, fuse(fusion, [text(0)], [voice(5)]).logits)


def test_valence_is_bounded_and_every_weight_learns(fusion: Fusion) -> None:
    learner = made(fusion.config)
    fused = learner(Tokens.padded([text(3), text(0), text(2)]), Tokens.padded([voice(4), voice(3), voice(0)]))
    assert fused.valence.abs().max() <= 1
    (fused.logits.square().sum() + fused.valence.sum()).backward()
    still = [name for name, weight in learner.named_parameters() if weight.grad is None]
    assert still == []


def test_a_learned_token_stands_for_what_is_missing(fusion: Fusion) -> None:
    """Either may be missing, and both."""
    with torch.no_grad():
        given = [fuse(fusion, [text(t)], [voice(v)]).logits for t, v in ((4, 5), (0, 5), (4, 0), (0, 0))]
    assert all(logits.isfinite().all() for logits in given)
    assert len({tuple(logits.flatten().tolist()) for logits in given}) == 4


def test_the_gate_weighs_one_modality_against_the_other() -> None:
    torch.manual_seed(0)
    fusion = made(CONFIG.model_copy(update={"kind": "gated"})).eval()
    state = fusion.state_dict()
    state["gate.weight"].zero_()
    for bias, weighed, ignored in ((50.0, (4, 1, 5, 0), (4, 0, 5, 1)), (-50.0, (4, 0, 5, 1), (4, 1, 5, 0))):
        state["gate.bias"].fill_(bias)
        base = fuse(fusion, [text(4)], [voice(5)]).logits
        for (t, t_seed, v, v_seed), changes in ((weighed, True), (ignored, False)):
            other = fuse(fusion, [text(t, t_seed)], [voice(v, v_seed)]).logits
            assert torch.allclose(base, other) is not changes


def test_mean_pooling_ignores_masked_tokens() -> None:
    """With means, and tokens that attend to nothing, repeating a turn's tokens changes nothing."""
    torch.manual_seed(0)
    fusion = made(CONFIG.model_copy(update={"kind": "concat", "pooling": "mean"})).eval()
    once = fuse(fusion, [text(4)], [voice(5)]).logits
    torch.testing.assert_close(fuse(fusion, [text(4).repeat(3, 1)], [voice(5).repeat(2, 1, 1)]).logits, once)


def test_weights_without_a_fusion_kind_are_loaded_as_cross_attention() -> None:
    names = set(made(CONFIG).state_dict())
    attentions = {f"{modality}_{kind}_attention" for modality in ("text", "audio") for kind in ("self", "cross")}
    parts = attentions | {"audio_pooling", "text_pooling", "head", "emotion_head"}
    assert parts <= {name.partition(".")[0] for name in names}
    single = {"audio_layer_weights", "missing_audio", "missing_text", "audio_pooling.score.0.weight", "head.2.weight"}
    assert single <= names


def test_standardized_features_have_mean_0_and_deviation_1() -> None:
    standardization = Standardization(2, 3)
    tokens = torch.randn(500, 2, 3) * torch.tensor([1.0, 50.0, 0.01]) + 7
    standardization.fit(tokens)
    standard = standardization(tokens)
    torch.testing.assert_close(standard.mean(dim=0), torch.zeros(2, 3), atol=1e-3, rtol=0)
    torch.testing.assert_close(standard.std(dim=0), torch.ones(2, 3), atol=1e-3, rtol=0)


def test_standardizing_a_constant_feature_stays_finite() -> None:
    standardization = Standardization(3)
    standardization.fit(torch.full((10, 3), 4.0))
    assert standardization(torch.full((1, 3), 4.0)).tolist() == [[0, 0, 0]]


def test_an_ensemble_averages_its_members() -> None:
    torch.manual_seed(1)
    members = [made(CONFIG).eval() for _ in range(3)]
    words, sounds = Tokens.padded([text(4)]), Tokens.padded([voice(5)])
    with torch.inference_mode():
        together = FusionEnsemble(members)(words, sounds)
        alone = [member(words, sounds) for member in members]
    torch.testing.assert_close(together.logits, sum(one.logits for one in alone) / 3)
    torch.testing.assert_close(together.valence, sum(one.valence for one in alone) / 3)


RELATIVE = CONFIG.model_copy(update={"relative": True})


@pytest.fixture(scope="module")
def relative() -> Fusion:
    torch.manual_seed(0)
    fusion = made(RELATIVE).eval()
    torch.nn.init.normal_(fusion.summary_head.weight)
    fusion.speaker_prior.fit([3 * i + torch.randn(6, 2, 2, 5) for i in range(4)])
    return fusion


def known(*turns: int) -> SpeakerBaseline:
    """A baseline of voices `voice(9, seed)`."""
    summaries = [summarize_audio(Tokens.padded([voice(9, seed)]))[0].half().numpy() for seed in turns]
    return SpeakerBaseline.from_summaries([summaries], RELATIVE.summary_shape)


@torch.inference_mode()
def logits(fusion: Fusion, sound: torch.Tensor, baseline: SpeakerBaseline | None) -> torch.Tensor:
    return fusion(Tokens.padded([text(4)]), Tokens.padded([sound]), baseline).logits


def test_fusion_subtracts_the_speakers_baseline(relative: Fusion) -> None:
    first = logits(relative, voice(9), None)
    assert not torch.allclose(first, logits(relative, voice(9), known(1, 2, 3)))
    torch.testing.assert_close(first, logits(relative, voice(9), known()))


def test_a_constant_offset_of_a_speaker_is_removed_by_their_baseline() -> None:
    torch.manual_seed(0)
    fusion = made(RELATIVE).eval()
    torch.nn.init.normal_(fusion.summary_head.weight, std=0.01)
    fusion.speaker_prior.between.fill_(1e6)  # speakers differ so much that a baseline is believed at once

    def summary(sound: torch.Tensor) -> AudioSummary:
        return summarize_audio(Tokens.padded([sound]))[0].numpy()

    plain = SpeakerBaseline.from_summaries([[summary(voice(9, 1)), summary(voice(9, 2))]], RELATIVE.summary_shape)
    higher = SpeakerBaseline.from_summaries(
        [[summary(voice(9, 1) + 7), summary(voice(9, 2) + 7)]], RELATIVE.summary_shape
    )
    expected, found = logits(fusion, voice(9), plain), logits(fusion, voice(9) + 7, higher)
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)


def test_a_baseline_has_no_effect_on_text_alone(relative: Fusion) -> None:
    silence = logits(relative, voice(0), None)
    torch.testing.assert_close(logits(relative, voice(0), known(1, 2)), silence)


def test_a_patch_transformer_hears_the_last_layer_alone() -> None:
    torch.manual_seed(0)
    config = FusionConfig(
        kind="patch_transformer",
        categories=3,
        audio_width=8,
        audio_layers=2,
        patches=PatchTransformerConfig(patch=4, width=16, layers=1, heads=2, hidden=16, head_width=8),
    )
    patches = build_fusion(config)
    assert isinstance(patches, AudioPatches)
    sounds = Tokens.padded([torch.randn(n, 2, 8) for n in (3, 5, 4)])
    patches.fit([], [sounds])
    patches.eval()
    nothing = Tokens.padded([torch.zeros(0, 384)] * 3)
    expected = patches(nothing, sounds).logits
    assert expected.shape == (3, 3)
    first_changed = Tokens(sounds.features + torch.tensor([100.0, 0.0])[:, None], sounds.mask)
    torch.testing.assert_close(patches(nothing, first_changed).logits, expected)
    # Their vectors are standardized by what was measured: mean 0, deviation 1.
    vectors = patches.patches.standardization(summarize_audio(sounds)[:, 0, -1])
    torch.testing.assert_close(vectors.mean(dim=0), torch.zeros(8), atol=1e-5, rtol=0)
    torch.testing.assert_close(vectors.std(dim=0), torch.ones(8), atol=1e-4, rtol=0)
