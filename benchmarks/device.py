"""`tenor bench device`: clips per second of the encoders on a device, and their share of its matrix rate.

The weights are random, since they do not change the speed. The shapes are those of the published models.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    PreTrainedTokenizerFast,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2Model,
    WhisperConfig,
    WhisperFeatureExtractor,
    XLMRobertaConfig,
    XLMRobertaModel,
)
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from shared.audio.decoder import SAMPLE_RATE
from shared.errors import BundleError
from shared.modeling.execution import Execution
from shared.modeling.loading import (
    AnySpeechEncoder,
    AnyTextEncoder,
    bundle_folder,
    load_speech_encoder,
    load_text_encoder,
    read_manifest,
)
from shared.modeling.pipeline import MIN_TOKENS
from shared.modeling.pretrained_encoders import (
    PretrainedSpeechConfig,
    PretrainedSpeechEncoder,
    PretrainedTextConfig,
    PretrainedTextEncoder,
)
from shared.settings import BatchLimits, Settings

XLM_R_BASE = XLMRobertaConfig(
    vocab_size=250_002,
    hidden_size=768,
    num_hidden_layers=12,
    num_attention_heads=12,
    intermediate_size=3072,
    max_position_embeddings=514,
    type_vocab_size=1,
)
"""The shape in the config.json of FacebookAI/xlm-roberta-base."""
XLS_R_300M = Wav2Vec2Config(
    hidden_size=1024,
    num_hidden_layers=24,
    num_attention_heads=16,
    intermediate_size=4096,
    conv_bias=True,
    feat_extract_norm="layer",
    do_stable_layer_norm=True,
)
"""The shape in the config.json of facebook/wav2vec2-xls-r-300m."""
XLS_R_LAYERS = (9, 12, 15, 18)
"""The layers whose outputs the bundle `full` uses."""
WHISPER_TURBO = WhisperConfig(
    num_mel_bins=128, d_model=1280, encoder_layers=32, encoder_attention_heads=20, encoder_ffn_dim=5120
)
"""The encoder's shape in the config.json of openai/whisper-large-v3-turbo. There is no decoder."""

WORDS_PER_SECOND = 3
ON_GPU, ON_CPU = (1, 4, 16, 64, 256), (1, 4, 16)
"""The default numbers of clips in flight."""
MATRIX_SIZES = {"cuda": 8192, "cpu": 1024}
"""Edges of square matrices that are large enough for the full rate of the device."""


class DeviceFigure(BaseModel):
    """The speed of one encoder with a number of clips in flight.

    Attributes:
        in_flight: clips that were submitted at the same moment.
        batch_size: clips that went through the encoder at once, as the settings' batch limits allow.
        p50_s: median of the seconds from the submission of all clips until the batch of a clip was done.
        p95_s: 95th percentile of the same.
        flops_per_s: operations of the encoder's matrix products; a multiplication with its addition counts as two.
        share: `flops_per_s` divided by the rate of one large matrix product in the same precision.
    """

    encoder: str
    in_flight: int
    batch_size: int
    clips_per_s: float
    p50_s: float
    p95_s: float
    flops_per_s: float
    share: float


@dataclass(frozen=True)
class EncoderSpec:
    """An encoder to measure, and its input.

    Attributes:
        make: creates the encoder on PyTorch's default device.
        clip: the input of one clip: a text, or float32 samples.
        size: of the clip, in the unit of `limits.budget`.
        limits: of a batch.
    """

    name: str
    make: Callable[[], AnyTextEncoder | AnySpeechEncoder]
    clip: Any
    size: float
    limits: BatchLimits

    @property
    def batch_size(self) -> int:
        """The most clips that a batch holds."""
        return max(1, min(self.limits.items, int(self.limits.budget / self.size)))


def measure(
    settings: Settings, specs: Sequence[EncoderSpec], sizes: Sequence[int] | None, rounds: int
) -> Iterator[DeviceFigure]:
    """Yield the figures of each encoder with each number of clips in flight.

    Args:
        settings: choose the device, the precision and the compilation.
        specs: the encoders.
        sizes: numbers of clips in flight; None for `ON_GPU` or `ON_CPU`.
        rounds: how often the clips are submitted; the clips of a round are submitted at the same moment.

    Raises:
        SetupError: the device is missing, or does not support the settings.
    """
    torch.set_num_threads(1)  # as in a worker
    execution = Execution.from_settings(settings)
    rate = matrix_rate(execution)
    for spec in specs:
        with torch.device(execution.device):
            encoder = replace(execution, compiled=False).place(spec.make().eval().requires_grad_(False))
        flops = flops_of(encoder, spec.clip)
        encode = partial(_encode, execution.place(encoder), execution.device)
        for in_flight in sizes or (ON_GPU if execution.device == "cuda" else ON_CPU):
            yield _figure(spec, encode, in_flight, rounds, flops, rate)


def full_encoders(settings: Settings, seconds: float) -> list[EncoderSpec]:
    """Return the encoders of the profile `full`, and its transcriber's encoder run by PyTorch.

    Args:
        settings: with the batch limits.
        seconds: length of a clip.
    """
    return [
        _text_spec("XLM-R base", partial(random_text_encoder, XLM_R_BASE), settings, seconds),
        _speech_spec("XLS-R 300M", partial(random_speech_encoder, XLS_R_300M, XLS_R_LAYERS), settings, seconds),
        _speech_spec("Whisper large-v3-turbo", partial(random_whisper_encoder, WHISPER_TURBO), settings, seconds),
    ]


