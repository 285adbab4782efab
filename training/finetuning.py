"""Fine-tuning of encoders: freezing, LoRA and gradient checkpointing."""

# transformers has no complete types.
# pyright: reportUnknownMemberType=false

from typing import Literal, cast

from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from pydantic import BaseModel, ConfigDict, Field
from torch import nn
from transformers import PreTrainedModel
from transformers.models.hubert.modeling_hubert import HubertFeatureEncoder
from transformers.models.wav2vec2.modeling_wav2vec2 import Wav2Vec2FeatureEncoder
from transformers.models.wavlm.modeling_wavlm import WavLMAttention, WavLMFeatureEncoder

from shared.modeling.pretrained_encoders import transformer_layers

FRONT_END = ("feature_extractor", "conv1", "conv2")
"""Names of the convolutions in front of the layers of speech encoders."""
ATTENTION = ({"query", "value"}, {"query_proj", "value_proj"}, {"q_proj", "v_proj"})
"""Names of the attention projections that LoRA changes, as in Hu et al. 2021, by architecture."""
FEED_FORWARD = {"intermediate_dense", "output_dense"}


class Lora(BaseModel):
    """Low-rank adaptation (Hu et al. 2021): each target's weights W become W + alpha / rank * B A."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rank: int = Field(default=8, ge=1)
    """The rank of B A."""
    alpha: int = Field(default=16, ge=1)
    """The scale of B A, divided by the rank."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout in front of A."""
    targets: tuple[str, ...] | None = None
    """Names of the linear modules to adapt; None takes those of the architecture's attention."""


def freeze(encoder: nn.Module, layers: int | Literal["all"] = 0, cnn: bool = False) -> None:
    """Exclude weights of an encoder from training; weights that are excluded already stay excluded.

    Args:
        encoder: the encoder.
        layers: how many of the first transformer layers to freeze; with them, everything outside the layers is frozen
            (embeddings, convolutions, norms). "all" leaves nothing to train.
        cnn: freeze the convolutions of a speech encoder even if `layers` is 0.

    Raises:
        ValueError: the encoder has fewer layers.
    """
    stack = transformer_layers(encoder)
    count = len(stack) if layers == "all" else layers
    if not 0 <= count <= len(stack):
        raise ValueError(f"layers is {layers}, but the encoder has {len(stack)}")
    upper = {id(weight) for layer in stack[count:] for weight in layer.parameters()}
    for weight in encoder.parameters() if count else ():
        weight.requires_grad_(weight.requires_grad and id(weight) in upper)
    if cnn or count:
        _freeze_front_end(encoder)


def add_lora(encoder: nn.Module, lora: Lora) -> None:
    """Add low-rank weights to an encoder's linear modules, in place; only they train from then on.

    Raises:
        ValueError: the encoder has none of the target modules.
    """
    targets = list(lora.targets or _targets(encoder))
    config = LoraConfig(r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=targets)
    inject_adapter_in_model(config, encoder)


def merge_lora(encoder: nn.Module) -> None:
    """Add the low-rank weights to the plain ones, so that the encoder can be exported without PEFT."""
    for name, module in _modules(encoder):
        if isinstance(module, LoraLayer):
            module.merge()
            encoder.set_submodule(name, module.get_base_layer())


def checkpoint_gradients(encoder: nn.Module) -> None:
    """Recompute the layers in the backward pass: less memory, a third more time.

    See Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost".

    Raises:
        ValueError: the encoder is not one of transformers' models.
    """
    models = [module for module in encoder.modules() if isinstance(module, PreTrainedModel)]
    if not models:
        raise ValueError(f"{type(encoder).__name__} cannot checkpoint gradients; a pretrained encoder can")
    for model in models:
        model.gradient_checkpointing_enable({"use_reentrant": False})


def _modules(encoder: nn.Module) -> list[tuple[str, nn.Module]]:
    # PyTorch does not annotate what `named_modules` yields.
    return cast("list[tuple[str, nn.Module]]", [*encoder.named_modules()])


def _freeze_front_end(encoder: nn.Module) -> None:
    for name, module in _modules(encoder):
        if name.rpartition(".")[2] in FRONT_END:
            module.requires_grad_(False)
            # The front end of wav2vec 2.0 requires gradients of its input until this is set.
            if isinstance(module, Wav2Vec2FeatureEncoder | HubertFeatureEncoder | WavLMFeatureEncoder):
                module._requires_grad = False  # pyright: ignore[reportPrivateUsage] - it has no public name


def _targets(encoder: nn.Module) -> set[str]:
    # WavLM's attention uses its projections' weights without calling the modules, so LoRA there would have no effect.
    if any(isinstance(module, WavLMAttention) for module in encoder.modules()):
        return FEED_FORWARD
    names = {name.rpartition(".")[2] for name, _ in _modules(encoder)}
    for targets in ATTENTION:
        if targets <= names:
            return targets
    raise ValueError(
        f"{type(encoder).__name__} has no attention modules with a known name: name them in `lora.targets`"
    )
