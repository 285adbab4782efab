"""The weight files of compact encoders."""

from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file  # pyright: ignore[reportUnknownVariableType] - its PathLike is bare
from torch import Tensor

from shared.modeling.quantization import Bits, quantize

EMBEDDINGS = "bert.embeddings.word_embeddings.weight"
_ATTENTION = (".query.weight", ".key.weight", ".value.weight")


def write_text_encoder(state: Mapping[str, Tensor], path: Path, layers: Bits) -> None:
    """Write a text encoder: its vocabulary in 4 bits, the matrices of its layers in `layers` bits, the rest in float16.

    The embeddings of positions and token types stay in float16: they are small, and their errors would affect every
    token.
    """
    bits: dict[str, Bits] = {name: layers for name in state if name.endswith((".dense.weight", *_ATTENTION))}
    bits[EMBEDDINGS] = 4
    save_file(quantize(state, bits), path)


def write_speech_encoder(state: Mapping[str, Tensor], path: Path) -> None:
    """Write a speech encoder in float16."""
    save_file({name: tensor.half().contiguous() for name, tensor in state.items()}, path)
