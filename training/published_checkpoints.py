"""Published checkpoints: their folder, and their weights, which are read without executing anything from the file."""

import json
import pickle
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file  # pyright: ignore[reportUnknownVariableType] - its PathLike is bare
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from shared.errors import BundleError, WeightsMissing
from shared.modeling import hub

SMALL_FILES = ("*.json", "README.md", "*.pkl", "*.joblib")
SAFE_WEIGHTS = "*.safetensors"
PICKLED_WEIGHTS = "pytorch_model*.bin"


def checkpoint_folder(source: str) -> Path:
    """Returns a folder with a checkpoint, downloading it from the hub if `source` is `REPOSITORY@COMMIT`.

    Raises:
        WeightsMissing: the source is neither a folder nor pinned to a commit, or the hub does not answer.
    """
    if Path(source).is_dir():
        return Path(source)
    repository, _, revision = source.partition("@")
    if not re.fullmatch("[0-9a-f]{40}", revision):
        raise WeightsMissing(
            f"{source!r} is not a folder, and a repository of the hub needs a commit of 40 hex digits as its revision, "
            f"not {revision!r}: a branch can change"
        )
    remedy = "connect to it once, or name a folder that holds the files"
    return hub.download(repository, revision, SMALL_FILES, ((SAFE_WEIGHTS,), (PICKLED_WEIGHTS,)), remedy=remedy)


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Returns all tensors of a checkpoint by name, from safetensors, or without those from `pytorch_model*.bin`.

    The latter are pickles; PyTorch's restricted reader reads the tensors and refuses everything else.

    Raises:
        BundleError: there are no weights, those of several models, or something other than tensors.
    """
    weights: dict[str, object] = {}
    for path in _weight_files(folder):
        try:
            safe = path.suffix == ".safetensors"
            weights |= load_file(path) if safe else torch.load(path, map_location="cpu", weights_only=True)
        except (
            SafetensorError,
            pickle.UnpicklingError,
            RuntimeError,
            OSError,
            TypeError,
            ValueError,
            EOFError,
        ) as error:
            raise BundleError(f"{path} is not a file of tensors only: {error}") from error
    tensors = {name: tensor for name, tensor in weights.items() if isinstance(tensor, Tensor)}
    if len(tensors) < len(weights):
        raise BundleError(f"the weights in {folder} are not named tensors")
    return tensors


def _weight_files(folder: Path) -> list[Path]:
    for pattern, whole in ((SAFE_WEIGHTS, "model.safetensors"), (PICKLED_WEIGHTS, "pytorch_model.bin")):
        files, index = sorted(folder.glob(pattern)), folder / f"{whole}.index.json"
        if index.is_file() and files:
            return [folder / name for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))]
        if folder / whole in files or len(files) == 1:
            return [folder / whole] if folder / whole in files else files
        if files:
            raise BundleError(f"{folder} holds several models: {', '.join(path.name for path in files)}")
    raise BundleError(f"{folder} holds no weights: neither {SAFE_WEIGHTS} nor {PICKLED_WEIGHTS}")


def with_weights(model: type[PreTrainedModel], config: PreTrainedConfig, weights: dict[str, Tensor]) -> PreTrainedModel:
    """Returns the model with all of its weights from the checkpoint, whose weights may have older names.

    Raises:
        BundleError: a weight is missing, has another shape, or does not belong to the model's head. Transformers would
            initialize the former at random and ignore the latter.
    """
    loaded: Any = model.from_pretrained(  # pyright: ignore[reportUnknownMemberType] - its PathLike is bare
        None, config=config, state_dict=dict(weights), output_loading_info=True, ignore_mismatched_sizes=True
    )
    instance, report = loaded
    if missing := sorted(report["missing_keys"]):
        raise BundleError(f"the checkpoint lacks weights of {model.__name__}: {', '.join(missing)}")
    if misshapen := sorted(name for name, *_ in report["mismatched_keys"]):
        raise BundleError(f"config.json gives other shapes than the checkpoint has for {', '.join(misshapen)}")
    if instance.base_model_prefix and instance.base_model is not instance:
        unknown = sorted(
            name for name in report["unexpected_keys"] if not name.startswith(f"{instance.base_model_prefix}.")
        )
        if unknown:
            raise BundleError(f"{model.__name__} has no place for weights of the checkpoint: {', '.join(unknown)}")
    return instance.float()
