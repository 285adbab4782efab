"""Fusion: words and voice, either of which may be missing, into an emotion."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn
from torch.nn import functional

from shared.modeling.audio_classifiers import PatchTransformer, PatchTransformerConfig
from shared.modeling.baseline import SpeakerBaseline, SpeakerPrior, summaries
from shared.modeling.tokens import Standardization, Tokens


class FusionConfig(BaseModel):
    """Kind and shapes. `text_width`, `voice_width` and `voice_layers` are the encoders'."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["concat", "gated", "cross_attention", "patch_transformer"] = "cross_attention"
    pooling: Literal["mean", "attentive"] = "attentive"
    categories: int = 7
    text_width: int = 384
    voice_width: int = 512
    voice_layers: int = 4
    width: int = 256
    heads: int = 4
    hidden: int = 512
    pooling_heads: int = 4
    head_width: int = 128
    dropout: float = 0.4
    relative: bool = False
    """Whether a voice is read against its speaker's baseline."""
    patches: PatchTransformerConfig | None = None
    """Shapes of a patch transformer, but for the features and categories, which are the others'."""

    @property
    def summary_shape(self) -> tuple[int, int, int]:
        """Of a turn's voice summary, see `shared.modeling.baseline`."""
        return (2, self.voice_layers, self.voice_width)


@dataclass(frozen=True)
class Fused:
    """What the fusion makes of a batch.

    Attributes:
        logits: shape [batch, categories].
        valence: in [-1, 1], shape [batch].
    """

    logits: Tensor
    valence: Tensor


