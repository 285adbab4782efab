"""Fusion: combines text and audio features, either of which may be missing, into emotion logits and a valence."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn
from torch.nn import functional

from shared.modeling.audio_classifiers import PatchTransformer, PatchTransformerConfig
from shared.modeling.baseline import SpeakerBaseline, SpeakerPrior, summarize_audio
from shared.modeling.tokens import Standardization, Tokens


class FusionConfig(BaseModel):
    """Kind and shapes. `text_width`, `audio_width` and `audio_layers` are those of the encoders' outputs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["concat", "gated", "cross_attention", "patch_transformer"] = "cross_attention"
    pooling: Literal["mean", "attentive"] = "attentive"
    categories: int = 7
    text_width: int = 384
    audio_width: int = 512
    audio_layers: int = 4
    width: int = 256
    heads: int = 4
    hidden: int = 512
    pooling_heads: int = 4
    head_width: int = 128
    dropout: float = 0.4
    relative: bool = False
    """Whether audio is compared with its speaker's baseline."""
    patches: PatchTransformerConfig | None = None
    """Shapes of a patch transformer; its `features` and `categories` are taken from this config instead."""

    @property
    def summary_shape(self) -> tuple[int, int, int]:
        """Shape of a turn's audio summary, see `shared.modeling.baseline`."""
        return (2, self.audio_layers, self.audio_width)


@dataclass(frozen=True)
class FusionOutput:
    """What a fusion returns for a batch.

    Attributes:
        logits: shape [batch, categories].
        valence: from -1 (unpleasant) to 1 (pleasant), shape [batch].
    """

    logits: Tensor
    valence: Tensor


