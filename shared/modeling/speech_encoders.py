"""Speech encoders: turn the audio of a turn into a sequence of features.

Padding never changes a result: encoding a batch gives the same features as encoding its items one by one.
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
    """Shapes. The defaults are those of the encoder of Whisper base, without its last layer."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    width: int = 512
    layers: int = 5
    heads: int = 8
    hidden: int = 2048
    mels: int = 80
    positions: int = 1500
    first_layer: int = 2
    """The encoder returns the outputs of the layers from this one (counted from 1) to the last."""
    pooling: int = 5
    """Number of frames, of 20 ms each, that are averaged into one token."""

    @property
    def output_layer_count(self) -> int:
        """Number of layers whose outputs are returned."""
        return self.layers - self.first_layer + 1


class SpeechEncoder(nn.Module):
    """The encoder of Whisper (Radford et al. 2022), run on the clip itself and not on a window padded to 30 s.

    Emotion is clearest in the middle layers, so the outputs of several layers are returned and the fusion weights them.
    """

    def __init__(self, config: SpeechEncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.width, self.output_layer_count = config.width, config.output_layer_count
        whisper = WhisperConfig(
            d_model=config.width,
            encoder_layers=config.layers,
            encoder_attention_heads=config.heads,
            encoder_ffn_dim=config.hidden,
            num_mel_bins=config.mels,
            max_source_positions=config.positions,
        )
        whisper._attn_implementation = "sdpa"  # pyright: ignore[reportPrivateUsage] - not an argument
        self.conv1 = nn.Conv1d(config.mels, config.width, kernel_size=3, padding=1)
        self.conv2 = nn.Conv1d(config.width, config.width, kernel_size=3, stride=2, padding=1)
        self.embed_positions = nn.Embedding(config.positions, config.width)
        self.layers = nn.ModuleList(WhisperEncoderLayer(whisper) for _ in range(config.layers))
        self._extractor = WhisperFeatureExtractor(feature_size=config.mels)

    def forward(self, clips: Sequence[Samples]) -> Tokens:
        """Returns features of shape [batch, tokens, layers, width], ten tokens per second.

        A clip longer than the encoder's positions cover (30 s) is encoded in windows of that length.
        """
        size = self.config.positions * 2 * self._extractor.hop_length
        return encode_in_windows(clips, size, self._encode)

    def _encode(self, windows: Sequence[Samples]) -> list[Tensor]:
        layers = range(self.config.first_layer, len(self.layers) + 1)
        states = whisper_hidden_states(self, self._extractor, windows, layers)
        return [pool_frames(one, self.config.pooling) for one in states]


def encode_in_windows(
    clips: Sequence[Samples], size: int, encode: Callable[[Sequence[Samples]], list[Tensor]]
) -> Tokens:
    """Returns the features of some clips, shape [batch, tokens, ...]. Longer clips are cut into windows first.

    Args:
        clips: 16 kHz mono audio, each of shape [samples].
        size: longest window, in samples.
        encode: returns a tensor of shape [tokens, ...] for each of some windows.
    """
    encoded: list[list[Tensor]] = [[] for _ in clips]
    # Windows of different clips share a batch. Windows of the same clip do not, as a long clip would take gigabytes.
    for batch in zip_longest(*(_windows(clip, size) for clip in clips)):
        rows = [row for row, window in enumerate(batch) if window is not None]
        for row, states in zip(rows, encode([batch[row] for row in rows]), strict=True):
            encoded[row].append(states)
    return Tokens.padded([torch.cat(parts) for parts in encoded])


def whisper_hidden_states(
    encoder: "SpeechEncoder | WhisperEncoder",
    extractor: WhisperFeatureExtractor,
    windows: Sequence[Samples],
    layers: Sequence[int],
) -> list[Tensor]:
    """Returns the outputs of some layers of a Whisper encoder, run on each window's own length and not on 30 s.

    Args:
        encoder: the encoder of a Whisper model.
        extractor: computes log-mel spectrograms as Whisper does.
        windows: 16 kHz mono audio, each of shape [samples].
        layers: layers counted from 1; 0 is the input of the first layer.

    Returns:
        For each window a tensor of shape [frames of 20 ms, layers, width].
    """
    mels = [_log_mel(extractor, window).to(encoder.conv1.weight) for window in windows]
    lengths = torch.tensor([len(mel) for mel in mels], device=mels[0].device)
    hidden, mask = _first_layer_input(encoder, pad_sequence(mels, batch_first=True), lengths)
    bias = hidden.new_zeros(mask.shape).masked_fill(~mask, torch.finfo(hidden.dtype).min)
    outputs = {0: hidden}
    for number, layer in enumerate(encoder.layers, start=1):
        hidden = layer(hidden, attention_mask=bias[:, None, None, :].expand(-1, 1, hidden.shape[1], -1))
        outputs[number] = hidden
    stacked = torch.stack([outputs[number] for number in layers], dim=2)
    return [states[real] for states, real in zip(stacked, mask, strict=True)]


def pool_frames(states: Tensor, size: int) -> Tensor:
    """Returns the mean of every `size` frames, and of the fewer frames that remain at the end."""
    return torch.stack([part.mean(dim=0) for part in torch.split(states.float(), size)])


def _windows(clip: Samples, size: int) -> list[Samples]:
    # A rest of less than 0.1 s is too short to be a window of its own and is dropped.
    starts = range(0, max(1, clip.size - SAMPLE_RATE // 10), size)
    return [clip[start : start + size] for start in starts]


def _log_mel(extractor: WhisperFeatureExtractor, window: Samples) -> Tensor:
    """Returns a log-mel spectrogram of shape [frames of 10 ms, mels], of at least 0.1 s."""
    padded = np.pad(window, (0, max(0, SAMPLE_RATE // 10 - window.size)))
    mel = extractor(padded, sampling_rate=SAMPLE_RATE, padding="longest", truncation=False)
    return torch.as_tensor(np.asarray(mel["input_features"][0])).T


def _first_layer_input(
    encoder: "SpeechEncoder | WhisperEncoder", mels: Tensor, lengths: Tensor
) -> tuple[Tensor, Tensor]:
    """Returns the input of the first layer, shape [batch, frames of 20 ms, width], and the mask of its real frames."""
    hidden = functional.gelu(encoder.conv1(mels.transpose(1, 2)))
    # The second convolution also sees frames past a clip's end: they are zero, as if the clip were encoded alone.
    hidden = hidden * length_mask(lengths, hidden.shape[2])[:, None]
    hidden = functional.gelu(encoder.conv2(hidden)).transpose(1, 2)
    hidden = hidden + encoder.embed_positions.weight[: hidden.shape[1]]
    return hidden, length_mask((lengths + 1) // 2, hidden.shape[1])
