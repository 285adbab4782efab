"""Four-bit weights: how a bundle stores an encoder's matrices in 4.5 bits a number.

As llama.cpp's Q4_0: blocks of 32 numbers share a float16 scale, and each is a multiple of it from -8 to 7. Whichever
number of a block is largest in magnitude is kept exactly, up to float16, so that storing again changes nothing.
"""

from collections.abc import Collection, Mapping

import torch
from torch import Tensor

BLOCK = 32
_NIBBLES, _SCALES = ".q4", ".q4_scales"


def quantized(state: Mapping[str, Tensor], matrices: Collection[str]) -> dict[str, Tensor]:
    """A state in which the `matrices` are stored in four bits and all else in float16.

    A matrix of shape [rows, columns], with columns a multiple of 32, becomes `NAME.q4`, uint8 of shape [blocks, 16],
    and `NAME.q4_scales`, float16 of shape [rows, columns / 32].
    """
    stored: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name in matrices:
            stored[name + _NIBBLES], stored[name + _SCALES] = _quantize(tensor)
        else:
            stored[name] = tensor.half().contiguous()
    return stored


def dequantized(stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What `quantized` stored, in float32 where it was four bits; a state that it did not store stays as it is."""
    state = {name: tensor for name, tensor in stored.items() if not name.endswith((_NIBBLES, _SCALES))}
    for name, nibbles in stored.items():
        if name.endswith(_NIBBLES):
            matrix = name.removesuffix(_NIBBLES)
            state[matrix] = _dequantize(nibbles, stored[matrix + _SCALES])
    return state


def _quantize(matrix: Tensor) -> tuple[Tensor, Tensor]:
    blocks = matrix.float().reshape(-1, BLOCK)
    largest = blocks.gather(1, blocks.abs().argmax(dim=1, keepdim=True))
    scales = (largest / -8).half()
    divisor = torch.where(scales == 0, 1.0, scales.float())
    steps = (blocks / divisor).round().clamp(-8, 7).to(torch.int16) + 8
    nibbles = (steps[:, : BLOCK // 2] | steps[:, BLOCK // 2 :] << 4).to(torch.uint8)
    return nibbles, scales.reshape(len(matrix), -1)


def _dequantize(nibbles: Tensor, scales: Tensor) -> Tensor:
    steps = torch.cat([nibbles & 15, nibbles >> 4], dim=1).float() - 8
    return (steps * scales.float().reshape(-1, 1)).reshape(len(scales), -1)