class Fusion(nn.Module):
    """Fusion by concatenation: pools each modality over its tokens and passes both to the heads.

    A learned token replaces a missing modality. The other kinds of fusion override how the modalities are joined;
    `build_fusion` creates the configured kind.
    """

    def __init__(self, config: FusionConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.audio_standardization = Standardization(config.audio_layers, config.audio_width)
        self.text_standardization = Standardization(config.text_width)
        if config.relative:
            self.speaker_prior = SpeakerPrior(config.summary_shape)
            self.summary_head = nn.Linear(math.prod(config.summary_shape), config.categories + 1)
            nn.init.zeros_(self.summary_head.weight)
        self.audio_layer_weights = nn.Parameter(torch.zeros(config.audio_layers))
        self.audio_projection = _projection(config.audio_width, width, config.dropout)
        self.text_projection = _projection(config.text_width, width, config.dropout)
        self.missing_audio = nn.Parameter(torch.randn(width) * 0.02)
        self.missing_text = nn.Parameter(torch.randn(width) * 0.02)
        self.audio_pooling, self.text_pooling = _pooling(config), _pooling(config)
        joined = self._joined_width(self.audio_pooling.width)
        self.head = nn.Sequential(
            nn.LayerNorm(joined),
            nn.Dropout(config.dropout),
            nn.Linear(joined, config.head_width),
            nn.GELU(),
            nn.Dropout(config.dropout),
        )
        self.emotion_head = nn.Linear(config.head_width, config.categories)
        self.valence_head = nn.Linear(config.head_width, 1)

    def forward(self, text: Tokens, audio: Tokens, baseline: SpeakerBaseline | None = None) -> FusionOutput:
        """Fuse a batch. A row whose mask is all False lacks that modality.

        Args:
            text: features of shape [batch, tokens, text width].
            audio: features of shape [batch, tokens, audio layers, audio width].
            baseline: baselines of the rows' speakers; None if no earlier turns are known. Only a `relative` fusion
                uses them.
        """
        change = self._change(audio, baseline) if self.config.relative else None
        layer_weights = torch.softmax(self.audio_layer_weights, dim=0)
        features = audio.features if change is None else audio.features - change.offset[:, None]
        mixed = torch.einsum("btlw,l->btw", self.audio_standardization(features), layer_weights)
        projected = self.text_projection(self.text_standardization(text.features))
        text_tokens = _or_missing(projected, text.mask, self.missing_text)
        audio_tokens = _or_missing(self.audio_projection(mixed), audio.mask, self.missing_audio)
        text_tokens, audio_tokens = self._attended(text_tokens, audio_tokens)
        state = self.head(self._joined(self.text_pooling(text_tokens), self.audio_pooling(audio_tokens)))
        logits, valence = self.emotion_head(state), self.valence_head(state)
        if change is not None:
            logits, valence = logits + change.logits[:, :-1], valence + change.logits[:, -1:]
        return FusionOutput(logits, torch.tanh(valence).squeeze(-1))

    def fit(self, text: Sequence[Tokens], audio: Sequence[Tokens]) -> None:
        """Fit the standardizations to the encoders' outputs on training data."""
        for standardization, batches in ((self.text_standardization, text), (self.audio_standardization, audio)):
            features = [batch.features[batch.mask] for batch in batches if batch.mask.any()]
            if features:
                standardization.fit(torch.cat(features))

    def _change(self, audio: Tokens, baseline: SpeakerBaseline | None) -> "_Change":
        """How each row's audio differs from what is expected of its speaker."""
        summary = summarize_audio(audio)
        expected, deviation = self.speaker_prior.expected(baseline or SpeakerBaseline.empty(summary))
        change = ((summary - expected) / deviation).clamp(-6, 6) * audio.mask.any(dim=1)[:, None, None, None]
        return _Change(
            offset=expected[:, 0] - self.speaker_prior.mean[0],
            logits=self.summary_head(functional.dropout(change.flatten(1), self.config.dropout, self.training)),
        )

    def _attended(self, text: Tokens, audio: Tokens) -> tuple[Tokens, Tokens]:
        return text, audio

    def _joined(self, text: Tensor, audio: Tensor) -> Tensor:
        return torch.cat([text, audio], dim=-1)

    def _joined_width(self, pooled: int) -> int:
        return 2 * pooled


@dataclass(frozen=True)
class _Change:
    """The difference between audio and its speaker's baseline.

    Attributes:
        offset: mean features of the speaker minus those of all speakers, shape [batch, layers, width].
        logits: logits of the turn's audio summary alone, shape [batch, categories + 1]; the last is for the valence.
    """

    offset: Tensor
    logits: Tensor


class GatedFusion(Fusion):
    """Fusion by a learned gate, which weights the two pooled modalities feature by feature.

    Gated multimodal units: Arevalo et al. 2017, "Gated Multimodal Units for Information Fusion".
    """

    def __init__(self, config: FusionConfig) -> None:
        super().__init__(config)
        pooled = self.audio_pooling.width
        self.audio_state = nn.Linear(pooled, config.width)
        self.text_state = nn.Linear(pooled, config.width)
        self.gate = nn.Linear(2 * pooled, config.width)

    def _joined(self, text: Tensor, audio: Tensor) -> Tensor:
        text_share = torch.sigmoid(self.gate(super()._joined(text, audio)))
        return text_share * torch.tanh(self.text_state(text)) + (1 - text_share) * torch.tanh(self.audio_state(audio))

    def _joined_width(self, pooled: int) -> int:
        return self.config.width


class CrossAttentionFusion(Fusion):
    """Fusion by cross-attention: each modality's tokens attend to themselves, then to those of the other modality."""

    def __init__(self, config: FusionConfig) -> None:
        super().__init__(config)
        self.audio_self_attention, self.text_self_attention, self.audio_cross_attention, self.text_cross_attention = (
            _Attention(config.width, config.heads, config.hidden, config.dropout) for _ in range(4)
        )

    def _attended(self, text: Tokens, audio: Tokens) -> tuple[Tokens, Tokens]:
        text = Tokens(self.text_self_attention(text, text), text.mask)
        audio = Tokens(self.audio_self_attention(audio, audio), audio.mask)
        return (
            Tokens(self.text_cross_attention(text, audio), text.mask),
            Tokens(self.audio_cross_attention(audio, text), audio.mask),
        )


class AudioPatches(nn.Module):
    """Classifies audio alone: a patch transformer on the mean over time of the encoder's last layer.

    Text is ignored, and the valence is always 0.
    """

    def __init__(self, config: FusionConfig) -> None:
        super().__init__()
        self.config = config
        if config.relative:
            raise ValueError("a fusion of kind patch_transformer has no speaker baseline: relative must be false")
        shapes = {"features": config.audio_width, "categories": config.categories}
        self.patches = PatchTransformer((config.patches or PatchTransformerConfig()).model_copy(update=shapes))

    def forward(self, text: Tokens, audio: Tokens, baseline: SpeakerBaseline | None = None) -> FusionOutput:
        """Classify a batch; see `Fusion.forward` for the arguments."""
        logits = self.patches(_last_layer_mean(audio))
        return FusionOutput(logits, logits.new_zeros(len(logits)))

    def fit(self, text: Sequence[Tokens], audio: Sequence[Tokens]) -> None:
        """Fit the standardization to the encoder's outputs on training data."""
        self.patches.standardization.fit(torch.cat([_last_layer_mean(batch) for batch in audio if batch.mask.any()]))


AnyFusion = Fusion | AudioPatches


def build_fusion(config: FusionConfig) -> AnyFusion:
    """Returns a new, untrained fusion of the configured kind."""
    kinds: dict[str, type[AnyFusion]] = {
        "concat": Fusion,
        "gated": GatedFusion,
        "cross_attention": CrossAttentionFusion,
        "patch_transformer": AudioPatches,
    }
    return kinds[config.kind](config)


class FusionEnsemble(nn.Module):
    """Averages the logits and valences of fusions that were trained with different seeds."""

    def __init__(self, members: Sequence[AnyFusion]) -> None:
        super().__init__()
        self.config = members[0].config
        self.members = nn.ModuleList(members)

    def forward(self, text: Tokens, audio: Tokens, baseline: SpeakerBaseline | None = None) -> FusionOutput:
        """Fuse a batch; see `Fusion.forward` for the arguments."""
        outputs: list[FusionOutput] = [member(text, audio, baseline) for member in self.members]
        return FusionOutput(
            torch.stack([output.logits for output in outputs]).mean(dim=0),
            torch.stack([output.valence for output in outputs]).mean(dim=0),
        )


class _Attention(nn.Module):
    """A pre-norm attention block: the tokens of `queries` attend to those of `keys`, which may be the same."""

    def __init__(self, width: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, dropout=dropout, batch_first=True)
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden, width)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, queries: Tokens, keys: Tokens) -> Tensor:
        normed = self.norm(keys.features)
        attended, _ = self.attention(
            self.norm(queries.features), normed, normed, key_padding_mask=~keys.mask, need_weights=False
        )
        hidden = queries.features + self.dropout(attended)
        return hidden + self.dropout(self.feed_forward(hidden))


