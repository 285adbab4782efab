"""Weights in few bits: near the original, and the same again when stored again."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from shared.modeling.quantization import Bits, dequantize, quantize

MATRICES = arrays(np.float32, (3, 64), elements=st.floats(-100, 100, width=32)).map(torch.from_numpy)


def stored(matrix: torch.Tensor, bits: Bits = 4) -> torch.Tensor:
    return dequantize(quantize({"weight": matrix}, {"weight": bits}))["weight"]


@pytest.mark.parametrize(("bits", "steps"), [(4, 8), (8, 254)])
@given(matrix=MATRICES)
def test_every_number_is_within_a_step_of_its_block(matrix: torch.Tensor, bits: Bits, steps: int) -> None:
    step = matrix.reshape(-1, 32).abs().amax(dim=1, keepdim=True) / steps
    error = (stored(matrix, bits) - matrix).reshape(-1, 32).abs()
    # A scale is a float16: of 127 steps, half a thousandth each adds up.
    assert (error <= step * (1.01 if bits == 4 else 1.2) + 1e-5).all()


@given(MATRICES)
def test_quantizing_twice_changes_nothing(matrix: torch.Tensor) -> None:
    once = stored(matrix)
    assert stored(once).equal(once)


def test_half_a_byte_a_number_and_a_scale_for_each_32() -> None:
    state = quantize({"weight": torch.randn(10, 64), "bias": torch.randn(10)}, {"weight": 4})
    assert sum(tensor.nbytes for name, tensor in state.items() if name.startswith("weight")) == 10 * 64 * 4.5 / 8
    assert state["bias"].dtype == torch.float16


def test_weights_that_are_not_named_are_not_quantized() -> None:
    table = torch.randn(4, 32)
    assert dequantize(quantize({"table": table}, {}))["table"].equal(table.half())
