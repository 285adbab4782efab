"""`tenor bench device`: how much of what a device can multiply the encoders get out of it.

Speed does not depend on what weights say, so none are needed: published shapes are filled with random numbers.
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
from shared.modeling.pipeline import LEAST_TOKENS
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
"""As in the config.json of FacebookAI/xlm-roberta-base."""
XLS_R_300M = Wav2Vec2Config(
    hidden_size=1024,
    num_hidden_layers=24,
    num_attention_heads=16,
    intermediate_size=4096,
    conv_bias=True,
    feat_extract_norm="layer",
    do_stable_layer_norm=True,
)
"""As in the config.json of facebook/wav2vec2-xls-r-300m."""
XLS_R_LAYERS = (9, 12, 15, 18)
"""Whose outputs the bundle `full` reads."""
WHISPER_TURBO = WhisperConfig(
    num_mel_bins=128, d_model=1280, encoder_layers=32, encoder_attention_heads=20, encoder_ffn_dim=5120
)
"""The encoder's, as in the config.json of openai/whisper-large-v3-turbo; the decoder is not made."""

WORDS_PER_SECOND = 3
ON_GPU, ON_CPU = (1, 4, 16, 64, 256), (1, 4, 16)
"""Clips in flight, unless told otherwise."""
MATRIX_SIZES = {"cuda": 8192, "cpu": 1024}
"""Large enough for the device's full rate."""


class DeviceFigure(BaseModel):
    """One encoder with so many clips in flight.

    Attributes:
        together: clips that went through the encoder at once, as the settings' batches allow.
        p50_s: median time from the handing in of all clips until a clip's batch was done.
        flops_per_s: of the encoder's matrix products; a multiplication with its addition counts as two.
        share: of what the device reaches at one large matrix product in the same precision.
    """

    encoder: str
    in_flight: int
    together: int
    clips_per_s: float
    p50_s: float
    p95_s: float
    flops_per_s: float
    share: float


@dataclass(frozen=True)
class Subject:
    """An encoder, and the clip it is given.

    Attributes:
        make: an encoder on the CPU or on the device that is PyTorch's default then.
        clip: what one clip is to it: words, or samples.
        size: what it costs, in the unit of `limits.budget`.
    """

    name: str
    make: Callable[[], AnyTextEncoder | AnySpeechEncoder]
    clip: Any
    size: float
    limits: BatchLimits

    @property
    def together(self) -> int:
        """Clips in a batch."""
        return max(1, min(self.limits.items, int(self.limits.budget / self.size)))


def measure(
    settings: Settings, subjects: Sequence[Subject], sizes: Sequence[int] | None, rounds: int
) -> Iterator[DeviceFigure]:
    """Each encoder with each number of clips in flight: all are handed in at once, so often as there are rounds.

    Raises:
        SetupError: the device does not run models as the settings say.
    """
    torch.set_num_threads(1)  # as in a worker
    execution = Execution.of(settings)
    rate = matrix_rate(execution)
    for subject in subjects:
        with torch.device(execution.device):
            encoder = replace(execution, compiled=False).place(subject.make().eval().requires_grad_(False))
        flops = flops_of(encoder, subject.clip)
        encode = partial(_encoded, execution.place(encoder), execution.device)
        for in_flight in sizes or (ON_GPU if execution.device == "cuda" else ON_CPU):
            yield _figure(subject, encode, in_flight, rounds, flops, rate)


def full(settings: Settings, seconds: float) -> list[Subject]:
    """The profile `full`'s encoders, and that of its transcriber as PyTorch runs it, for clips of so many seconds."""
    return [
        _words("XLM-R base", partial(random_text_encoder, XLM_R_BASE), settings, seconds),
        _sound("XLS-R 300M", partial(random_speech_encoder, XLS_R_300M, XLS_R_LAYERS), settings, seconds),
        _sound("Whisper large-v3-turbo", partial(random_whisper_encoder, WHISPER_TURBO), settings, seconds),
    ]


def of_bundle(name: str, settings: Settings, seconds: float) -> list[Subject]:
    """A bundle's encoders, likewise.

    Raises:
        BundleError: there is no such bundle, or it has no encoders.
    """
    folder = bundle_folder(name)
    bundle = read_manifest(folder)
    text, speech = bundle.text_encoder, bundle.speech_encoder
    if text is None or speech is None:
        raise BundleError(f"the bundle {bundle.name!r} has no encoders to measure, but a classifier")
    return [
        _words(f"{bundle.name}, words", partial(load_text_encoder, folder, text), settings, seconds),
        _sound(f"{bundle.name}, voice", partial(load_speech_encoder, folder, speech), settings, seconds),
    ]