class _MeanPooling(nn.Module):
    """Pools tokens to their mean, shape [batch, width]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, tokens: Tokens) -> Tensor:
        real = tokens.mask[..., None]
        return (tokens.features * real).sum(dim=1) / real.sum(dim=1)


class _StatisticsPooling(nn.Module):
    """Pools tokens to attention-weighted means and standard deviations, shape [batch, 2 x heads x width].

    Okabe et al. 2018, "Attentive Statistics Pooling for Deep Speaker Embedding".
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.width = 2 * heads * width
        self.score = nn.Sequential(nn.Linear(width, width // 4), nn.Tanh(), nn.Linear(width // 4, heads))

    def forward(self, tokens: Tokens) -> Tensor:
        scores = self.score(tokens.features)
        scores = scores.masked_fill(~tokens.mask[..., None], torch.finfo(scores.dtype).min)
        weights = torch.softmax(scores, dim=1)
        mean = torch.einsum("bth,btw->bhw", weights, tokens.features)
        square = torch.einsum("bth,btw->bhw", weights, tokens.features**2)
        deviation = (square - mean**2).clamp(min=1e-5).sqrt()
        return torch.cat([mean, deviation], dim=-1).flatten(1)


def _pooling(config: FusionConfig) -> _MeanPooling | _StatisticsPooling:
    if config.pooling == "mean":
        return _MeanPooling(config.width)
    return _StatisticsPooling(config.width, config.pooling_heads)


def _last_layer_mean(audio: Tokens) -> Tensor:
    return summarize_audio(audio)[:, 0, -1]


def _projection(width_in: int, width_out: int, dropout: float) -> nn.Module:
    return nn.Sequential(nn.LayerNorm(width_in), nn.Dropout(dropout), nn.Linear(width_in, width_out))


def _or_missing(features: Tensor, mask: Tensor, missing: Tensor) -> Tokens:
    """Prepends one token to every row: the learned `missing` token, which is masked unless the row has no other."""
    absent = ~mask.any(dim=1)
    first = torch.where(absent[:, None], missing, torch.zeros_like(missing))[:, None]
    kept = features * mask[..., None]
    return Tokens(torch.cat([first, kept], dim=1), torch.cat([absent[:, None], mask], dim=1))