def bundle_encoders(name: str, settings: Settings, seconds: float) -> list[EncoderSpec]:
    """Return the encoders of a bundle.

    Args:
        name: the bundle's name or folder.
        settings: with the batch limits.
        seconds: length of a clip.

    Raises:
        BundleError: the bundle does not exist, or has no encoders.
    """
    folder = bundle_folder(name)
    bundle = read_manifest(folder)
    text, speech = bundle.text_encoder, bundle.speech_encoder
    if text is None or speech is None:
        raise BundleError(f"the bundle {bundle.name!r} has a classifier and no encoders to measure")
    return [
        _text_spec(f"{bundle.name}, text", partial(load_text_encoder, folder, text), settings, seconds),
        _speech_spec(f"{bundle.name}, audio", partial(load_speech_encoder, folder, speech), settings, seconds),
    ]


def random_text_encoder(shape: XLMRobertaConfig) -> PretrainedTextEncoder:
    """Return an XLM-R with random weights, whose tokenizer makes each word one token."""
    marks = ("<s>", "<pad>", "</s>", "<unk>")
    words = Tokenizer(WordLevel({mark: id_ for id_, mark in enumerate(marks)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    names = dict(zip(("cls_token", "pad_token", "sep_token", "unk_token"), marks, strict=True))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, **names)
    config = PretrainedTextConfig(source="random", max_tokens=min(256, shape.max_position_embeddings - 2))
    return PretrainedTextEncoder(config, XLMRobertaModel(shape, add_pooling_layer=False), tokenizer)


def random_speech_encoder(shape: Wav2Vec2Config, layers: tuple[int, ...]) -> PretrainedSpeechEncoder:
    """Return a wav2vec 2.0 encoder with random weights, which uses the outputs of `layers`."""
    config = PretrainedSpeechConfig(source="random", layers=layers)
    return PretrainedSpeechEncoder(config, Wav2Vec2Model(shape), Wav2Vec2FeatureExtractor())


def random_whisper_encoder(shape: WhisperConfig) -> PretrainedSpeechEncoder:
    """Return a Whisper encoder with random weights, which uses the output of its last layer."""
    config = PretrainedSpeechConfig(source="random", layers=(shape.encoder_layers,))
    extractor = WhisperFeatureExtractor(feature_size=shape.num_mel_bins)
    return PretrainedSpeechEncoder(config, WhisperEncoder(shape), extractor)


def matrix_rate(execution: Execution, rounds: int = 10) -> float:
    """Return the operations per second of the product of two large square matrices: the best of `rounds` tries."""
    size = MATRIX_SIZES[execution.device]
    one, other = (torch.randn(size, size, device=execution.device).to(execution.precision) for _ in range(2))
    times = [_timed(lambda: torch.matmul(one, other), execution.device) for _ in range(rounds)]
    return 2 * size**3 / min(times)


def flops_of(encoder: AnyTextEncoder | AnySpeechEncoder, clip: Any) -> int:  # noqa: ANN401 - text or samples
    """Return the operations for a batch of one clip, counted by the shapes of matrix products and convolutions."""
    # The counter sees the products of this attention on every device, and none of them in inference mode.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        encoder([clip])
    return counter.get_total_flops()


def _text_spec(name: str, make: Callable[[], AnyTextEncoder], settings: Settings, seconds: float) -> EncoderSpec:
    words = max(1, round(WORDS_PER_SECOND * seconds))
    return EncoderSpec(name, make, " ".join(["word"] * words), MIN_TOKENS + words, settings.batches.text)


def _speech_spec(name: str, make: Callable[[], AnySpeechEncoder], settings: Settings, seconds: float) -> EncoderSpec:
    noise = np.random.default_rng(0).standard_normal(round(seconds * SAMPLE_RATE)).astype(np.float32)
    return EncoderSpec(name, make, noise / 10, seconds + 1, settings.batches.speech)


def _figure(
    spec: EncoderSpec, encode: Callable[[Sequence[Any]], None], in_flight: int, rounds: int, flops: int, rate: float
) -> DeviceFigure:
    _submit_all(spec, encode, in_flight)  # the first batch of a new shape takes longer
    latencies = [_submit_all(spec, encode, in_flight) for _ in range(rounds)]
    clips_per_s = in_flight * rounds / sum(max(of_round) for of_round in latencies)
    p50, p95 = np.percentile(latencies, [50, 95]).tolist()
    return DeviceFigure(
        encoder=spec.name,
        in_flight=in_flight,
        batch_size=min(in_flight, spec.batch_size),
        clips_per_s=clips_per_s,
        p50_s=p50,
        p95_s=p95,
        flops_per_s=flops * clips_per_s,
        share=flops * clips_per_s / rate,
    )


def _submit_all(spec: EncoderSpec, encode: Callable[[Sequence[Any]], None], in_flight: int) -> list[float]:
    """Return for each clip the seconds from the start until its batch was done."""
    started, latencies = time.perf_counter(), list[float]()
    while (left := in_flight - len(latencies)) > 0:
        batch = [spec.clip] * min(left, spec.batch_size)
        encode(batch)
        latencies += [time.perf_counter() - started] * len(batch)
    return latencies


@torch.inference_mode()
def _encode(encoder: AnyTextEncoder | AnySpeechEncoder, device: str, clips: Sequence[Any]) -> None:
    encoder(clips)
    _synchronize(device)


def _timed(action: Callable[[], object], device: str) -> float:
    _synchronize(device)
    started = time.perf_counter()
    action()
    _synchronize(device)
    return time.perf_counter() - started


def _synchronize(device: str) -> None:
    """Wait until the device has finished: CUDA calls return before their work is done."""
    if device == "cuda":
        torch.cuda.synchronize()
