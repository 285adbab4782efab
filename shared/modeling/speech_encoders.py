"""Speech encoders: clips of audio to sequences of features.

Padding never changes a result: a batch equals its items one by one.
"""

from collections.abc import Callable, Sequence
from itertools import zip_longest

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence
from transformers import WhisperConfig, WhisperFeatureExtractor
from transformers.models.whisper.modeling_whisper import WhisperEncoder, WhisperEncoderLayer

from shared.audio.decoder import SAMPLE_RATE, Samples
from shared.modeling.tokens import Tokens, length_mask


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