def random_text_encoder(shape: XLMRobertaConfig) -> PretrainedTextEncoder:
    """Of that shape; to its tokenizer every word is a token."""
    marks = ("<s>", "<pad>", "</s>", "<unk>")
    words = Tokenizer(WordLevel({mark: id_ for id_, mark in enumerate(marks)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    names = dict(zip(("cls_token", "pad_token", "sep_token", "unk_token"), marks, strict=True))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, **names)
    config = PretrainedTextConfig(source="random", max_tokens=min(256, shape.max_position_embeddings - 2))
    return PretrainedTextEncoder(config, XLMRobertaModel(shape, add_pooling_layer=False), tokenizer)


def random_speech_encoder(shape: Wav2Vec2Config, layers: tuple[int, ...]) -> PretrainedSpeechEncoder:
    """Of that shape, of which those layers are read."""
    config = PretrainedSpeechConfig(source="random", layers=layers)
    return PretrainedSpeechEncoder(config, Wav2Vec2Model(shape), Wav2Vec2FeatureExtractor())


def random_whisper_encoder(shape: WhisperConfig) -> PretrainedSpeechEncoder:
    """Of that shape, of which the last layer is read."""
    config = PretrainedSpeechConfig(source="random", layers=(shape.encoder_layers,))
    extractor = WhisperFeatureExtractor(feature_size=shape.num_mel_bins)
    return PretrainedSpeechEncoder(config, WhisperEncoder(shape), extractor)


def matrix_rate(execution: Execution, rounds: int = 10) -> float:
    """Operations a second at the product of two large square matrices: the best of some tries."""
    size = MATRIX_SIZES[execution.device]
    one, other = (torch.randn(size, size, device=execution.device).to(execution.precision) for _ in range(2))
    times = [_timed(lambda: torch.matmul(one, other), execution.device) for _ in range(rounds)]
    return 2 * size**3 / min(times)


def flops_of(encoder: AnyTextEncoder | AnySpeechEncoder, clip: Any) -> int:  # noqa: ANN401 - words, or samples
    """Operations for one clip by itself, told by the shapes of its matrix products and convolutions."""
    # Only of this attention are the products seen on every device; no_grad, as inference mode hides them.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        encoder([clip])
    return counter.get_total_flops()


def _words(name: str, make: Callable[[], AnyTextEncoder], settings: Settings, seconds: float) -> Subject:
    words = max(1, round(WORDS_PER_SECOND * seconds))
    return Subject(name, make, " ".join(["word"] * words), LEAST_TOKENS + words, settings.batches.text)


def _sound(name: str, make: Callable[[], AnySpeechEncoder], settings: Settings, seconds: float) -> Subject:
    noise = np.random.default_rng(0).standard_normal(round(seconds * SAMPLE_RATE)).astype(np.float32)
    return Subject(name, make, noise / 10, seconds + 1, settings.batches.speech)


def _figure(
    subject: Subject, encode: Callable[[Sequence[Any]], None], in_flight: int, rounds: int, flops: int, rate: float
) -> DeviceFigure:
    _wave(subject, encode, in_flight)  # shapes that are new to the device take longer
    waves = [_wave(subject, encode, in_flight) for _ in range(rounds)]
    clips_per_s = in_flight * rounds / sum(max(wave) for wave in waves)
    p50, p95 = np.percentile(waves, [50, 95]).tolist()
    return DeviceFigure(
        encoder=subject.name,
        in_flight=in_flight,
        together=min(in_flight, subject.together),
        clips_per_s=clips_per_s,
        p50_s=p50,
        p95_s=p95,
        flops_per_s=flops * clips_per_s,
        share=flops * clips_per_s / rate,
    )


def _wave(subject: Subject, encode: Callable[[Sequence[Any]], None], in_flight: int) -> list[float]:
    """For each of the clips, how long after the start its batch was done."""
    started, waited = time.perf_counter(), list[float]()
    while (left := in_flight - len(waited)) > 0:
        batch = [subject.clip] * min(left, subject.together)
        encode(batch)
        waited += [time.perf_counter() - started] * len(batch)
    return waited


@torch.inference_mode()
def _encoded(encoder: AnyTextEncoder | AnySpeechEncoder, device: str, clips: Sequence[Any]) -> None:
    encoder(clips)
    _finish(device)


def _timed(action: Callable[[], object], device: str) -> float:
    _finish(device)
    started = time.perf_counter()
    action()
    _finish(device)
    return time.perf_counter() - started


def _finish(device: str) -> None:
    """Wait for what runs on the device: a GPU is only told what to do."""
    if device == "cuda":
        torch.cuda.synchronize()
