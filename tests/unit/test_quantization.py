"""Four-bit weights: near the original, and the same again when stored again."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from shared.modeling.quantization import dequantized, quantized

MATRICES = arrays(np.float32, (3, 64), elements=st.floats(-100, 100, width=32)).map(torch.from_numpy)


def stored(matrix: torch.Tensor) -> torch.Tensor:
    return dequantized(quantized({"weight": matrix}, {"weight"}))["weight"]


@given(MATRICES)
def test_every_number_is_within_a_step_of_its_block(matrix: torch.Tensor) -> None:
    step = matrix.reshape(-1, 32).abs().amax(dim=1, keepdim=True) / 8
    error = (stored(matrix) - matrix).reshape(-1, 32).abs()
    assert (error <= step * 1.01 + 1e-6).all()


@given(MATRICES)
def test_storing_again_changes_nothing(matrix: torch.Tensor) -> None:
    once = stored(matrix)
    assert stored(once).equal(once)


def test_half_a_byte_a_number_and_a_scale_for_each_32() -> None:
    state = quantized({"weight": torch.randn(10, 64), "bias": torch.randn(10)}, {"weight"})
    assert sum(tensor.nbytes for name, tensor in state.items() if name.startswith("weight")) == 10 * 64 * 4.5 / 8
    assert state["bias"].dtype == torch.float16


def test_what_is_not_named_is_kept() -> None:
    table = torch.randn(4, 32)
    assert dequantized(quantized({"table": table}, set()))["table"].equal(table.half())
