"""Pretrained encoders: published checkpoints of text and speech encoders, from the model hub or a folder.

As with Tenor's own encoders, encoding a batch gives the same features as encoding its items one by one. Weights are
read from safetensors. If a checkpoint has only a pickle, PyTorch's restricted unpickler reads it: it loads tensors and
refuses everything else, because a pickle can run code.
"""

# PyTorch and transformers have no complete types.
# pyright: reportUnknownMemberType=false

import pickle
import re
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self, cast

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from safetensors import SafetensorError
from safetensors.torch import save_file  # pyright: ignore[reportUnknownVariableType] - its PathLike is bare
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModel,
    AutoTokenizer,
    FeatureExtractionMixin,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.models.whisper.modeling_whisper import WhisperEncoder
from transformers.utils import logging

from shared.audio.decoder import SAMPLE_RATE, Samples
from shared.errors import BundleError, WeightsMissing
from shared.modeling import hub
from shared.modeling.speech_encoders import encode_in_windows, pool_frames, whisper_hidden_states
from shared.modeling.text_encoders import TurnTokenizer, encode_turns
from shared.modeling.tokens import Tokens, length_mask

TEXT_ARCHITECTURES = ("bert", "deberta-v2", "roberta", "xlm-roberta")
SPEECH_ARCHITECTURES = ("hubert", "wav2vec2", "wavlm", "whisper")
WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json")
VOCABULARIES = ("tokenizer.json", "vocab.txt", "vocab.json", "spm.model", "sentencepiece.bpe.model")
FILES = (
    *VOCABULARIES,
    "config.json",
    "preprocessor_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "merges.txt",
)
"""The files of a repository that are downloaded besides the weights."""
WEIGHT_FORMATS = ((*WEIGHTS, "model-*-of-*.safetensors"), (*PICKLED, "pytorch_model-*-of-*.bin"))
"""Weight files of a repository; pickles are downloaded only if it has no safetensors."""
OPTIONAL_WEIGHTS = re.compile(r"(^|\.)(pooler\.|masked_spec_embed)")
"""Weights that a checkpoint may lack: the encoders do not use them, or training creates them."""
LAYER_LISTS = ("layer", "layers")
"""The attribute names that architectures give their list of transformer layers."""
MIN_CLIP_S = 0.25
"""A shorter clip is padded with silence, because SpecAugment masks spans of ten frames, which must fit."""


class Checkpoint(BaseModel):
    """Where the weights of an encoder are: in a folder, or in a repository of the model hub."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str
    """A folder, or OWNER/REPOSITORY."""
    revision: str | None = None
    """The commit of the repository. A branch is not allowed: tomorrow it could be another model."""

    def folder(self) -> Path:
        """Returns the folder with the files. Downloads them if they are not in the local cache.

        Raises:
            WeightsMissing: the source is neither a folder nor a repository with a revision, or the hub cannot be
                reached.
        """
        if Path(self.source).is_dir():
            return Path(self.source)
        if self.revision is None:
            raise WeightsMissing(
                f"{self.source!r} is not a folder; if it is a repository of the hub, give its revision"
            )
        remedy = "connect to it once, or give a folder that holds the files"
        return hub.download(self.source, self.revision, FILES, WEIGHT_FORMATS, remedy=remedy)


class PretrainedTextConfig(Checkpoint):
    """A checkpoint of one of the `TEXT_ARCHITECTURES`."""

    max_tokens: int = Field(default=256, ge=8)
    """Longest input in tokens: the text and its context together."""
    prefix: str = ""
    """Text inserted before every turn, such as E5's "query: "."""
    context_turns: int = Field(default=0, ge=0)
    """How many turns before a turn the encoder was trained to read as context."""
    max_unknown: float = 0.5
    """A text is not encoded if the vocabulary lacks more than this share of its letters and digits."""


