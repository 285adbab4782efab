"""Published audio classifiers: one clip of audio in, one logit per category out, without text or baseline."""

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
    """Settings that the files of a published classifier do not contain.

    Attributes:
        outputs: for each output of the network, the category that it stands for. Several outputs may share one.
        window_s: the longest clip that is classified in one piece, in seconds.
        head_activation: the activation between the two layers of the head, where transformers has none.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    outputs: tuple[str, ...]
    window_s: float = 30.0
    head_activation: Literal["none", "tanh"] = "none"


class PatchTransformerConfig(BaseModel):
    """Shapes of a patch transformer. The defaults are those of the multilingual valence classifier on XLSR-53.

    `features` is the length of the vector that is classified, a multiple of the patch length `patch`. `final_norm`
    adds a layer norm between the transformer and the head.
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
        """Number of patches."""
        return self.features // self.patch


class PatchClassifierConfig(ClassifierConfig):
    """Settings of a `PatchTransformer` on the mean-pooled output of an encoder."""

    network: PatchTransformerConfig


class PatchTransformer(nn.Module):
    """Classifies a vector: standardizes it, cuts it into patches, and runs a transformer over them and a class token.

    As ViT does with the patches of an image (Dosovitskiy et al. 2020, "An Image is Worth 16x16 Words").
    """

    def __init__(self, config: PatchTransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.standardization = Standardization(config.features)
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
        """Returns logits of shape [batch, categories] for vectors of shape [batch, features]."""
        patches = self.patch_in(self.standardization(vectors).unflatten(1, (self.config.patches, self.config.patch)))
        tokens = torch.cat([self.class_token.expand(len(vectors), -1, -1), patches], dim=1)
        return self.head(self.norm(self.encoder(tokens + self.positions)[:, 0]))


class SequenceClassifier(nn.Module):
    """A model of transformers' audio classification classes.

    In transformers, the head is a linear layer `projector` on every frame, the mean over time, and a linear layer
    `classifier`. Some checkpoints were trained with another head: the mean over time, a linear layer, tanh, and a
    second linear layer. Because a linear layer and a mean commute, adding the tanh is all that is needed.
    """

    def __init__(self, model: PreTrainedModel, head_activation: Literal["none", "tanh"] = "none") -> None:
        super().__init__()
        self.model: Any = model
        if head_activation == "tanh":
            self.model.classifier = nn.Sequential(nn.Tanh(), self.model.classifier)

    def forward(self, **inputs: Tensor) -> Tensor:
        """Returns logits of shape [batch, outputs] for the output of the model's feature extractor."""
        return self.model(**inputs).logits


class PooledClassifier(nn.Module):
    """A patch transformer on the mean over time of the last hidden states of an encoder."""

    def __init__(self, encoder: PreTrainedModel, patches: PatchTransformer) -> None:
        super().__init__()
        self.encoder = encoder
        self.patches = patches

    def forward(self, **inputs: Tensor) -> Tensor:
        """Returns logits of shape [batch, outputs] for the output of the encoder's feature extractor."""
        return self.patches(self.encoder(**inputs).last_hidden_state.mean(dim=1))


class AudioClassifier(nn.Module):
    """A network, its feature extractor, and the categories that its outputs stand for.

    Clips are classified one by one, because some of these networks do not mask padding.

    Args:
        network: returns logits of shape [1, outputs] for the output of the feature extractor.
        extractor: the feature extractor that the network was trained with.
        outputs: for each output of the network, the index of its category.
        categories: the number of categories.
        window_s: the longest clip that is classified in one piece, in seconds.
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
        """Returns logits of shape [batch, categories] for clips of shape [samples].

        The probabilities of outputs that share a category are summed; a category without an output has probability 0.
        A clip longer than the window is cut into equal parts, and their logits are averaged.
        """
        return torch.stack([self._grouped(self._outputs(clip)) for clip in clips])

    def _outputs(self, clip: Samples) -> Tensor:
        parts = np.array_split(clip, max(1, ceil(clip.size / self._window)))
        return torch.cat([self.network(**self._inputs(part)) for part in parts]).mean(dim=0)

    def _inputs(self, part: Samples) -> dict[str, Tensor]:
        # A convolution needs at least its own width of input, so a clip is padded to 0.1 s.
        padded = np.pad(part, (0, max(0, SAMPLE_RATE // 10 - part.size)))
        inputs = self._extractor(padded, sampling_rate=SAMPLE_RATE, return_tensors="pt")
        device = next(self.network.parameters()).device
        return {name: tensor.to(device) for name, tensor in inputs.items()}

    def _grouped(self, outputs: Tensor) -> Tensor:
        return torch.stack([outputs[group].logsumexp(dim=0) for group in self._groups])
