"""Quantization: stores weight matrices in 4.5 or 8.5 bits per number.

The formats follow llama.cpp's Q4_0 and Q8_0: each block of 32 numbers shares a float16 scale, and each number is an
integer multiple of it, from -8 to 7 or from -127 to 127. In a block, the number with the largest magnitude is kept
exactly, up to float16. In four bits, it follows that quantizing a dequantized matrix again changes nothing.
"""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

BLOCK = 32
Bits = Literal[4, 8]
_NIBBLES, _SCALES = ".q4", ".q4_scales"
_BYTES, _BYTE_SCALES = ".q8", ".q8_scales"


def quantize(state: Mapping[str, Tensor], bits: Mapping[str, Bits]) -> dict[str, Tensor]:
    """Returns a state dict with the matrices named in `bits` quantized to 4 or 8 bits, and all else in float16.

    A matrix of shape [rows, columns], with columns a multiple of 32, becomes `NAME.q4`, uint8 of shape [blocks, 16],
    and `NAME.q4_scales`, float16 of shape [rows, columns / 32]; or `NAME.q8`, int8 of the matrix's shape, and
    `NAME.q8_scales`.
    """
    stored: dict[str, Tensor] = {}
    for name, tensor in state.items():
        match bits.get(name):
            case 4:
                stored[name + _NIBBLES], stored[name + _SCALES] = _quantize(tensor)
            case 8:
                stored[name + _BYTES], stored[name + _BYTE_SCALES] = _quantize_to_bytes(tensor)
            case None:
                stored[name] = tensor.half().contiguous()
    return stored


def dequantize(stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the state dict that `quantize` was called with, up to rounding; other tensors stay as they are."""
    state: dict[str, Tensor] = {}
    for name, tensor in stored.items():
        if name.endswith(_NIBBLES):
            matrix = name.removesuffix(_NIBBLES)
            state[matrix] = _dequantize(tensor, stored[matrix + _SCALES])
        elif name.endswith(_BYTES):
            matrix = name.removesuffix(_BYTES)
            state[matrix] = _scaled(tensor.float(), stored[matrix + _BYTE_SCALES])
        elif not name.endswith((_SCALES, _BYTE_SCALES)):
            state[name] = tensor
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
    return _scaled(torch.cat([nibbles & 15, nibbles >> 4], dim=1).float() - 8, scales)


def _quantize_to_bytes(matrix: Tensor) -> tuple[Tensor, Tensor]:
    blocks = matrix.float().reshape(-1, BLOCK)
    scales = (blocks.abs().amax(dim=1, keepdim=True) / 127).half()
    divisor = torch.where(scales == 0, 1.0, scales.float())
    steps = (blocks / divisor).round().clamp(-127, 127).to(torch.int8)
    return steps.reshape(matrix.shape), scales.reshape(len(matrix), -1)


def _scaled(steps: Tensor, scales: Tensor) -> Tensor:
    return (steps.reshape(-1, BLOCK) * scales.float().reshape(-1, 1)).reshape(len(scales), -1)