class Fusion(nn.Module):
    """Both modalities pooled over their tokens and put side by side go into the heads.

    A missing modality is one learned token. Made by `fusion_of`; the other kinds refine this one.
    """

    def __init__(self, config: FusionConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.voice_standard = Standardization(config.voice_layers, config.voice_width)
        self.text_standard = Standardization(config.text_width)
        if config.relative:
            self.speakers = SpeakerPrior(config.summary_shape)
            self.summary = nn.Linear(math.prod(config.summary_shape), config.categories + 1)
            nn.init.zeros_(self.summary.weight)
        self.voice_mix = nn.Parameter(torch.zeros(config.voice_layers))
        self.voice_in = _projection(config.voice_width, width, config.dropout)
        self.text_in = _projection(config.text_width, width, config.dropout)
        self.no_voice = nn.Parameter(torch.randn(width) * 0.02)
        self.no_text = nn.Parameter(torch.randn(width) * 0.02)
        self.voice_pool, self.text_pool = _pooling(config), _pooling(config)
        joined = self._joined_width(self.voice_pool.width)
        self.head = nn.Sequential(
            nn.LayerNorm(joined),
            nn.Dropout(config.dropout),
            nn.Linear(joined, config.head_width),
            nn.GELU(),
            nn.Dropout(config.dropout),
        )
        self.emotion = nn.Linear(config.head_width, config.categories)
        self.valence = nn.Linear(config.head_width, 1)

    def forward(self, text: Tokens, voice: Tokens, baseline: SpeakerBaseline | None = None) -> Fused:
        """Fuse a batch; a row whose mask is all False lacks that modality.

        Args:
            text: features of shape [batch, tokens, text width].
            voice: features of shape [batch, tokens, voice layers, voice width].
            baseline: how the rows' speakers usually sound; not known if not given.
        """
        change = self._change(voice, baseline) if self.config.relative else None
        mix = torch.softmax(self.voice_mix, dim=0)
        heard = voice.features if change is None else voice.features - change.offset[:, None]
        mixed = torch.einsum("btlw,l->btw", self.voice_standard(heard), mix)
        words = _or_missing(self.text_in(self.text_standard(text.features)), text.mask, self.no_text)
        sound = _or_missing(self.voice_in(mixed), voice.mask, self.no_voice)
        words, sound = self._attended(words, sound)
        state = self.head(self._joined(self.text_pool(words), self.voice_pool(sound)))
        logits, valence = self.emotion(state), self.valence(state)
        if change is not None:
            logits, valence = logits + change.logits[:, :-1], valence + change.logits[:, -1:]
        return Fused(logits, torch.tanh(valence).squeeze(-1))

    def fit(self, text: Sequence[Tokens], voice: Sequence[Tokens]) -> None:
        """Measure what the encoders make of some training data."""
        for standard, parts in ((self.text_standard, text), (self.voice_standard, voice)):
            features = [part.features[part.mask] for part in parts if part.mask.any()]
            if features:
                standard.fit(torch.cat(features))

    def _change(self, voice: Tokens, baseline: SpeakerBaseline | None) -> "_Change":
        """What is different from how the speaker usually sounds."""
        summary = summaries(voice)
        expected, deviation = self.speakers.expected(baseline or SpeakerBaseline.none(summary))
        change = ((summary - expected) / deviation).clamp(-6, 6) * voice.mask.any(dim=1)[:, None, None, None]
        return _Change(
            offset=expected[:, 0] - self.speakers.mean[0],
            logits=self.summary(functional.dropout(change.flatten(1), self.config.dropout, self.training)),
        )

    def _attended(self, words: Tokens, sound: Tokens) -> tuple[Tokens, Tokens]:
        return words, sound

    def _joined(self, words: Tensor, sound: Tensor) -> Tensor:
        return torch.cat([words, sound], dim=-1)

    def _joined_width(self, pooled: int) -> int:
        return 2 * pooled


@dataclass(frozen=True)
class _Change:
    """Against a speaker's baseline.

    Attributes:
        offset: how far the speaker's usual features lie from everybody's, shape [batch, layers, width].
        logits: what the change of the voice as a whole tells, shape [batch, categories + 1], the last for the valence.
    """

    offset: Tensor
    logits: Tensor


class GatedFusion(Fusion):
    """Both pooled modalities are weighed against each other, feature by feature, and added.

    Gated multimodal units: Arevalo et al. 2017, "Gated Multimodal Units for Information Fusion".
    """

    def __init__(self, config: FusionConfig) -> None:
        super().__init__(config)
        pooled = self.voice_pool.width
        self.voice_state = nn.Linear(pooled, config.width)
        self.text_state = nn.Linear(pooled, config.width)
        self.gate = nn.Linear(2 * pooled, config.width)

    def _joined(self, words: Tensor, sound: Tensor) -> Tensor:
        share = torch.sigmoid(self.gate(super()._joined(words, sound)))
        return share * torch.tanh(self.text_state(words)) + (1 - share) * torch.tanh(self.voice_state(sound))

    def _joined_width(self, pooled: int) -> int:
        return self.config.width


class CrossAttentionFusion(Fusion):
    """Each modality's tokens attend to themselves, then to the other's, before they are pooled."""

    def __init__(self, config: FusionConfig) -> None:
        super().__init__(config)
        self.voice_self, self.text_self, self.voice_cross, self.text_cross = (
            _Attention(config.width, config.heads, config.hidden, config.dropout) for _ in range(4)
        )

    def _attended(self, words: Tokens, sound: Tokens) -> tuple[Tokens, Tokens]:
        words = Tokens(self.text_self(words, words), words.mask)
        sound = Tokens(self.voice_self(sound, sound), sound.mask)
        heard = Tokens(self.text_cross(words, sound), words.mask)
        return heard, Tokens(self.voice_cross(sound, words), sound.mask)


class VoicePatches(nn.Module):
    """No fusion at all: the last given layer's mean over time, read by a patch transformer. It knows no valence."""

    def __init__(self, config: FusionConfig) -> None:
        super().__init__()
        self.config = config
        if config.relative:
            raise ValueError("a patch transformer knows no speakers: relative must be false")
        shapes = {"features": config.voice_width, "categories": config.categories}
        self.patches = PatchTransformer((config.patches or PatchTransformerConfig()).model_copy(update=shapes))

    def forward(self, text: Tokens, voice: Tokens, baseline: SpeakerBaseline | None = None) -> Fused:
        """Read a batch's voices, see `Fusion`."""
        logits = self.patches(_last_mean(voice))
        return Fused(logits, logits.new_zeros(len(logits)))

    def fit(self, text: Sequence[Tokens], voice: Sequence[Tokens]) -> None:
        """Measure what the encoders make of some training data."""
        self.patches.standard.fit(torch.cat([_last_mean(part) for part in voice if part.mask.any()]))


AnyFusion = Fusion | VoicePatches


def fusion_of(config: FusionConfig) -> AnyFusion:
    """A new fusion of the configured kind."""
    kinds: dict[str, type[AnyFusion]] = {
        "concat": Fusion,
        "gated": GatedFusion,
        "cross_attention": CrossAttentionFusion,
        "patch_transformer": VoicePatches,
    }
    return kinds[config.kind](config)


class FusionEnsemble(nn.Module):
    """Fusions trained alike from different seeds; their logits and valences are averaged."""

    def __init__(self, members: Sequence[AnyFusion]) -> None:
        super().__init__()
        self.config = members[0].config
        self.members = nn.ModuleList(members)

    def forward(self, text: Tokens, voice: Tokens, baseline: SpeakerBaseline | None = None) -> Fused:
        fused: list[Fused] = [member(text, voice, baseline) for member in self.members]
        return Fused(
            torch.stack([one.logits for one in fused]).mean(dim=0),
            torch.stack([one.valence for one in fused]).mean(dim=0),
        )


class _Attention(nn.Module):
    """A pre-norm attention block: the queries' tokens look at the keys', which may be their own."""

    def __init__(self, width: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, dropout=dropout, batch_first=True)
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden, width)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, queries: Tokens, keys: Tokens) -> Tensor:
        seen = self.norm(keys.features)
        attended, _ = self.attention(
            self.norm(queries.features), seen, seen, key_padding_mask=~keys.mask, need_weights=False
        )
        hidden = queries.features + self.dropout(attended)
        return hidden + self.dropout(self.feed_forward(hidden))


class _MeanPooling(nn.Module):
    """The mean over the tokens; shape [batch, width]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, tokens: Tokens) -> Tensor:
        real = tokens.mask[..., None]
        return (tokens.features * real).sum(dim=1) / real.sum(dim=1)


class _StatisticsPooling(nn.Module):
    """Means and standard deviations over the tokens, by several attentions; shape [batch, 2 x heads x width].

    Attentive statistics pooling: Okabe et al. 2018.
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


def _last_mean(voice: Tokens) -> Tensor:
    return summaries(voice)[:, 0, -1]


def _projection(width_in: int, width_out: int, dropout: float) -> nn.Module:
    return nn.Sequential(nn.LayerNorm(width_in), nn.Dropout(dropout), nn.Linear(width_in, width_out))


def _or_missing(features: Tensor, mask: Tensor, missing: Tensor) -> Tokens:
    """The tokens, and the learned one in front of the rows that have none."""
    absent = ~mask.any(dim=1)
    first = torch.where(absent[:, None], missing, torch.zeros_like(missing))[:, None]
    kept = features * mask[..., None]
    return Tokens(torch.cat([first, kept], dim=1), torch.cat([absent[:, None], mask], dim=1))
