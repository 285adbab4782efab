"""Execution of models: their device, their precision, and whether they are compiled."""

# torch.compile has no complete types.
# pyright: reportUnknownMemberType=false

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
    """The device of all models, and the precision and compilation of pretrained encoders.

    Tenor's own small encoders, and everything after an encoder, are always float32 and never compiled.
    """

    device: str = "cpu"
    precision: torch.dtype = torch.float32
    compiled: bool = False

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        """Returns the execution that the settings ask for.

        Raises:
            SetupError: the device does not exist, does not support the precision, or has no working compiler.
        """
        device = _device(settings.models.device)
        if settings.models.compile:
            _check_compiler(device)
        return cls(device, _precision(settings.models.precision, device), settings.models.compile)

    def place(self, module: Module) -> Module:
        """Moves a module to the device and prepares it for inference. It is changed in place and returned.

        Training it or saving it is not possible afterwards.
        """
        if isinstance(module, PretrainedSpeechEncoder):
            module.drop_unused_layers()
        if isinstance(module, PretrainedTextEncoder | PretrainedSpeechEncoder):
            module.to(self.precision)
            if self.compiled:
                _compile_layers(module)
        return module.to(self.device)


def device_name(configured: str) -> str:
    """Returns what the setting `TENOR_MODELS_DEVICE` means on this machine, for people: cpu, or the name of the GPU."""
    on_cpu = configured == "cpu" or not torch.cuda.is_available()
    return "cpu" if on_cpu else torch.cuda.get_device_name()


def release_cached_memory() -> None:
    """Return the GPU memory that PyTorch keeps for later use, because other libraries cannot use it."""
    torch.cuda.empty_cache()


ON_CPU = Execution()
"""Models on the CPU, in float32 and not compiled."""


def _compile_layers(encoder: nn.Module) -> None:
    """Compile an encoder layer by layer.

    Layers of one class share the compiled code. Between layers the shapes depend on the data, which compiled code does
    not support. Only the `forward` that the class itself defines is compiled, and not the wrapper that transformers
    puts around it: the wrapper is one function for all classes, of which PyTorch compiles only a few versions, and its
    hooks collect the hidden states.
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
        # Each backend has its own error for a missing C++ compiler or Triton.
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise SetupError(
            f"TENOR_MODELS_COMPILE is set, but PyTorch cannot compile for {device} here: {reason}"
        ) from error


def _device(configured: str) -> str:
    available = torch.cuda.is_available()
    if configured == "cuda" and not available:
        raise SetupError("TENOR_MODELS_DEVICE is cuda, but this PyTorch finds no CUDA device: use auto or cpu")
    return "cuda" if available and configured != "cpu" else "cpu"


def _precision(configured: str, device: str) -> torch.dtype:
    if device == "cpu":
        return torch.float32 if configured == "auto" else getattr(torch, configured)
    has_bfloat16 = torch.cuda.is_bf16_supported(including_emulation=False)
    if configured == "bfloat16" and not has_bfloat16:
        raise SetupError("TENOR_MODELS_PRECISION is bfloat16, which this CUDA device does not support: use float16")
    if configured == "auto":
        return torch.bfloat16 if has_bfloat16 else torch.float16
    return getattr(torch, configured)
