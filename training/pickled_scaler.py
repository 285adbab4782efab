"""A pickled scikit-learn StandardScaler, read without running anything that the pickle names.

`pickle.Unpickler` resolves every name through `find_class`. Here the names that a scaler needs resolve to stand-ins
that only store their arguments and their state, and any other name is refused, so nothing of numpy, scikit-learn,
joblib or the operating system is called. The numbers are then taken from the stored arguments.
"""

import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from io import BufferedReader
from math import prod
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from shared.errors import BundleError

NUMBER_TYPES = ("f4", "f8", "i4", "i8", "u4", "u8", "b1")
"""The types of arrays that are read."""


@dataclass(frozen=True)
class Scaler:
    """What a StandardScaler subtracts and divides by, each float64 of shape [features]."""

    mean: NDArray[np.float64]
    scale: NDArray[np.float64]


def read_scaler(path: Path) -> Scaler:
    """Returns the numbers of a fitted StandardScaler, pickled uncompressed with protocol 2 or later, also by joblib.

    Raises:
        BundleError: the file names something that a scaler does not need, or is not a fitted scaler.
    """
    try:
        with path.open("rb") as file:
            content = _ScalerUnpickler(file).load()
        if not isinstance(content, _StandardScaler):
            raise ValueError("it holds something else")
        return _scaler(content.state)
    except (
        pickle.UnpicklingError,
        EOFError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        MemoryError,
        OverflowError,
    ) as error:
        raise BundleError(f"{path} is not a fitted StandardScaler, pickled uncompressed: {error}") from error


def _scaler(state: Mapping[str, Any]) -> Scaler:
    if "n_features_in_" not in state:
        raise ValueError("it was never fitted")
    known: NDArray[np.float64] = state["mean_" if state["with_mean"] else "scale_"].numbers()
    mean = state["mean_"].numbers() if state["with_mean"] else np.zeros_like(known)
    scale = state["scale_"].numbers() if state["with_std"] else np.ones_like(known)
    if mean.shape != scale.shape or mean.shape != (state["n_features_in_"],):
        raise ValueError(f"for {state['n_features_in_']} features it has {mean.size} means and {scale.size} scales")
    if not (np.isfinite(mean).all() and np.isfinite(scale).all() and (scale > 0).all()):
        raise ValueError("its means must be finite, and its scales above 0")
    return Scaler(mean, scale)


class _StandIn:
    """Stands in for a class or function that a pickle names, and stores what the pickle passes to it."""

    arguments: tuple[Any, ...]
    state: Any = None

    def __new__(cls, *arguments: Any) -> Self:  # noqa: ANN401 - whatever the pickle passes
        self = super().__new__(cls)
        self.arguments = arguments
        return self

    def __setstate__(self, state: Any) -> None:  # noqa: ANN401 - whatever the pickle passes
        self.state = state


class _StandardScaler(_StandIn):
    pass


class _DType(_StandIn):
    def dtype(self) -> np.dtype[Any]:
        if self.arguments[0] not in NUMBER_TYPES:
            raise ValueError(f"its arrays must be of numbers ({', '.join(NUMBER_TYPES)})")
        return np.dtype(self.arguments[0]).newbyteorder(self.state[1])


class _EncodedText(_StandIn):
    """Bytes, which protocol 2 writes as text to be encoded."""

    def content(self) -> bytes:
        return self.arguments[0].encode("latin1")


class _Reconstructed(_StandIn):
    """An array of protocols 2 to 4: its state ends with the type, the order and the bytes."""

    def numbers(self) -> NDArray[np.float64]:
        _, _, dtype, _, data = self.state
        return _to_numbers(data, dtype)


class _FromBuffer(_StandIn):
    """An array of protocol 5: its arguments begin with the bytes and the type."""

    def numbers(self) -> NDArray[np.float64]:
        return _to_numbers(*self.arguments[:2])


class _JoblibArray(_StandIn):
    """An array of joblib: its bytes follow in the file behind the object that describes it."""

    file: BufferedReader
    data: bytes

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.state = state
        if state.get("numpy_array_alignment_bytes") is not None:
            self.file.read(self.file.read(1)[0])
        self.data = self.file.read(prod(state["shape"]) * state["dtype"].dtype().itemsize)

    def numbers(self) -> NDArray[np.float64]:
        return _to_numbers(self.data, self.state["dtype"])


_ALLOWED: dict[str, type[_StandIn]] = {
    "sklearn.preprocessing._data.StandardScaler": _StandardScaler,
    "numpy.ndarray": _StandIn,
    "numpy.dtype": _DType,
    "numpy._core.multiarray.scalar": _StandIn,
    "numpy.core.multiarray.scalar": _StandIn,
    "numpy._core.multiarray._reconstruct": _Reconstructed,
    "numpy.core.multiarray._reconstruct": _Reconstructed,
    "numpy._core.numeric._frombuffer": _FromBuffer,
    "numpy.core.numeric._frombuffer": _FromBuffer,
    "_codecs.encode": _EncodedText,
    "joblib.numpy_pickle.NumpyArrayWrapper": _JoblibArray,
}
"""The stand-ins for all names in a pickled scaler, by numpy 1 and 2, `pickle` and `joblib`."""


class _ExactReads:
    """A file without `peek`: the unpickler then reads no further than it needs, and joblib's bytes come next."""

    def __init__(self, file: BufferedReader) -> None:
        self.read = file.read
        self.readline = file.readline


class _ScalerUnpickler(pickle.Unpickler):
    def __init__(self, file: BufferedReader) -> None:
        super().__init__(_ExactReads(file))
        self._file = file

    def find_class(self, module_name: str, global_name: str, /) -> type[_StandIn]:
        """Returns the stand-in for a name.

        Raises:
            UnpicklingError: a scaler does not need the name.
        """
        name = f"{module_name}.{global_name}"
        if name not in _ALLOWED:
            raise pickle.UnpicklingError(f"it names {name}, which a scaler does not need")
        # A new class each time: a pickle can set attributes on what a name resolves to, and they must not outlive it.
        return type(global_name, (_ALLOWED[name],), {"file": self._file})


def _to_numbers(data: bytes | _EncodedText, dtype: _DType) -> NDArray[np.float64]:
    content = data.content() if isinstance(data, _EncodedText) else data
    return np.frombuffer(content, dtype.dtype()).astype(np.float64)
