"""The two branches before the fusion, while they learn: which encoders, what of them, and how fast."""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field
from safetensors.torch import save_file
from torch import Tensor, nn

from shared.modeling.fusion import FusionConfig
from shared.modeling.loading import ENCODERS_FILE, AnySpeechEncoder, AnyTextEncoder, load_encoders
from shared.modeling.pretrained_encoders import (
    PretrainedSpeechConfig,
    PretrainedSpeechEncoder,
    PretrainedTextConfig,
    PretrainedTextEncoder,
)
from shared.modeling.speech_encoders import SpeechEncoder
from shared.modeling.text_encoders import TextEncoder
from shared.modeling.tokens import Tokens
from training.data.dataset import Batch, Unencoded, Words, collate, with_gaps
from training.finetuning import Lora, add_lora, checkpoint_gradients, freeze, merge_lora
from training.recipes.build_encoders import write_text_encoder


class Branch(BaseModel):
    """What of an encoder learns. With `lora`, nothing else does."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    freeze: int | Literal["all"] = 0
    """The first so many layers, with all that comes before them."""
    lora: Lora | None = None
    recompute: bool = False
    """Compute the layers again for their gradients: less memory, a third more time."""
    learning_rate: float = Field(default=2e-5, gt=0)


class TextBranch(Branch):
    """The words' encoder: a checkpoint of transformers, or a folder that `build_encoders` or `train` wrote."""

    encoder: PretrainedTextConfig


class VoiceBranch(Branch):
    """The voice's encoder, likewise."""

    encoder: PretrainedSpeechConfig
    freeze_cnn: bool = True
    """The convolutions in front of the layers."""
    seconds: tuple[float, float] | None = None
    """Shorter and longer clips are left out."""


class Branches(nn.Module):
    """Encoders that learn, in front of a fusion.

    Raises:
        WeightsMissing: a checkpoint cannot be had.
        BundleError: it is not one that is known here.
    """

    def __init__(self, text: TextBranch | None, voice: VoiceBranch | None, gaps: float = 0.0) -> None:
        super().__init__()
        self._rates: list[tuple[nn.Module, float]] = []
        self._gaps = gaps
        self._rng = np.random.default_rng(0)
        self._text, self._voice = text, voice
        self.text = None if text is None else _text_encoder(text.encoder)
        self.voice = None if voice is None else _speech_encoder(voice.encoder)
        for encoder, branch in ((self.text, text), (self.voice, voice)):
            if encoder is not None and branch is not None:
                self._prepare(encoder, branch)
        if voice is not None and self.voice is not None:
            freeze(self.voice, cnn=voice.freeze_cnn)

    def shaped(self, fusion: FusionConfig) -> FusionConfig:
        """The fusion's shapes with the encoders' in place."""
        found: dict[str, int] = {}
        if self.text is not None:
            found["text_width"] = self.text.width
        if self.voice is not None:
            found |= {"audio_width": self.voice.width, "audio_layers": self.voice.output_layer_count}
        return fusion.model_copy(update=found)

    def train(self, mode: bool = True) -> Self:
        """As for any module, but an encoder of which nothing learns stays as it is served: without dropout."""
        super().train(mode)
        for encoder in (self.text, self.voice):
            if encoder is not None and not any(weight.requires_grad for weight in encoder.parameters()):
                encoder.eval()
        return self

    def forward(self, batch: Unencoded, fusion: FusionConfig) -> Batch:
        """The batch with features in place of words and sound."""
        words = _encoded(self._read, [example.text for example in batch.examples])
        sound = [self._with_gaps(rows) for rows in _encoded(self.voice, [example.voice for example in batch.examples])]
        encoded = [
            replace(example, text=text, voice=voice)
            for example, text, voice in zip(batch.examples, words, sound, strict=True)
        ]
        return collate(encoded, fusion)

    def groups(self) -> list[dict[str, Any]]:
        """What learns, and how fast, for an optimizer."""
        groups = [
            {"params": [weight for weight in module.parameters() if weight.requires_grad], "lr": rate}
            for module, rate in self._rates
        ]
        return [group for group in groups if group["params"]]

    def save(self, folder: Path) -> None:
        """Write what branches read of which each encoder's source is this folder."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, encoder, branch in (("text", self.text, self._text), ("voice", self.voice, self._voice)):
            if encoder is None or branch is None:
                continue
            merge_lora(encoder)
            if isinstance(encoder, TextEncoder | SpeechEncoder):
                _save_own(encoder, branch, folder)
            else:
                encoder.save(folder / name)

    def _prepare(self, encoder: nn.Module, branch: Branch) -> None:
        freeze(encoder, branch.freeze)
        if branch.lora is not None:
            add_lora(encoder, branch.lora)
        if branch.recompute:
            checkpoint_gradients(encoder)
        self._rates.append((encoder, branch.learning_rate))

    def _read(self, words: Sequence[Words]) -> Tokens:
        assert self.text is not None
        return self.text([turn.text for turn in words], [turn.before for turn in words])

    def _with_gaps(self, features: Tensor | None) -> Tensor | None:
        return with_gaps(features, self._gaps, self._rng) if self.training and features is not None else features


def _encoded(encode: Callable[[Sequence[Any]], Tokens] | None, given: Sequence[Any]) -> list[Tensor | None]:
    """The features of what there is, each of shape [tokens, ...]."""
    rows: list[Tensor | None] = [None] * len(given)
    there = [row for row, item in enumerate(given) if item is not None]
    if there and encode is not None:
        tokens = encode([given[row] for row in there])
        for row, features, mask in zip(there, tokens.features, tokens.mask, strict=True):
            rows[row] = features[mask]
    return rows


def _save_own(encoder: TextEncoder | SpeechEncoder, branch: TextBranch | VoiceBranch, folder: Path) -> None:
    """The files of the source's folder, but for the weights and the description of the encoder that learned."""
    for file in Path(branch.encoder.source).iterdir():
        if not (folder / file.name).exists():
            shutil.copyfile(file, folder / file.name)
    state = {name: tensor.detach().cpu() for name, tensor in encoder.state_dict().items()}
    options = json.loads((folder / ENCODERS_FILE).read_text(encoding="utf-8"))
    if isinstance(branch, TextBranch):
        options["text_encoder"]["context_turns"] = branch.encoder.context_turns
        write_text_encoder(state, folder / "text_encoder.safetensors", layers=8)
    else:
        save_file({name: tensor.half() for name, tensor in state.items()}, folder / "speech_encoder.safetensors")
    options["sources"]["text_encoder" if isinstance(branch, TextBranch) else "speech_encoder"] += ", fine-tuned"
    (folder / ENCODERS_FILE).write_text(json.dumps(options, indent=1), encoding="utf-8")


def _text_encoder(config: PretrainedTextConfig) -> AnyTextEncoder:
    if (Path(config.source) / ENCODERS_FILE).is_file():
        return load_encoders(Path(config.source))[0].requires_grad_(True)
    return PretrainedTextEncoder.load(config)


def _speech_encoder(config: PretrainedSpeechConfig) -> AnySpeechEncoder:
    if (Path(config.source) / ENCODERS_FILE).is_file():
        return load_encoders(Path(config.source))[1].requires_grad_(True)
    return PretrainedSpeechEncoder.load(config)
