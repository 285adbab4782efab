"""How models are run: on which device, and the pretrained ones in which precision, compiled or as they are."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Self, TypeVar

import torch
from torch import nn

from shared.errors import SetupError
from shared.modeling.pretrained_encoders import PretrainedSpeechEncoder, PretrainedTextEncoder, transformer_layers
from shared.settings import Settings

Module = TypeVar("Module", bound=nn.Module)


@dataclass(frozen=True)
class Execution:
    """A device, and what pretrained encoders are on it.

    A bundle's own small encoders, and everything that comes after an encoder, are float32 whatever is set.
    """

    device: str = "cpu"
    precision: torch.dtype = torch.float32
    compiled: bool = False

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """As the settings say.

        Raises:
            SetupError: the device is not there, lacks the precision, or nothing can be compiled for it.
        """
        device = _device(settings.device)
        if settings.compile:
            _check_compiler(device)
        return cls(device, _precision(settings.precision, device), settings.compile)

    def place(self, module: Module) -> Module:
        """The module, changed in place to be run so, and for nothing else."""
        if isinstance(module, PretrainedSpeechEncoder):
            module.drop_unused_layers()
        if isinstance(module, PretrainedTextEncoder | PretrainedSpeechEncoder):
            module.to(self.precision)
            if self.compiled:
                _compile_layers(module)
        return module.to(self.device)


ON_CPU = Execution()
"""As tests and tools run models: nothing is changed."""


def _compile_layers(encoder: nn.Module) -> None:
    """Compile layer by layer: layers alike share what is compiled, and between them shapes depend on data.

    Only a layer's own `forward` is compiled, within what transformers puts around it: that is one function for all
    kinds of layers, of which PyTorch compiles but a few versions, and hooks on it catch what every layer gives.
    """
    compiled: dict[type[nn.Module], Callable[..., Any]] = {}
    for layer in transformer_layers(encoder):
        kind = type(layer)
        if kind not in compiled:
            compiled[kind] = torch.compile(inspect.unwrap(kind.forward), dynamic=True)
        layer.forward = partial(compiled[kind], layer)


def _check_compiler(device: str) -> None:
    try:
        torch.compile(torch.nn.functional.gelu)(torch.zeros(2, device=device))
    except Exception as error:
        # What is missing, a C++ compiler or Triton, every backend tells in an error of its own.
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise SetupError(f"TENOR_COMPILE is set, but PyTorch cannot compile for {device} here: {said}") from error


def _device(configured: str) -> str:
    available = torch.cuda.is_available()
    if configured == "cuda" and not available:
        raise SetupError("TENOR_DEVICE is cuda, but this PyTorch finds no CUDA device: use auto or cpu")
    return "cuda" if available and configured != "cpu" else "cpu"


def _precision(configured: str, device: str) -> torch.dtype:
    if device == "cpu":
        return torch.float32 if configured == "auto" else getattr(torch, configured)
    has_bfloat16 = torch.cuda.is_bf16_supported(including_emulation=False)
    if configured == "bfloat16" and not has_bfloat16:
        raise SetupError("TENOR_PRECISION is bfloat16, which this CUDA device does not compute with: use float16")
    if configured == "auto":
        return torch.bfloat16 if has_bfloat16 else torch.float16
    return getattr(torch, configured)
