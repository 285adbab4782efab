"""Classifiers of sound that others have published: a clip in, one logit per category out."""

from collections.abc import Sequence
from math import ceil
from typing import Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.feature_extraction_utils import FeatureExtractionMixin

from shared.audio.decoder import SAMPLE_RATE, Samples
from shared.modeling.tokens import Standardization


class ClassifierConfig(BaseModel):
    """What a published classifier's own files do not say.

    Attributes:
        outputs: for each of the network's outputs, the category that it counts for; several may share one.
        window_s: the longest sound that the network hears at once.
        between: what stands between the two layers of the head, where transformers has nothing.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    outputs: tuple[str, ...]
    window_s: float = 30.0
    between: Literal["nothing", "tanh"] = "nothing"


class PatchTransformerConfig(BaseModel):
    """Shapes; the default is the multilingual valence classifier on XLSR-53 (width 1024).

    `features` is the length of the vector that is classified, a multiple of `patch`. `final_norm` is a layer norm
    between the transformer and the head.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    features: int = 1024
    patch: int = 64
    width: int = 256
    layers: int = 4
    heads: int = 8
    hidden: int = 1024
    head_width: int = 128
    categories: int = 3
    dropout: float = 0.2
    activation: Literal["gelu", "relu"] = "gelu"
    norm_first: bool = False
    final_norm: bool = False

    @property
    def patches(self) -> int:
        return self.features // self.patch


class PatchClassifierConfig(ClassifierConfig):
    """The same of a `PatchTransformer` on an encoder's mean-pooled output."""

    network: PatchTransformerConfig


class PatchTransformer(nn.Module):
    """A transformer over the patches of one standardised vector; its class token is classified.

    As ViT does with a picture's patches (Dosovitskiy et al. 2020, "An Image is Worth 16x16 Words").
    """

    def __init__(self, config: PatchTransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.standard = Standardization(config.features)
        self.patch_in = nn.Linear(config.patch, config.width)
        self.class_token = nn.Parameter(torch.randn(1, 1, config.width) * 0.02)
        self.positions = nn.Parameter(torch.randn(1, config.patches + 1, config.width) * 0.02)
        layer = nn.TransformerEncoderLayer(
            config.width,
            config.heads,
            config.hidden,
            config.dropout,
            config.activation,
            batch_first=True,
            norm_first=config.norm_first,
        )
        self.encoder = nn.TransformerEncoder(layer, config.layers, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(config.width) if config.final_norm else nn.Identity()
        self.head = nn.Sequential(
            nn.Linear(config.width, config.head_width),
            nn.GELU() if config.activation == "gelu" else nn.ReLU(),
            nn.Dropout(config.dropout),
            nn.Linear(config.head_width, config.categories),
        )

    def forward(self, vectors: Tensor) -> Tensor:
        """Logits of shape [batch, categories], from vectors of shape [batch, features]."""
        patches = self.patch_in(self.standard(vectors).unflatten(1, (self.config.patches, self.config.patch)))
        tokens = torch.cat([self.class_token.expand(len(vectors), -1, -1), patches], dim=1)
        return self.head(self.norm(self.encoder(tokens + self.positions)[:, 0]))


class SequenceClassifier(nn.Module):
    """A transformers model for audio classification.

    Some checkpoints were trained with a head of their own, a hyperbolic tangent between the two layers that
    transformers also has (`projector`, `classifier`): as both projections are of means over time, only it is added.
    """

    def __init__(self, model: PreTrainedModel, between: Literal["nothing", "tanh"] = "nothing") -> None:
        super().__init__()
        self.model: Any = model
        if between == "tanh":
            self.model.classifier = nn.Sequential(nn.Tanh(), self.model.classifier)

    def forward(self, **inputs: Tensor) -> Tensor:
        """Logits of shape [batch, outputs], from what the model's feature extractor gives."""
        return self.model(**inputs).logits


class PooledClassifier(nn.Module):
    """A patch transformer on the mean over time of an encoder's last hidden states."""

    def __init__(self, encoder: PreTrainedModel, patches: PatchTransformer) -> None:
        super().__init__()
        self.encoder = encoder
        self.patches = patches

    def forward(self, **inputs: Tensor) -> Tensor:
        """Logits of shape [batch, outputs], from what the encoder's feature extractor gives."""
        return self.patches(self.encoder(**inputs).last_hidden_state.mean(dim=1))


class AudioClassifier(nn.Module):
    """A network, the feature extractor that it was trained with, and what its outputs mean.

    Clips are heard one by one, as padding would change what some of these networks hear.
    """

    def __init__(
        self,
        network: nn.Module,
        extractor: FeatureExtractionMixin,
        outputs: Sequence[int],
        categories: int,
        window_s: float = 30.0,
    ) -> None:
        super().__init__()
        self.network = network
        self._extractor: Any = extractor
        self._window = int(window_s * SAMPLE_RATE)
        self._groups = [[i for i, category in enumerate(outputs) if category == c] for c in range(categories)]

    def forward(self, clips: Sequence[Samples]) -> Tensor:
        """Logits of shape [batch, categories].

        Outputs that count for one category add up as probabilities; a category that no output counts for has
        probability 0. A clip longer than the window is heard in equal parts, whose logits are averaged.
        """
        return torch.stack([self._grouped(self._outputs(clip)) for clip in clips])

    def _outputs(self, clip: Samples) -> Tensor:
        parts = np.array_split(clip, max(1, ceil(clip.size / self._window)))
        return torch.cat([self.network(**self._inputs(part)) for part in parts]).mean(dim=0)

    def _inputs(self, part: Samples) -> dict[str, Tensor]:
        """At least 0.1 s of sound: less than a convolution is wide cannot be heard."""
        sound = np.pad(part, (0, max(0, SAMPLE_RATE // 10 - part.size)))
        given = self._extractor(sound, sampling_rate=SAMPLE_RATE, return_tensors="pt")
        device = next(self.network.parameters()).device
        return {name: tensor.to(device) for name, tensor in given.items()}

    def _grouped(self, outputs: Tensor) -> Tensor:
        return torch.stack([outputs[group].logsumexp(dim=0) for group in self._groups])
