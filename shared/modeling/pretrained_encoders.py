"""Encoders by name: published checkpoints from the model hub or a folder, for words and for voices.

They keep the promises of `encoders.py`: a batch gives `Tokens` and equals its items one by one. Weights are read from
safetensors, or where a checkpoint has none, from its pickle by PyTorch's restricted reader, which takes tensors and
refuses whatever else is in it, since a pickle may run code.
"""

import pickle
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import (
    HFValidationError,
    HTTPError,  # pyright: ignore[reportPrivateImportUsage] - its transport's root error
    LocalEntryNotFoundError,
)
from pydantic import BaseModel, ConfigDict, Field
from safetensors import SafetensorError
from safetensors.torch import save_file
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
from shared.modeling.speech_encoders import in_windows, mel_states, pooled
from shared.modeling.text_encoders import TurnTokenizer, read_turns
from shared.modeling.tokens import Tokens, length_mask

TEXT_ARCHITECTURES = ("bert", "deberta-v2", "roberta", "xlm-roberta")
SPEECH_ARCHITECTURES = ("hubert", "wav2vec2", "wavlm", "whisper")
WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json")
VOCABULARIES = ("tokenizer.json", "vocab.txt", "vocab.json", "spm.model", "sentencepiece.bpe.model")
FILES = (
    *WEIGHTS,
    *VOCABULARIES,
    "model-*-of-*.safetensors",
    "config.json",
    "preprocessor_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "merges.txt",
)
"""What is fetched of a repository."""
PICKLED_FILES = (*PICKLED, "pytorch_model-*-of-*.bin")
"""What is fetched beside them of a repository without safetensors."""
NOT_USED = re.compile(r"(^|\.)(pooler\.|masked_spec_embed)")
"""Weights that a checkpoint may lack: the encoders do without, or training makes them."""
LAYERS = ("layer", "layers")
"""What architectures call their list of transformer layers."""
SHORTEST_S = 0.25
"""Shorter sound is filled up with silence: SpecAugment's spans of ten frames must fit into it."""
HUB_TIMEOUT_S = 5.0


class Checkpoint(BaseModel):
    """Where the weights are: a folder, or a repository of the hub at a revision."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str
    revision: str | None = None
    """A commit; a branch would be another model tomorrow."""

    def folder(self) -> Path:
        """The folder with the files, fetched from the hub unless they are here.

        Raises:
            WeightsMissing: neither folder nor repository, no revision, or the hub cannot be reached.
        """
        if Path(self.source).is_dir():
            return Path(self.source)
        if self.revision is None:
            raise WeightsMissing(f"{self.source!r} is no folder; for a repository of the hub, give its revision too")
        try:
            return self._fetched(local_files_only=True)
        except LocalEntryNotFoundError:
            pass  # not downloaded before
        except HFValidationError as error:
            raise WeightsMissing(f"{self.source!r} is neither a folder nor a repository of the hub: {error}") from error
        try:
            # A download tries again for half a minute before it gives up; this call tells at once.
            HfApi().model_info(self.source, revision=self.revision, timeout=HUB_TIMEOUT_S)
            return self._fetched()
        except (OSError, HTTPError) as error:
            raise WeightsMissing(
                f"{self.source} at {self.revision} cannot be had from the model hub ({error}): connect to it once, "
                "or give a folder that holds the files"
            ) from error

    def _fetched(self, local_files_only: bool = False) -> Path:
        folder = self._snapshot(FILES, local_files_only)
        return folder if _has(folder, WEIGHTS) else self._snapshot((*FILES, *PICKLED_FILES), local_files_only)

    def _snapshot(self, files: Sequence[str], local_files_only: bool) -> Path:
        return Path(
            snapshot_download(
                self.source, revision=self.revision, allow_patterns=list(files), local_files_only=local_files_only
            )
        )


class PretrainedTextConfig(Checkpoint):
    """A checkpoint of one of the `TEXT_ARCHITECTURES`."""

    max_tokens: int = Field(default=256, ge=8)
    """Of the text and its context together."""
    prefix: str = ""
    """Put before the text, such as E5's "query: "."""
    context_turns: int = Field(default=0, ge=0)
    """How many of the turns before a text it is read with."""
    max_unknown: float = 0.2
    """Largest share of a text's letters that may be missing from the vocabulary."""


