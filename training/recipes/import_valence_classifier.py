"""From the multilingual valence classifier, or one trained like it, to a bundle that serves it."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import MODEL_MAPPING

from shared.domain.bundle import Component
from shared.errors import BundleError
from shared.modeling.audio_classifiers import (
    PatchClassifierConfig,
    PatchTransformer,
    PatchTransformerConfig,
    PooledClassifier,
)
from training.checkpoints import checkpoint_folder, read_weights, with_weights
from training.pickled_scaler import Scaler, read_scaler
from training.recipes.import_checkpoint import config_of, extractor_of, label_space, stated_licence, write_bundle


def import_valence_classifier(
    source: str,
    encoder: str,
    out: Path,
    revision: str | None = None,
    labels: Sequence[str] = ("negative", "neutral", "positive"),
    heads: int = 8,
    activation: Literal["gelu", "relu"] = "gelu",
    norm_first: bool = False,
    window_s: float = 30.0,
    name: str | None = None,
    licence: str | None = None,
) -> None:
    """Write a bundle of a patch transformer on an encoder's mean-pooled output, and of that encoder.

    Args:
        source: a folder or a repository of the hub with the transformer's weights and its pickled StandardScaler.
        encoder: a folder, or REPOSITORY@COMMIT, with the encoder that the vectors come from.
        out: the bundle's folder.
        revision: the source's commit.
        labels: of the outputs, in order.
        heads: of the attention. Weights do not show it, nor the next two.
        activation: of the feed-forward layers and the head.
        norm_first: whether the layer norms stand before attention and feed-forward layers.
        window_s: the longest sound that is heard at once.
        name: the bundle's; the source's own if not given.
        licence: the checkpoint's; as its model card states it if not given.
    """
    pinned = f"{source}@{revision}" if revision else source
    folder, encoder_folder = checkpoint_folder(pinned), checkpoint_folder(encoder)
    patches = patch_transformer(read_weights(folder), _scaler_in(folder), heads, activation, norm_first)
    config = config_of(encoder_folder)
    if config.hidden_size != patches.config.features:
        raise BundleError(
            f"{folder} classifies vectors of {patches.config.features} numbers; {encoder} gives {config.hidden_size}"
        )
    if len(labels) != patches.config.categories:
        raise BundleError(f"{folder} has {patches.config.categories} outputs, not {len(labels)}: {', '.join(labels)}")
    model: Any = MODEL_MAPPING[type(config)]
    own_name = name or Path(source).name
    options = PatchClassifierConfig(outputs=tuple(labels), window_s=window_s, network=patches.config)
    write_bundle(
        out,
        own_name,
        label_space(own_name, options.outputs),
        Component(
            kind="patch_transformer",
            source=f"{pinned} on {encoder}",
            licence=licence or stated_licence(folder),
            options=options.model_dump(mode="json"),
        ),
        PooledClassifier(with_weights(model, config, read_weights(encoder_folder)), patches),
        config,
        extractor_of(encoder_folder),
    )


def patch_transformer(
    weights: Mapping[str, Tensor],
    scaler: Scaler,
    heads: int,
    activation: Literal["gelu", "relu"],
    norm_first: bool,
) -> PatchTransformer:
    """The transformer that the weights are of, whatever they are called: their shapes say which is which.

    Raises:
        BundleError: some are missing, or have no place.
    """
    ours = _of_ours(weights)
    try:
        config = PatchTransformerConfig(
            features=scaler.mean.size,
            patch=ours["patch_in.weight"].shape[1],
            width=ours["class_token"].shape[2],
            layers=1 + max(int(name.split(".")[2]) for name in ours if name.startswith("encoder.layers.")),
            heads=heads,
            hidden=len(ours["encoder.layers.0.linear1.weight"]),
            head_width=len(ours["head.0.weight"]),
            categories=len(ours["head.3.weight"]),
            activation=activation,
            norm_first=norm_first,
            final_norm="norm.weight" in ours,
        )
        network = PatchTransformer(config)
        numbers = {
            "standardization.mean": torch.tensor(scaler.mean),
            "standardization.deviation": torch.tensor(scaler.scale),
        }
        network.load_state_dict({**ours, **numbers})
    except (KeyError, ValueError, RuntimeError) as error:
        raise BundleError(f"the weights and the scaler do not make up a patch transformer: {error}") from error
    return network.float()


def _of_ours(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights by the names that `PatchTransformer` has for them."""
    ours: dict[str, Tensor] = {}
    width = next((len(tensor) for name, tensor in weights.items() if name.endswith("layers.0.norm1.weight")), 0)
    for name, tensor in weights.items():
        own_name, shape = _place(name, weights, width)
        if own_name in ours:
            raise BundleError(f"the checkpoint has a second weight that could be {own_name}: {name}")
        ours[own_name] = tensor.reshape(shape)
    return ours


def _place(name: str, weights: Mapping[str, Tensor], width: int) -> tuple[str, tuple[int, ...]]:
    """What a weight is called here, and its shape."""
    shape = tuple(weights[name].shape)
    if found := re.search(r"layers\.\d+\..+$", name):
        return f"encoder.{found[0]}", shape
    stem, _, kind = name.rpartition(".")
    if kind not in ("weight", "bias"):
        return _token(name, shape, width)
    layer = _layer(name, tuple(n for n in weights.get(f"{stem}.weight", weights[name]).shape if n != 1), width)
    return f"{layer}.{kind}", tuple(n for n in shape if n != 1)


def _token(name: str, shape: tuple[int, ...], width: int) -> tuple[str, tuple[int, ...]]:
    """The class token is one, the positions are many."""
    if not shape or shape[-1] != width:
        raise BundleError(f"a patch transformer has no place for {name}, of shape {list(shape)}")
    count = int(torch.Size(shape).numel() / width)
    return "class_token" if count == 1 else "positions", (1, count, width)


def _layer(name: str, shape: tuple[int, ...], width: int) -> str:
    """The layer whose weight has that shape; a patch may be projected by a convolution, too."""
    match shape:
        case (n,) if n == width:
            return "norm"
        case (_, n) if n == width:
            return "head.0"
        case (n, _) if n == width:
            return "patch_in"
        case (_, _):
            return "head.3"
    raise BundleError(f"a patch transformer has no place for {name}, of shape {list(shape)}")


def _scaler_in(folder: Path) -> Scaler:
    files = sorted([*folder.glob("*.pkl"), *folder.glob("*.joblib")])
    if len(files) != 1:
        raise BundleError(f"{folder} must hold one pickled StandardScaler, not {[path.name for path in files]}")
    return read_scaler(files[0])
