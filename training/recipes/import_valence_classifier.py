"""The recipe `import_valence_classifier`: makes a bundle of the multilingual valence classifier or one like it."""

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
from training.pickled_scaler import Scaler, read_scaler
from training.published_checkpoints import checkpoint_folder, read_weights, with_weights
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
        source: A folder or a repository of the hub with the transformer's weights and its pickled StandardScaler.
        encoder: A folder, or REPOSITORY@COMMIT, with the encoder that computes the vectors.
        out: The folder of the bundle.
        revision: The source's commit.
        labels: The labels of the outputs, in order.
        heads: The number of attention heads. The weights do not show it, nor the next two.
        activation: The activation of the feed-forward layers and the head.
        norm_first: Whether the layer norms precede the attention and feed-forward layers.
        window_s: The longest audio that is encoded at once, in seconds.
        name: The name of the bundle; by default that of the source.
        licence: The licence of the checkpoint; by default as its model card states it.

    Raises:
        BundleError: the weights and the scaler do not make up a patch transformer on this encoder.
        WeightsMissing: a checkpoint cannot be downloaded.
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
    """Returns the patch transformer of some weights, which are identified by their shapes and not by their names.

    Raises:
        BundleError: a weight is missing or does not belong to a patch transformer.
    """
    renamed = _renamed(weights)
    try:
        config = PatchTransformerConfig(
            features=scaler.mean.size,
            patch=renamed["patch_in.weight"].shape[1],
            width=renamed["class_token"].shape[2],
            layers=1 + max(int(name.split(".")[2]) for name in renamed if name.startswith("encoder.layers.")),
            heads=heads,
            hidden=len(renamed["encoder.layers.0.linear1.weight"]),
            head_width=len(renamed["head.0.weight"]),
            categories=len(renamed["head.3.weight"]),
            activation=activation,
            norm_first=norm_first,
            final_norm="norm.weight" in renamed,
        )
        network = PatchTransformer(config)
        numbers = {
            "standardization.mean": torch.tensor(scaler.mean),
            "standardization.deviation": torch.tensor(scaler.scale),
        }
        network.load_state_dict({**renamed, **numbers})
    except (KeyError, ValueError, RuntimeError) as error:
        raise BundleError(f"the weights and the scaler do not make up a patch transformer: {error}") from error
    return network.float()


def _renamed(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the weights under their names in `PatchTransformer`."""
    renamed: dict[str, Tensor] = {}
    width = next((len(tensor) for name, tensor in weights.items() if name.endswith("layers.0.norm1.weight")), 0)
    for name, tensor in weights.items():
        own_name, shape = _place(name, weights, width)
        if own_name in renamed:
            raise BundleError(f"the checkpoint has a second weight that could be {own_name}: {name}")
        renamed[own_name] = tensor.reshape(shape)
    return renamed


def _place(name: str, weights: Mapping[str, Tensor], width: int) -> tuple[str, tuple[int, ...]]:
    """Returns the name of a weight in `PatchTransformer`, and its shape there."""
    shape = tuple(weights[name].shape)
    if found := re.search(r"layers\.\d+\..+$", name):
        return f"encoder.{found[0]}", shape
    stem, _, kind = name.rpartition(".")
    if kind not in ("weight", "bias"):
        return _token(name, shape, width)
    layer = _layer(name, tuple(n for n in weights.get(f"{stem}.weight", weights[name]).shape if n != 1), width)
    return f"{layer}.{kind}", tuple(n for n in shape if n != 1)


def _token(name: str, shape: tuple[int, ...], width: int) -> tuple[str, tuple[int, ...]]:
    """Returns the name of a token embedding: a single one is the class token, several are the positions."""
    if not shape or shape[-1] != width:
        raise BundleError(f"a patch transformer has no place for {name}, of shape {list(shape)}")
    count = int(torch.Size(shape).numel() / width)
    return "class_token" if count == 1 else "positions", (1, count, width)


def _layer(name: str, shape: tuple[int, ...], width: int) -> str:
    """Returns the layer whose weight has the shape; a convolution may project the patches as well."""
    match shape:
        case (n,) if n == width:
            return "norm"
        case (_, n) if n == width:
            return "head.0"
        case (n, _) if n == width:
            return "patch_in"
        case (_, _):
            return "head.3"
        case _:
            raise BundleError(f"a patch transformer has no place for {name}, of shape {list(shape)}")


def _scaler_in(folder: Path) -> Scaler:
    files = sorted([*folder.glob("*.pkl"), *folder.glob("*.joblib")])
    if len(files) != 1:
        raise BundleError(f"{folder} must hold one pickled StandardScaler, not {[path.name for path in files]}")
    return read_scaler(files[0])
