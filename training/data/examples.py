"""Examples, what the model is given of an utterance, and batches of them."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from shared.audio.decoder import Samples
from shared.modeling.baseline import AudioSummary, SpeakerBaseline
from shared.modeling.fusion import FusionConfig
from shared.modeling.tokens import Tokens
from training.data.utterance import Utterance


@dataclass(frozen=True)
class TextWithContext:
    """A text, and the texts of the preceding turns, oldest first."""

    text: str
    context: tuple[str, ...] = ()


@dataclass(frozen=True)
class Example:
    """An utterance with its text and its audio, either of which may be None.

    Attributes:
        text: features of shape [tokens, text width], or the text itself.
        audio: features of shape [tokens, layers, audio width], or the samples themselves.
        earlier: audio summaries of the speaker's earlier turns.
        augmentation: the augmentation of the audio.
    """

    utterance: Utterance
    text: Tensor | TextWithContext | None
    audio: Tensor | Samples | None
    earlier: Sequence[AudioSummary] = ()
    augmentation: str = "original"


@dataclass(frozen=True)
class UnencodedBatch:
    """A batch of texts and samples, for encoders that train."""

    examples: tuple[Example, ...]

    def to(self, device: torch.device, non_blocking: bool = False) -> "UnencodedBatch":
        """Returns the batch itself: Lightning calls this, and the encoders move what they compute."""
        return self


@dataclass(frozen=True)
class Batch:
    """A batch for the fusion.

    Attributes:
        target: shape [batch, categories].
        valence: shape [batch]; NaN where it is unknown.
    """

    text: Tokens
    audio: Tokens
    baseline: SpeakerBaseline
    target: Tensor
    valence: Tensor
    utterances: tuple[Utterance, ...]

    def to(self, device: torch.device, non_blocking: bool = False) -> "Batch":
        """Returns the batch on another device."""
        text, audio = (Tokens(tokens.features.to(device), tokens.mask.to(device)) for tokens in (self.text, self.audio))
        known = self.baseline
        baseline = SpeakerBaseline(known.count.to(device), known.mean.to(device), known.variance.to(device))
        return Batch(text, audio, baseline, self.target.to(device), self.valence.to(device), self.utterances)

    def mixed(self, alpha: float) -> "Batch":
        """Returns the batch with mixup (Zhang et al. 2018): each clip is overlaid with another clip of the batch.

        The other clip is the softer one. Target, valence and baseline are mixed in the same proportion.

        Args:
            alpha: the parameter of the Beta distribution that the proportion is drawn from; 0 mixes nothing.
        """
        if alpha == 0 or not self.audio.mask.any():
            return self
        share = torch.distributions.Beta(alpha, alpha).sample().item()
        share = max(share, 1 - share)  # the text stays that of the louder clip
        other = torch.randperm(len(self.utterances))
        overlap = (self.audio.mask & self.audio.mask[other])[..., None, None]
        features = self.audio.features
        features = torch.where(overlap, share * features + (1 - share) * features[other], features)
        known = self.baseline
        target, valence, mean = (share * x + (1 - share) * x[other] for x in (self.target, self.valence, known.mean))
        baseline = SpeakerBaseline(torch.minimum(known.count, known.count[other]), mean, known.variance)
        return Batch(self.text, Tokens(features, self.audio.mask), baseline, target, valence, self.utterances)


def unencoded_batch(examples: Sequence[Example]) -> UnencodedBatch:
    """Returns a batch for encoders that train."""
    return UnencodedBatch(tuple(examples))


def collate(examples: Sequence[Example], config: FusionConfig) -> Batch:
    """Returns a padded batch of features. If no example has a modality, each row has one masked token of it."""
    return Batch(
        text=_tokens([_features(example.text) for example in examples], (config.text_width,)),
        audio=_tokens([_features(example.audio) for example in examples], (config.audio_layers, config.audio_width)),
        baseline=SpeakerBaseline.from_summaries([example.earlier for example in examples], config.summary_shape),
        target=torch.tensor([example.utterance.target for example in examples]),
        valence=torch.tensor([float("nan") if (v := example.utterance.valence) is None else v for example in examples]),
        utterances=tuple(example.utterance for example in examples),
    )


def _features(value: Tensor | TextWithContext | Samples | None) -> Tensor | None:
    if value is None or isinstance(value, Tensor):
        return value
    raise TypeError(f"expected features, got a {type(value).__name__}: encode the example first")


def _tokens(sequences: Sequence[Tensor | None], shape: tuple[int, ...]) -> Tokens:
    given = [sequence for sequence in sequences if sequence is not None]
    empty = (given[0] if given else torch.empty(0)).new_zeros(0, *shape)
    padded = Tokens.padded([empty if sequence is None else sequence for sequence in sequences])
    if padded.mask.shape[1] > 0:
        return padded
    return Tokens(torch.zeros(len(sequences), 1, *shape), torch.zeros(len(sequences), 1, dtype=torch.bool))