class PretrainedTextEncoder(nn.Module):
    """A BERT, RoBERTa, XLM-R or DeBERTa v2/v3."""

    def __init__(
        self, config: PretrainedTextConfig, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
    ) -> None:
        super().__init__()
        self.config = config
        self.model = model
        self.width: int = model.config.hidden_size
        self._tokenizer: Any = tokenizer
        self.turn_tokenizer = TurnTokenizer(
            tokenizer.backend_tokenizer,
            *(getattr(self._tokenizer, f"{mark}_token_id") for mark in ("cls", "sep", "unk", "pad")),
            prefix=config.prefix,
            max_tokens=config.max_tokens,
        )

    @classmethod
    def load(cls, config: PretrainedTextConfig) -> Self:
        """Returns the encoder in evaluation mode and float32.

        Raises:
            WeightsMissing: the weights are neither here nor on the hub.
            BundleError: the checkpoint is not a text encoder, is incomplete, or has fewer positions than `max_tokens`.
        """
        folder = config.folder()
        model = _model(folder, _settings(folder, TEXT_ARCHITECTURES))
        if hasattr(model, "pooler"):
            model.register_module("pooler", None)
        # RoBERTa's first position is the id of its padding token plus 1.
        positions = model.config.max_position_embeddings - 1 - getattr(model.embeddings, "padding_idx", -1)
        if config.max_tokens > positions:
            raise BundleError(f"max_tokens is {config.max_tokens}, but {config.source} has {positions} positions")
        return cls(config, model, _tokenizer(folder)).eval()

    def save(self, folder: Path) -> None:
        """Write config, tokenizer and weights (as one `model.safetensors`) to a folder that `load` can read."""
        _save(self.model, folder)
        self._tokenizer.save_pretrained(folder)

    def can_encode(self, text: str) -> bool:
        """Whether the text has letters or digits, and enough of them are in the vocabulary."""
        return self.turn_tokenizer.can_encode(text, self.config.max_unknown)

    def forward(self, texts: Sequence[str], context: Sequence[Sequence[str]] | None = None) -> Tokens:
        """Returns features of the texts, shape [batch, tokens, width], without those of the context.

        Args:
            texts: the text of each turn. The end of a text that is longer than `max_tokens` is cut off.
            context: for each text, the texts of the turns before it, the oldest first; see `TurnTokenizer`.
        """
        return encode_turns(self.model, self.turn_tokenizer, texts, context)


class PretrainedSpeechConfig(Checkpoint):
    """A checkpoint of one of the `SPEECH_ARCHITECTURES`."""

    layers: tuple[int, ...] | None = None
    """Layers whose outputs are returned, counted from 1; 0 is the input of the first layer. None: 0 and all layers."""
    pooling: int = Field(default=5, ge=1)
    """Number of frames, of 20 ms each, that are averaged into one token."""
    max_seconds: float = Field(default=30.0, ge=1)
    """A longer clip is encoded in windows of this length; with Whisper, no longer than its positions cover."""
    mask_time: float = Field(default=0.0, ge=0, lt=1)
    """Share of the frames that are masked in training (SpecAugment, Park et al. 2019); not for Whisper."""
    mask_features: float = Field(default=0.0, ge=0, lt=1)
    """Share of the CNN's features that are masked in training; not for Whisper."""