class PretrainedTextEncoder(nn.Module):
    """A BERT, RoBERTa, XLM-R or DeBERTa v2/v3, which may read a turn with those before it."""

    def __init__(
        self, config: PretrainedTextConfig, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
    ) -> None:
        super().__init__()
        self.config = config
        self.model = model
        self.width: int = model.config.hidden_size
        self._tokenizer: Any = tokenizer
        self._turns = TurnTokenizer(
            tokenizer.backend_tokenizer,
            *(getattr(self._tokenizer, f"{mark}_token_id") for mark in ("cls", "sep", "unk", "pad")),
            prefix=config.prefix,
            max_tokens=config.max_tokens,
        )

    @classmethod
    def load(cls, config: PretrainedTextConfig) -> Self:
        """The encoder in evaluation mode, float32.

        Raises:
            WeightsMissing: there are none.
            BundleError: the checkpoint is no text encoder, or not whole, or has fewer positions than `max_tokens`.
        """
        folder = config.folder()
        model = _model(folder, _settings(folder, TEXT_ARCHITECTURES))
        if hasattr(model, "pooler"):
            model.register_module("pooler", None)
        # RoBERTa counts its positions from behind the padding's id.
        positions = model.config.max_position_embeddings - 1 - getattr(model.embeddings, "padding_idx", -1)
        if config.max_tokens > positions:
            raise BundleError(f"max_tokens is {config.max_tokens}, but {config.source} has {positions} positions")
        return cls(config, model, _tokenizer(folder)).eval()

    def save(self, folder: Path) -> None:
        """Write what `load` reads: config, tokenizer, and the weights as one `model.safetensors`."""
        _save(self.model, folder)
        self._tokenizer.save_pretrained(folder)

    def knows(self, text: str) -> bool:
        """Whether the text has letters, and nearly all of them are in the vocabulary."""
        return self._turns.knows(text, self.config.max_unknown)

    def forward(self, texts: Sequence[str], context: Sequence[Sequence[str]] | None = None) -> Tokens:
        """Features of shape [batch, tokens, width], of the texts alone: the context is read but not given.

        Args:
            texts: one longer than `max_tokens` is cut at its end.
            context: for every text the turns before it, the oldest first; see `TurnTokenizer`.
        """
        return read_turns(self.model, self._turns, texts, context)


class PretrainedSpeechConfig(Checkpoint):
    """A checkpoint of one of the `SPEECH_ARCHITECTURES`."""

    layers: tuple[int, ...] | None = None
    """Whose outputs are given, counting from 1; 0 is what goes into the first layer. None gives all and 0."""
    pooling: int = Field(default=5, ge=1)
    """Frames of 20 ms that are averaged into one token."""
    max_seconds: float = Field(default=30.0, ge=1)
    """A longer clip is encoded in windows of this length, or of the positions Whisper has."""
    mask_time: float = Field(default=0.0, ge=0, lt=1)
    """Share of the frames that training hides from the layers (SpecAugment, Park et al. 2019); not for Whisper."""
    mask_features: float = Field(default=0.0, ge=0, lt=1)
    """Share of the CNN's features that training hides from the layers; not for Whisper."""


