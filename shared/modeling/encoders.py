"""Words and voices into sequences of features.

Both encoders take a batch of raw inputs and give `Tokens`: padded features and the mask of what is real. Padding never
changes a result: a batch equals its items one by one.
"""

import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import zip_longest

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence
from transformers import BertConfig, BertModel, PreTrainedModel, WhisperConfig, WhisperFeatureExtractor
from transformers.models.whisper.modeling_whisper import WhisperEncoder, WhisperEncoderLayer

from shared.audio import SAMPLE_RATE, Samples

MOST_LETTERS = 4096
"""Enough of a text to tell whether its script is known."""


@dataclass(frozen=True)
class Tokens:
    """A batch of sequences.

    Attributes:
        features: float32, shape [batch, tokens, ...]; zero where the mask is False.
        mask: bool, shape [batch, tokens]; all False in a row that has nothing.
    """

    features: Tensor
    mask: Tensor

    @classmethod
    def padded(cls, sequences: Sequence[Tensor]) -> "Tokens":
        """From sequences of different lengths, each of shape [tokens, ...]."""
        lengths = torch.tensor([len(sequence) for sequence in sequences], device=sequences[0].device)
        features = pad_sequence(list(sequences), batch_first=True)
        return cls(features, length_mask(lengths, features.shape[1]))

    def unpadded(self) -> list[Tensor]:
        """Each sequence's own tokens: what `padded` was made from."""
        return [row[real] for row, real in zip(self.features, self.mask, strict=True)]


@dataclass(frozen=True)
class TokenizedTurn:
    """Token ids of a turn and of those before it; `own` are the places of the turn itself."""

    ids: list[int]
    own: list[int]


@dataclass(frozen=True)
class TurnTokenizer:
    """A conversation's turns as a text encoder reads them.

    First comes the encoder's mark of a beginning and its prefix, then the turns before, each with a separator behind
    it, then the turn and a last separator. What does not fit into `max_tokens` is left out of the turns before, from
    the oldest on, and after that of the turn's end.
    """

    pieces: Tokenizer
    first: int
    separator: int
    unknown: int | None
    padding: int
    prefix: str
    max_tokens: int

    def __post_init__(self) -> None:
        self.pieces.no_padding()
        self.pieces.no_truncation()

    def turn(self, text: str, before: Sequence[str] = ()) -> TokenizedTurn:
        """A turn with those before it, the oldest first."""
        own = self._ids(self.prefix + text)[: self.max_tokens - 2]
        opening = min(len(own), len(self._ids(self.prefix.rstrip())) if self.prefix else 0)
        earlier = [piece for turn in before for piece in (*self._ids(turn), self.separator)]
        earlier = earlier[max(0, len(earlier) - (self.max_tokens - 2 - len(own))) :]
        ids = [self.first, *own[:opening], *earlier, *own[opening:], self.separator]
        return TokenizedTurn(ids, [*range(1 + opening), *range(1 + opening + len(earlier), len(ids))])

    def knows(self, text: str, max_unknown: float) -> bool:
        """Whether the text has letters, and at most the share `max_unknown` of them is not in the vocabulary."""
        letters = [unicodedata.category(letter)[0] in "LN" for letter in text]
        if not any(letters):
            return False
        encoding = self.pieces.encode(text[:MOST_LETTERS], add_special_tokens=False)
        spans = [span for id_, span in zip(encoding.ids, encoding.offsets, strict=True) if id_ == self.unknown]
        seen = encoding.offsets[-1][1] if encoding.offsets else 0
        return sum(sum(letters[start:end]) for start, end in spans) <= max_unknown * sum(letters[:seen])

    def _ids(self, text: str) -> list[int]:
        return self.pieces.encode(text, add_special_tokens=False).ids


class TextEncoderConfig(BaseModel):
    """multilingual-e5-small's shape is the default, but for the vocabulary."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    vocabulary: int
    width: int = 384
    layers: int = 12
    heads: int = 12
    hidden: int = 1536
    positions: int = 512
    padding_id: int = 1
    prefix: str = "query: "
    max_tokens: int = 256
    context_turns: int = 0
    """How many of the turns before a text it is read with."""
    max_unknown: float = 0.2
    """Largest share of a text's letters that may be missing from the vocabulary."""


