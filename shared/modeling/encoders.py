"""Words and voices into sequences of features.

Both encoders take a batch of raw inputs and give `Tokens`: padded features and the mask of what is real. Padding never
changes a result: a batch equals its items one by one.
"""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence
from transformers import BertConfig, BertModel, WhisperConfig, WhisperFeatureExtractor
from transformers.models.whisper.modeling_whisper import WhisperEncoderLayer

from shared.audio import SAMPLE_RATE, Samples


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
        return cls(features, _mask(lengths, features.shape[1]))


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
    max_unknown: float = 0.2
    """Largest share of a text's letters that may be missing from the vocabulary."""


class TextEncoder(nn.Module):
    """A BERT over an XLM-R vocabulary (Wang et al. 2024, "Multilingual E5 Text Embeddings")."""

    def __init__(self, config: TextEncoderConfig, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.config = config
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
        self._tokenizer = tokenizer
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(config.max_tokens)
        self._unknown_id = tokenizer.token_to_id("<unk>")

    def knows(self, text: str) -> bool:
        """Whether the text has letters, and nearly all of them are in the vocabulary."""
        letters = [unicodedata.category(letter)[0] in "LN" for letter in text]
        if not any(letters):
            return False
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        spans = [span for id_, span in zip(encoding.ids, encoding.offsets, strict=True) if id_ == self._unknown_id]
        seen = encoding.offsets[-1][1] if encoding.offsets else 0
        unknown = sum(sum(letters[start:end]) for start, end in spans)
        return unknown <= self.config.max_unknown * sum(letters[:seen])

    def forward(self, texts: Sequence[str]) -> Tokens:
        """Features of shape [batch, tokens, width]; a text longer than `max_tokens` is cut."""
        encodings = self._tokenizer.encode_batch([self.config.prefix + text for text in texts])
        device = self.bert.embeddings.word_embeddings.weight.device
        ids = [torch.tensor(encoding.ids, device=device) for encoding in encodings]
        lengths = torch.tensor([len(sequence) for sequence in ids], device=device)
        padded = pad_sequence(ids, batch_first=True, padding_value=self.config.padding_id)
        mask = _mask(lengths, padded.shape[1])
        hidden = self.bert(input_ids=padded, attention_mask=mask.long()).last_hidden_state
        return Tokens(hidden.float() * mask[..., None], mask)


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
        return self.layers - self.first_layer + 1


class SpeechEncoder(nn.Module):
    """The encoder of Whisper (Radford et al. 2022), run on the clip alone and not on its 30 s window.

    Emotion is clearest in the middle layers, so these are given side by side and the fusion mixes them.
    """

    def __init__(self, config: SpeechEncoderConfig) -> None:
        super().__init__()
        self.config = config
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
        encoded: list[list[Tensor]] = [[] for _ in clips]
        # Clips side by side, but a long clip's windows one after another: together they would take gigabytes.
        for together in zip_longest(*(self._windows(clip) for clip in clips)):
            rows = [row for row, window in enumerate(together) if window is not None]
            for row, states in zip(rows, self._encode([together[row] for row in rows]), strict=True):
                encoded[row].append(states)
        return Tokens.padded([torch.cat(parts) for parts in encoded])

    def _windows(self, clip: Samples) -> list[Samples]:
        size = self.config.positions * 2 * self._extractor.hop_length
        edges = range(0, max(1, clip.size - SAMPLE_RATE // 10), size)
        return [clip[start : start + size] for start in edges]

    def _mel(self, window: Samples) -> Tensor:
        """Log-mel frames of shape [frames, mels], scaled as Whisper does; at least 0.1 s of them."""
        sound = np.pad(window, (0, max(0, SAMPLE_RATE // 10 - window.size)))
        mel = self._extractor(sound, sampling_rate=SAMPLE_RATE, padding="longest", truncation=False)
        return torch.as_tensor(np.asarray(mel["input_features"][0]), device=self.conv1.weight.device).T

    def _encode(self, windows: Sequence[Samples]) -> list[Tensor]:
        mels = [self._mel(window) for window in windows]
        frames = torch.tensor([len(mel) for mel in mels], device=mels[0].device)
        hidden = functional.gelu(self.conv1(pad_sequence(mels, batch_first=True).transpose(1, 2)))
        # Past its end, a clip must look to the second convolution as it would alone: zero.
        hidden = hidden * _mask(frames, hidden.shape[2])[:, None]
        hidden = functional.gelu(self.conv2(hidden)).transpose(1, 2)
        lengths = (frames + 1) // 2
        mask = _mask(lengths, hidden.shape[1])
        hidden = hidden + self.embed_positions.weight[: hidden.shape[1]]
        bias = torch.zeros(mask.shape, device=hidden.device).masked_fill(~mask, torch.finfo(torch.float32).min)
        given: list[Tensor] = []
        for number, layer in enumerate(self.layers, start=1):
            hidden = layer(hidden, attention_mask=bias[:, None, None, :].expand(-1, 1, hidden.shape[1], -1))
            if number >= self.config.first_layer:
                given.append(hidden)
        stacked = torch.stack(given, dim=2)
        return [
            _pooled(states[:length], self.config.pooling)
            for states, length in zip(stacked, lengths.tolist(), strict=True)
        ]


def _pooled(states: Tensor, size: int) -> Tensor:
    """The means of every `size` frames, and of what is left at the end."""
    return torch.stack([part.mean(dim=0) for part in states.float().split(size)])


def _mask(lengths: Tensor, size: int) -> Tensor:
    return torch.arange(size, device=lengths.device)[None] < lengths[:, None]