class PretrainedSpeechEncoder(nn.Module):
    """A wav2vec 2.0, XLS-R, WavLM, HuBERT, or the encoder of a Whisper, which runs on the clip alone."""

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
            raise BundleError(f"layers is {self.layers}, but {config.source} has those from 0 to {depth}")
        self._extractor: Any = extractor

    @classmethod
    def load(cls, config: PretrainedSpeechConfig) -> Self:
        """The encoder in evaluation mode, float32.

        Raises:
            WeightsMissing: there are none.
            BundleError: the checkpoint is no speech encoder, or not whole, or lacks one of the layers.
        """
        folder = config.folder()
        settings = _settings(folder, SPEECH_ARCHITECTURES)
        # A layer that is dropped has no output, which the mixture of layers needs.
        settings.layerdrop = 0.0
        settings.apply_spec_augment = config.mask_time + config.mask_features > 0
        settings.mask_time_prob, settings.mask_feature_prob = config.mask_time, config.mask_features
        settings.mask_feature_min_masks = 0  # WavLM's code asks for it, but not all configs have it
        return cls(config, _model(folder, settings), _extractor(folder)).eval()

    def save(self, folder: Path) -> None:
        """Write what `load` reads: config, feature extractor, and the weights as one `model.safetensors`."""
        _save(self.model, folder)
        self._extractor.save_pretrained(folder)

    def drop_unused_layers(self) -> None:
        """Forget the layers behind the last whose output is given: without them, the encoder can only be run."""
        # One is needed: its input is what layer 0 means.
        del transformer_layers(self.model)[max(1, *self.layers) :]

    @property
    def layers_given(self) -> int:
        return len(self.layers)

    def forward(self, clips: Sequence[Samples]) -> Tokens:
        """Features of shape [batch, tokens, layers given, width]."""
        size = int(self.config.max_seconds * SAMPLE_RATE)
        if isinstance(self.model, WhisperEncoder):
            # Two frames of 10 ms a position.
            return in_windows(clips, min(size, self.model.max_source_positions * SAMPLE_RATE // 50), self._encode)
        return in_windows([self._normalized(clip) for clip in clips], size, self._encode)

    def _encode(self, windows: Sequence[Samples]) -> list[Tensor]:
        if isinstance(self.model, WhisperEncoder):
            states = mel_states(self.model, self._extractor, windows, self.layers)
        else:
            states = self._wave_states([_filled(window) for window in windows])
        return [pooled(one, self.config.pooling) for one in states]

    def _normalized(self, clip: Samples) -> Samples:
        """As the checkpoint was trained: with mean 0 and deviation 1, or as it is."""
        return np.asarray(self._extractor(_filled(clip), sampling_rate=SAMPLE_RATE)["input_values"][0], np.float32)

    def _wave_states(self, waves: Sequence[Samples]) -> list[Tensor]:
        """All at once, but waves of one length after another where padding would change what comes out."""
        if not _feels_padding(self.model.config):
            return self._padded_states(waves)
        sizes = [wave.size for wave in waves]
        states: dict[int, Tensor] = {}
        for size in sorted(set(sizes)):
            rows = [row for row, other in enumerate(sizes) if other == size]
            states |= zip(rows, self._padded_states([waves[row] for row in rows]), strict=True)
        return [states[row] for row in range(len(waves))]

    def _padded_states(self, waves: Sequence[Samples]) -> list[Tensor]:
        """For every wave a tensor of shape [frames, layers given, width]."""
        device = self.model.device
        padded = pad_sequence([torch.from_numpy(wave).to(device, self.model.dtype) for wave in waves], batch_first=True)
        lengths = torch.tensor([wave.size for wave in waves], device=device)
        mask = length_mask(lengths, padded.shape[1]).long() if len(lengths.unique()) > 1 else None
        hidden = self.model(padded, attention_mask=mask, output_hidden_states=True).hidden_states
        stacked = torch.stack([hidden[layer] for layer in self.layers], dim=2)
        for kernel, stride in zip(self.model.config.conv_kernel, self.model.config.conv_stride, strict=True):
            lengths = (lengths - kernel) // stride + 1
        return [states[:count] for states, count in zip(stacked, lengths.tolist(), strict=True)]


def transformer_layers(encoder: nn.Module) -> nn.ModuleList:
    """The layers of any encoder, without the convolutions before them.

    Raises:
        ValueError: it has not exactly one list of them.
    """
    found = [
        module
        for name, module in encoder.named_modules()
        if name.rpartition(".")[2] in LAYERS and isinstance(module, nn.ModuleList)
    ]
    if len(found) != 1:
        raise ValueError(f"{type(encoder).__name__} has {len(found)} lists of layers; an encoder has one")
    return found[0]


def _feels_padding(settings: PreTrainedConfig) -> bool:
    """Whether a norm is taken over time, where no mask reaches."""
    return settings.feat_extract_norm == "group" or getattr(settings, "conv_pos_batch_norm", False)


def _filled(wave: Samples) -> Samples:
    return np.pad(wave, (0, max(0, int(SHORTEST_S * SAMPLE_RATE) - wave.size)))


def _has(folder: Path, names: Sequence[str]) -> bool:
    return any((folder / name).is_file() for name in names)


def _settings(folder: Path, known: Sequence[str]) -> PreTrainedConfig:
    try:
        settings = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise BundleError(f"{folder} has no config.json that transformers knows: {error}") from error
    if settings.model_type not in known:
        raise BundleError(f"{folder} holds a {settings.model_type!r}; here it must be one of {', '.join(known)}")
    return settings


def _model(folder: Path, settings: PreTrainedConfig) -> PreTrainedModel:
    """The body of a checkpoint, whatever head it has."""
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
        raise BundleError(f"{folder / PICKLED[0]} is refused, as it holds more than tensors: {error}") from error
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise BundleError(f"the weights in {folder} do not fit its config.json: {error}") from error
    if missing := sorted(name for name in report["missing_keys"] if not NOT_USED.search(name)):
        raise BundleError(
            f"the weights in {folder} are not whole: {missing[0]} and {len(missing) - 1} more are missing"
        )
    return model


def _tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    # Without one, transformers makes a tokenizer to which every word is unknown.
    if not any((folder / name).is_file() for name in VOCABULARIES):
        raise BundleError(f"{folder} has no vocabulary; it must hold one of {', '.join(VOCABULARIES)}")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise BundleError(f"{folder} has no tokenizer that transformers knows: {error}") from error
    if None in (tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.pad_token_id):
        raise BundleError(f"the tokenizer in {folder} must have a class, a separator and a padding token")
    return tokenizer


def _extractor(folder: Path) -> FeatureExtractionMixin:
    try:
        return AutoFeatureExtractor.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise BundleError(f"{folder} has no preprocessor_config.json that transformers knows: {error}") from error


def _save(model: PreTrainedModel, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    model.config.save_pretrained(folder)
    # save_pretrained would give the names back that the checkpoint had, which for a part of it cannot be done.
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(state, folder / WEIGHTS[0], metadata={"format": "pt"})


@contextmanager
def _quiet() -> Iterator[None]:
    """A checkpoint's head or decoder is left where it is, which is no news."""
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)
