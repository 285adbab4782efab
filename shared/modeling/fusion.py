"""Cross-attention fusion: words and voice, either of which may be missing, into an emotion."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from shared.modeling.encoders import Tokens


class FusionConfig(BaseModel):
    """Shapes. `text_width`, `voice_width` and `voice_layers` are the encoders'."""

    model_config = ConfigDict(frozen=True, extra="forbid")

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


@dataclass(frozen=True)
class Fused:
    """What the fusion makes of a batch.

    Attributes:
        logits: shape [batch, categories].
        valence: in [-1, 1], shape [batch].
    """

    logits: Tensor
    valence: Tensor


class CrossAttentionFusion(nn.Module):
    """Each modality attends to itself, then to the other; attentive statistics of both go into the heads.

    A missing modality is one learned token. Attentive statistics pooling: Okabe et al. 2018.
    """

    def __init__(self, config: FusionConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.voice_standard = Standardization(config.voice_layers, config.voice_width)
        self.text_standard = Standardization(config.text_width)
        self.voice_mix = nn.Parameter(torch.zeros(config.voice_layers))
        self.voice_in = _projection(config.voice_width, width, config.dropout)
        self.text_in = _projection(config.text_width, width, config.dropout)
        self.no_voice = nn.Parameter(torch.randn(width) * 0.02)
        self.no_text = nn.Parameter(torch.randn(width) * 0.02)
        self.voice_self, self.text_self, self.voice_cross, self.text_cross = (
            _Attention(width, config.heads, config.hidden, config.dropout) for _ in range(4)
        )
        self.voice_pool = _StatisticsPooling(width, config.pooling_heads)
        self.text_pool = _StatisticsPooling(width, config.pooling_heads)
        pooled = 2 * self.voice_pool.width
        self.head = nn.Sequential(
            nn.LayerNorm(pooled),
            nn.Dropout(config.dropout),
            nn.Linear(pooled, config.head_width),
            nn.GELU(),
            nn.Dropout(config.dropout),
        )
        self.emotion = nn.Linear(config.head_width, config.categories)
        self.valence = nn.Linear(config.head_width, 1)

    def forward(self, text: Tokens, voice: Tokens) -> Fused:
        """Fuse a batch; a row whose mask is all False lacks that modality.

        Args:
            text: features of shape [batch, tokens, text width].
            voice: features of shape [batch, tokens, voice layers, voice width].
        """
        mix = torch.softmax(self.voice_mix, dim=0)
        mixed = torch.einsum("btlw,l->btw", self.voice_standard(voice.features), mix)
        words = _or_missing(self.text_in(self.text_standard(text.features)), text.mask, self.no_text)
        sound = _or_missing(self.voice_in(mixed), voice.mask, self.no_voice)
        words = Tokens(self.text_self(words, words), words.mask)
        sound = Tokens(self.voice_self(sound, sound), sound.mask)
        words_heard = Tokens(self.text_cross(words, sound), words.mask)
        sound_read = Tokens(self.voice_cross(sound, words), sound.mask)
        state = self.head(torch.cat([self.text_pool(words_heard), self.voice_pool(sound_read)], dim=-1))
        return Fused(self.emotion(state), torch.tanh(self.valence(state)).squeeze(-1))


class FusionEnsemble(nn.Module):
    """Fusions trained alike from different seeds; their logits and valences are averaged."""

    def __init__(self, members: Sequence[CrossAttentionFusion]) -> None:
        super().__init__()
        self.config = members[0].config
        self.members = nn.ModuleList(members)

    def forward(self, text: Tokens, voice: Tokens) -> Fused:
        fused: list[Fused] = [member(text, voice) for member in self.members]
        return Fused(
            torch.stack([one.logits for one in fused]).mean(dim=0),
            torch.stack([one.valence for one in fused]).mean(dim=0),
        )


class Standardization(nn.Module):
    """Makes every feature's mean 0 and deviation 1 over the training data's tokens.

    A few features of a pretrained encoder are tens of times as large as the rest, which a layer norm would drown.
    """

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.mean: Tensor
        self.deviation: Tensor
        self.register_buffer("mean", torch.zeros(shape))
        self.register_buffer("deviation", torch.ones(shape))

    def fit(self, features: Tensor) -> None:
        """Measure features of shape [tokens, *shape]."""
        self.mean.copy_(features.mean(dim=0))
        self.deviation.copy_(features.std(dim=0).clamp(min=1e-3))

    def forward(self, features: Tensor) -> Tensor:
        return (features - self.mean) / self.deviation


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


class _StatisticsPooling(nn.Module):
    """Means and standard deviations over the tokens, by several attentions; shape [batch, 2 x heads x width]."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.width = 2 * heads * width
        self.score = nn.Sequential(nn.Linear(width, width // 4), nn.Tanh(), nn.Linear(width // 4, heads))

    def forward(self, tokens: Tokens) -> Tensor:
        scores = self.score(tokens.features).masked_fill(~tokens.mask[..., None], torch.finfo(torch.float32).min)
        weights = torch.softmax(scores, dim=1)
        mean = torch.einsum("bth,btw->bhw", weights, tokens.features)
        square = torch.einsum("bth,btw->bhw", weights, tokens.features**2)
        deviation = (square - mean**2).clamp(min=1e-5).sqrt()
        return torch.cat([mean, deviation], dim=-1).flatten(1)


def _projection(width_in: int, width_out: int, dropout: float) -> nn.Module:
    return nn.Sequential(nn.LayerNorm(width_in), nn.Dropout(dropout), nn.Linear(width_in, width_out))


def _or_missing(features: Tensor, mask: Tensor, missing: Tensor) -> Tokens:
    """The tokens, and the learned one in front of the rows that have none."""
    absent = ~mask.any(dim=1)
    first = torch.where(absent[:, None], missing, torch.zeros_like(missing))[:, None]
    kept = features * mask[..., None]
    return Tokens(torch.cat([first, kept], dim=1), torch.cat([absent[:, None], mask], dim=1))