class TextEncoder(nn.Module):
    """A BERT over an XLM-R vocabulary (Wang et al. 2024, "Multilingual E5 Text Embeddings")."""

    def __init__(self, config: TextEncoderConfig, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.config = config
        self.width = config.width
        self.bert = BertModel(
            BertConfig(
                vocab_size=config.vocabulary,
                hidden_size=config.width,
                num_hidden_layers=config.layers,
                num_attention_heads=config.heads,
                intermediate_size=config.hidden,
                max_position_embeddings=config.positions,
                type_vocab_size=2,
                layer_norm_eps=1e-12,
                pad_token_id=config.padding_id,
            ),
            add_pooling_layer=False,
        )
        first, last, unknown = (_mark(tokenizer, mark) for mark in ("<s>", "</s>", "<unk>"))
        self._turns = TurnTokenizer(
            tokenizer, first, last, unknown, config.padding_id, config.prefix, config.max_tokens
        )

    def knows(self, text: str) -> bool:
        """Whether the text has letters, and nearly all of them are in the vocabulary."""
        return self._turns.knows(text, self.config.max_unknown)

    def forward(self, texts: Sequence[str], context: Sequence[Sequence[str]] | None = None) -> Tokens:
        """Features of shape [batch, tokens, width], of the texts alone: the context is read but not given.

        Args:
            texts: one longer than `max_tokens` is cut at its end.
            context: for every text the turns before it, the oldest first; see `TurnTokenizer`.
        """
        return read_turns(self.bert, self._turns, texts, context)


class SpeechEncoderConfig(BaseModel):
    """The Whisper-base encoder's shape is the default, without its last layer."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    width: int = 512
    layers: int = 5
    heads: int = 8
    hidden: int = 2048
    mels: int = 80
    positions: int = 1500
    first_layer: int = 2
    """The outputs of the layers from this one (counting from 1) to the last are given."""
    pooling: int = 5
    """Frames of 20 ms that are averaged into one token."""

    @property
    def layers_given(self) -> int:
        """How many layers' outputs stand side by side."""
        return self.layers - self.first_layer + 1


class SpeechEncoder(nn.Module):
    """The encoder of Whisper (Radford et al. 2022), run on the clip alone and not on its 30 s window.

    Emotion is clearest in the middle layers, so these are given side by side and the fusion mixes them.
    """

    def __init__(self, config: SpeechEncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.width, self.layers_given = config.width, config.layers_given
        whisper = WhisperConfig(
            d_model=config.width,
            encoder_layers=config.layers,
            encoder_attention_heads=config.heads,
            encoder_ffn_dim=config.hidden,
            num_mel_bins=config.mels,
            max_source_positions=config.positions,
        )
        whisper._attn_implementation = "sdpa"
        self.conv1 = nn.Conv1d(config.mels, config.width, kernel_size=3, padding=1)
        self.conv2 = nn.Conv1d(config.width, config.width, kernel_size=3, stride=2, padding=1)
        self.embed_positions = nn.Embedding(config.positions, config.width)
        self.layers = nn.ModuleList(WhisperEncoderLayer(whisper) for _ in range(config.layers))
        self._extractor = WhisperFeatureExtractor(feature_size=config.mels)

    def forward(self, clips: Sequence[Samples]) -> Tokens:
        """Features of shape [batch, tokens, layers given, width], ten tokens a second.

        A clip longer than the positions last (30 s) is encoded in windows of that length.
        """
        size = self.config.positions * 2 * self._extractor.hop_length
        return in_windows(clips, size, self._encode)

    def _encode(self, windows: Sequence[Samples]) -> list[Tensor]:
        states = mel_states(self, self._extractor, windows, tuple(range(self.config.first_layer, len(self.layers) + 1)))
        return [pooled(one, self.config.pooling) for one in states]


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


def read_turns(
    model: PreTrainedModel,
    tokenizer: "TurnTokenizer",
    texts: Sequence[str],
    context: Sequence[Sequence[str]] | None = None,
) -> Tokens:
    """The last hidden states of the texts' own tokens, having read them with their context."""
    turns = [tokenizer.turn(text, before) for text, before in zip(texts, context or [()] * len(texts), strict=True)]
    ids = [torch.tensor(turn.ids, device=model.device) for turn in turns]
    padded = pad_sequence(ids, batch_first=True, padding_value=tokenizer.padding)
    mask = length_mask(torch.tensor([len(row) for row in ids], device=model.device), padded.shape[1])
    hidden = model(input_ids=padded, attention_mask=mask.long()).last_hidden_state.float()
    return Tokens.padded([states[turn.own] for states, turn in zip(hidden, turns, strict=True)])


def in_windows(clips: Sequence[Samples], size: int, encode: Callable[[Sequence[Samples]], list[Tensor]]) -> Tokens:
    """Encode clips of which those longer than `size` samples are cut into windows of that length.

    Args:
        encode: gives a tensor of shape [tokens, ...] for every window.
    """
    encoded: list[list[Tensor]] = [[] for _ in clips]
    # Clips side by side, but a long clip's windows one after another: together they would take gigabytes.
    for together in zip_longest(*(_windows(clip, size) for clip in clips)):
        rows = [row for row, window in enumerate(together) if window is not None]
        for row, states in zip(rows, encode([together[row] for row in rows]), strict=True):
            encoded[row].append(states)
    return Tokens.padded([torch.cat(parts) for parts in encoded])


def mel_states(
    encoder: "SpeechEncoder | WhisperEncoder",
    extractor: WhisperFeatureExtractor,
    windows: Sequence[Samples],
    layers: Sequence[int],
) -> list[Tensor]:
    """The outputs of some of a Whisper encoder's layers, each window run on its own length, not on 30 s.

    Args:
        layers: counting from 1; 0 is what goes into the first.

    Returns:
        For every window a tensor of shape [frames of 20 ms, layers, width].
    """
    mels = [_mel(extractor, window).to(encoder.conv1.weight) for window in windows]
    frames = torch.tensor([len(mel) for mel in mels], device=mels[0].device)
    hidden, mask = _frames(encoder, pad_sequence(mels, batch_first=True), frames)
    bias = hidden.new_zeros(mask.shape).masked_fill(~mask, torch.finfo(hidden.dtype).min)
    given = {0: hidden}
    for number, layer in enumerate(encoder.layers, start=1):
        hidden = layer(hidden, attention_mask=bias[:, None, None, :].expand(-1, 1, hidden.shape[1], -1))
        given[number] = hidden
    stacked = torch.stack([given[number] for number in layers], dim=2)
    return [states[real] for states, real in zip(stacked, mask, strict=True)]


def pooled(states: Tensor, size: int) -> Tensor:
    """The means of every `size` frames, and of what is left at the end."""
    return torch.stack([part.mean(dim=0) for part in states.float().split(size)])


def length_mask(lengths: Tensor, size: int) -> Tensor:
    """True for the first `lengths` of `size`, shape [batch, size]."""
    return torch.arange(size, device=lengths.device)[None] < lengths[:, None]


def _mark(tokenizer: Tokenizer, mark: str) -> int:
    id_ = tokenizer.token_to_id(mark)
    if id_ is None:
        raise ValueError(f"the tokenizer has no {mark}, as that of XLM-R has")
    return id_


def _windows(clip: Samples, size: int) -> list[Samples]:
    edges = range(0, max(1, clip.size - SAMPLE_RATE // 10), size)
    return [clip[start : start + size] for start in edges]


def _mel(extractor: WhisperFeatureExtractor, window: Samples) -> Tensor:
    """Log-mel frames of shape [frames, mels], scaled as Whisper does; at least 0.1 s of them."""
    sound = np.pad(window, (0, max(0, SAMPLE_RATE // 10 - window.size)))
    mel = extractor(sound, sampling_rate=SAMPLE_RATE, padding="longest", truncation=False)
    return torch.as_tensor(np.asarray(mel["input_features"][0])).T


def _frames(encoder: "SpeechEncoder | WhisperEncoder", mels: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """What goes into the first layer, and which frames of it are real."""
    hidden = functional.gelu(encoder.conv1(mels.transpose(1, 2)))
    # Past its end, a clip must look to the second convolution as it would alone: zero.
    hidden = hidden * length_mask(lengths, hidden.shape[2])[:, None]
    hidden = functional.gelu(encoder.conv2(hidden)).transpose(1, 2)
    hidden = hidden + encoder.embed_positions.weight[: hidden.shape[1]]
    return hidden, length_mask((lengths + 1) // 2, hidden.shape[1])