class PretrainedSpeechEncoder(nn.Module):
    """A wav2vec 2.0, XLS-R, WavLM or HuBERT, or the encoder of a Whisper, run on the clip without padding to 30 s."""

    def __init__(
        self, config: PretrainedSpeechConfig, model: PreTrainedModel, extractor: FeatureExtractionMixin
    ) -> None:
        super().__init__()
        self.config = config
        self.model = model
        self.width: int = model.config.hidden_size
        depth: int = model.config.num_hidden_layers
        self.layers: tuple[int, ...] = tuple(range(depth + 1)) if config.layers is None else config.layers
        if not self.layers or not set(self.layers) <= set(range(depth + 1)):
            raise BundleError(f"layers is {self.layers}, but {config.source} has layers 0 to {depth}")
        self._extractor: Any = extractor

    @classmethod
    def load(cls, config: PretrainedSpeechConfig) -> Self:
        """Returns the encoder in evaluation mode and float32.

        Raises:
            WeightsMissing: the weights are neither here nor on the hub.
            BundleError: the checkpoint is not a speech encoder, is incomplete, or lacks one of the layers.
        """
        folder = config.folder()
        settings = _settings(folder, SPEECH_ARCHITECTURES)
        # LayerDrop skips layers at random in training, but the fusion needs the output of each layer.
        settings.layerdrop = 0.0
        settings.apply_spec_augment = config.mask_time + config.mask_features > 0
        settings.mask_time_prob, settings.mask_feature_prob = config.mask_time, config.mask_features
        settings.mask_feature_min_masks = 0  # WavLM's code reads it, but not every config has it
        return cls(config, _model(folder, settings), _extractor(folder)).eval()

    def save(self, folder: Path) -> None:
        """Write config, feature extractor and weights (as one `model.safetensors`) to a folder that `load` can read."""
        _save(self.model, folder)
        self._extractor.save_pretrained(folder)

    def drop_unused_layers(self) -> None:
        """Delete the layers after the last one whose output is returned. The encoder cannot be saved afterwards."""
        # One layer is kept even if only layer 0 is returned, which is the input of the first layer.
        del transformer_layers(self.model)[max(1, *self.layers) :]

    @property
    def output_layer_count(self) -> int:
        """Number of layers whose outputs are returned."""
        return len(self.layers)

    def forward(self, clips: Sequence[Samples]) -> Tokens:
        """Returns features of shape [batch, tokens, layers, width]."""
        size = int(self.config.max_seconds * SAMPLE_RATE)
        if isinstance(self.model, WhisperEncoder):
            # A position covers 20 ms.
            size = min(size, self.model.max_source_positions * SAMPLE_RATE // 50)
            return encode_in_windows(clips, size, self._encode)
        return encode_in_windows([self._normalized(clip) for clip in clips], size, self._encode)

    def _encode(self, windows: Sequence[Samples]) -> list[Tensor]:
        if isinstance(self.model, WhisperEncoder):
            states = whisper_hidden_states(self.model, self._extractor, windows, self.layers)
        else:
            states = self._waveform_states([_padded(window) for window in windows])
        return [pool_frames(one, self.config.pooling) for one in states]

    def _normalized(self, clip: Samples) -> Samples:
        """Returns the clip as the checkpoint expects it: with mean 0 and standard deviation 1, or unchanged."""
        return np.asarray(self._extractor(_padded(clip), sampling_rate=SAMPLE_RATE)["input_values"][0], np.float32)

    def _waveform_states(self, waves: Sequence[Samples]) -> list[Tensor]:
        """Returns each wave's hidden states: in one batch, or one batch per length if padding changes the result."""
        if not _depends_on_padding(self.model.config):
            return self._padded_states(waves)
        sizes = [wave.size for wave in waves]
        states: dict[int, Tensor] = {}
        for size in sorted(set(sizes)):
            rows = [row for row, other in enumerate(sizes) if other == size]
            states |= zip(rows, self._padded_states([waves[row] for row in rows]), strict=True)
        return [states[row] for row in range(len(waves))]

    def _padded_states(self, waves: Sequence[Samples]) -> list[Tensor]:
        """Returns for each wave a tensor of shape [frames, layers, width]."""
        device = self.model.device
        padded = pad_sequence([torch.as_tensor(wave).to(device, self.model.dtype) for wave in waves], batch_first=True)
        sizes = [wave.size for wave in waves]
        mask = length_mask(torch.tensor(sizes, device=device), padded.shape[1]).long() if len(set(sizes)) > 1 else None
        hidden = self.model(padded, attention_mask=mask, output_hidden_states=True).hidden_states
        stacked = torch.stack([hidden[layer] for layer in self.layers], dim=2)
        for kernel, stride in zip(self.model.config.conv_kernel, self.model.config.conv_stride, strict=True):
            sizes = [(size - kernel) // stride + 1 for size in sizes]
        return [states[:size] for states, size in zip(stacked, sizes, strict=True)]


def transformer_layers(encoder: nn.Module) -> nn.ModuleList:
    """Returns the transformer layers of an encoder of any architecture, without the convolutions before them.

    Raises:
        ValueError: the encoder does not have exactly one list of layers.
    """
    modules = cast("Iterable[tuple[str, nn.Module]]", encoder.named_modules())
    found = [
        module
        for name, module in modules
        if name.rpartition(".")[2] in LAYER_LISTS and isinstance(module, nn.ModuleList)
    ]
    if len(found) != 1:
        raise ValueError(f"{type(encoder).__name__} has {len(found)} lists of layers, not one")
    return found[0]


def _depends_on_padding(settings: PreTrainedConfig) -> bool:
    """Whether the model normalizes over time, which includes the padding whatever the attention mask says."""
    return settings.feat_extract_norm == "group" or getattr(settings, "conv_pos_batch_norm", False)


def _padded(wave: Samples) -> Samples:
    return np.pad(wave, (0, max(0, int(MIN_CLIP_S * SAMPLE_RATE) - wave.size)))


def _has(folder: Path, names: Sequence[str]) -> bool:
    return any((folder / name).is_file() for name in names)


def _settings(folder: Path, known: Sequence[str]) -> PreTrainedConfig:
    try:
        settings = cast("PreTrainedConfig", AutoConfig.from_pretrained(folder, trust_remote_code=False))
    except (OSError, ValueError) as error:
        raise BundleError(f"transformers cannot read the config.json of {folder}: {error}") from error
    if settings.model_type not in known:
        raise BundleError(f"{folder} holds a {settings.model_type!r}; it must be one of {', '.join(known)}")
    return settings


def _model(folder: Path, settings: PreTrainedConfig) -> PreTrainedModel:
    """Returns the encoder of a checkpoint, without the head or decoder that it may have."""
    if not _has(folder, (*WEIGHTS, *PICKLED)):
        raise WeightsMissing(f"{folder} has no weights: it must hold {WEIGHTS[0]}, or else {PICKLED[0]}")
    whisper = settings.model_type == "whisper"
    kind: Any = WhisperEncoder if whisper else AutoModel
    options = {"key_mapping": {r"^(model\.)?encoder\.": ""}} if whisper else {}
    try:
        with _quiet():
            model, report = kind.from_pretrained(
                folder,
                config=settings,
                use_safetensors=_has(folder, WEIGHTS),
                weights_only=True,
                dtype=torch.float32,
                output_loading_info=True,
                **options,
            )
    except pickle.UnpicklingError as error:
        raise BundleError(f"{folder / PICKLED[0]} is refused, because it holds more than tensors: {error}") from error
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise BundleError(f"the weights in {folder} do not fit its config.json: {error}") from error
    if missing := sorted(name for name in report["missing_keys"] if not OPTIONAL_WEIGHTS.search(name)):
        raise BundleError(
            f"the weights in {folder} are incomplete: {missing[0]} and {len(missing) - 1} more are missing"
        )
    return model


def _tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    # Without a vocabulary, transformers creates a tokenizer that maps every word to the unknown token.
    if not any((folder / name).is_file() for name in VOCABULARIES):
        raise BundleError(f"{folder} has no vocabulary; it must hold one of {', '.join(VOCABULARIES)}")
    try:
        tokenizer = cast("PreTrainedTokenizerFast", AutoTokenizer.from_pretrained(folder, trust_remote_code=False))
    except (OSError, ValueError) as error:
        raise BundleError(f"transformers cannot read the tokenizer of {folder}: {error}") from error
    if None in (tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.pad_token_id):
        raise BundleError(f"the tokenizer in {folder} must have a class, a separator and a padding token")
    return tokenizer


def _extractor(folder: Path) -> FeatureExtractionMixin:
    try:
        return cast("FeatureExtractionMixin", AutoFeatureExtractor.from_pretrained(folder, trust_remote_code=False))
    except (OSError, ValueError) as error:
        raise BundleError(f"transformers cannot read the preprocessor_config.json of {folder}: {error}") from error


def _save(model: PreTrainedModel, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    model.config.save_pretrained(folder)
    # save_pretrained would restore the weight names of the original checkpoint, and fails for a part of a model.
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(state, folder / WEIGHTS[0], metadata={"format": "pt"})


@contextmanager
def _quiet() -> Generator[None]:
    """Silences transformers' warning that the weights of a checkpoint's head or decoder are not used."""
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)
