"""The text and audio encoders in front of the fusion while they train."""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from shared.modeling.baseline import AudioSummary, summarize_audio
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
from training.args import AudioBranch, Branch, TextBranch
from training.data.examples import Batch, Example, TextWithContext, UnencodedBatch, collate, unencoded_batch
from training.data.input_sources import InputSource
from training.data.masking import drop_spans
from training.data.speaker_summaries import Summarize
from training.data.utterance import Utterance
from training.encoder_files import write_speech_encoder, write_text_encoder
from training.finetuning import add_lora, checkpoint_gradients, freeze, merge_lora


class EncoderBranches(nn.Module):
    """The encoders that train together with a fusion, either of which may be missing.

    Args:
        text: the text encoder and what of it trains.
        audio: the audio encoder and what of it trains.
        dropped_spans: the longest of two spans of audio features that are left out in training, as a share.

    Raises:
        WeightsMissing: a checkpoint cannot be loaded.
        BundleError: a checkpoint is of an unknown kind.
    """

    def __init__(self, text: TextBranch | None, audio: AudioBranch | None, dropped_spans: float = 0.0) -> None:
        super().__init__()
        self._rates: list[tuple[nn.Module, float]] = []
        self._dropped_spans = dropped_spans
        self._rng = np.random.default_rng(0)
        self._text_branch, self._audio_branch = text, audio
        self.text = None if text is None else _text_encoder(text.encoder)
        self.audio = None if audio is None else _audio_encoder(audio.encoder)
        for encoder, branch in ((self.text, text), (self.audio, audio)):
            if encoder is not None and branch is not None:
                self._prepare(encoder, branch)
        if audio is not None and self.audio is not None:
            freeze(self.audio, cnn=audio.freeze_cnn)

    def fusion_shapes(self, fusion: FusionConfig) -> FusionConfig:
        """Returns the fusion's configuration with the widths and layers of the encoders."""
        found: dict[str, int] = {}
        if self.text is not None:
            found["text_width"] = self.text.width
        if self.audio is not None:
            found |= {"audio_width": self.audio.width, "audio_layers": self.audio.output_layer_count}
        return fusion.model_copy(update=found)

    def train(self, mode: bool = True) -> Self:
        """Set the training mode of the encoders; one without trainable weights stays in evaluation mode.

        A frozen encoder so has no dropout, as when it is served.
        """
        super().train(mode)
        for encoder in (self.text, self.audio):
            if encoder is not None and not any(weight.requires_grad for weight in encoder.parameters()):
                encoder.eval()
        return self

    def forward(self, batch: UnencodedBatch, fusion: FusionConfig) -> Batch:
        """Returns the batch with features in place of texts and samples."""
        texts = _encode_present(self._encode_text, [example.text for example in batch.examples])
        audio = _encode_present(self.audio, [example.audio for example in batch.examples])
        encoded = [
            replace(example, text=text, audio=self._with_dropped_spans(features))
            for example, text, features in zip(batch.examples, texts, audio, strict=True)
        ]
        return collate(encoded, fusion)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Returns the trainable weights with their learning rates, as an optimizer takes them."""
        groups = [
            {"params": [weight for weight in module.parameters() if weight.requires_grad], "lr": rate}
            for module, rate in self._rates
        ]
        return [group for group in groups if group["params"]]

    def summarizer(self, source: InputSource, fusion: FusionConfig) -> Summarize:
        """Returns the function that encodes an utterance's audio and computes its summary."""

        @torch.no_grad()
        def summarize(utterance: Utterance, augmentation: str) -> AudioSummary | None:
            example = Example(utterance, None, source.audio(utterance, augmentation))
            batch: Batch = self(unencoded_batch([example]), fusion)
            return summarize_audio(batch.audio)[0].half().cpu().numpy()

        return summarize

    def save(self, folder: Path) -> None:
        """Write the encoders, with LoRA merged, so that a branch can name this folder as its source."""
        folder.mkdir(parents=True, exist_ok=True)
        branches = (("text", self.text, self._text_branch), ("audio", self.audio, self._audio_branch))
        for name, encoder, branch in branches:
            if encoder is None or branch is None:
                continue
            merge_lora(encoder)
            if isinstance(encoder, TextEncoder | SpeechEncoder):
                _save_compact(encoder, branch, folder)
            else:
                encoder.save(folder / name)

    def _prepare(self, encoder: nn.Module, branch: Branch) -> None:
        freeze(encoder, branch.freeze)
        if branch.lora is not None:
            add_lora(encoder, branch.lora)
        if branch.recompute:
            checkpoint_gradients(encoder)
        self._rates.append((encoder, branch.learning_rate))

    def _encode_text(self, texts: Sequence[TextWithContext]) -> Tokens:
        assert self.text is not None
        return self.text([text.text for text in texts], [text.context for text in texts])

    def _with_dropped_spans(self, features: Tensor | None) -> Tensor | None:
        if features is None or not self.training:
            return features
        return drop_spans(features, self._dropped_spans, self._rng)


def _encode_present(encode: Callable[[Sequence[Any]], Tokens] | None, inputs: Sequence[Any]) -> list[Tensor | None]:
    """Returns the features of the inputs that are not None, each of shape [tokens, ...], and None for the others."""
    rows: list[Tensor | None] = [None] * len(inputs)
    present = [row for row, item in enumerate(inputs) if item is not None]
    if present and encode is not None:
        tokens = encode([inputs[row] for row in present])
        for row, features, mask in zip(present, tokens.features, tokens.mask, strict=True):
            rows[row] = features[mask]
    return rows


def _save_compact(encoder: TextEncoder | SpeechEncoder, branch: TextBranch | AudioBranch, folder: Path) -> None:
    """Copy the files of the encoder's source, and replace the weights and the description of the one that trained."""
    for file in Path(branch.encoder.source).iterdir():
        if not (folder / file.name).exists():
            shutil.copyfile(file, folder / file.name)
    state = {name: tensor.detach().cpu() for name, tensor in encoder.state_dict().items()}
    options = json.loads((folder / ENCODERS_FILE).read_text(encoding="utf-8"))
    if isinstance(branch, TextBranch):
        options["text_encoder"]["context_turns"] = branch.encoder.context_turns
        write_text_encoder(state, folder / "text_encoder.safetensors", layers=8)
    else:
        write_speech_encoder(state, folder / "speech_encoder.safetensors")
    options["sources"]["text_encoder" if isinstance(branch, TextBranch) else "speech_encoder"] += ", fine-tuned"
    (folder / ENCODERS_FILE).write_text(json.dumps(options, indent=1), encoding="utf-8")


def _text_encoder(config: PretrainedTextConfig) -> AnyTextEncoder:
    if (Path(config.source) / ENCODERS_FILE).is_file():
        return load_encoders(Path(config.source))[0].requires_grad_(True)
    return PretrainedTextEncoder.load(config)


def _audio_encoder(config: PretrainedSpeechConfig) -> AnySpeechEncoder:
    if (Path(config.source) / ENCODERS_FILE).is_file():
        return load_encoders(Path(config.source))[1].requires_grad_(True)
    return PretrainedSpeechEncoder.load(config)
