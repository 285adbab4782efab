"""A pickled scikit-learn StandardScaler as numbers, without unpickling it.

A pickle is a program, and whoever runs it trusts whoever wrote it. Here it is only read: `pickletools` takes it apart,
and what it would have called stays a note of a name and its arguments, from which the two arrays are then taken.
"""

import pickletools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from io import BufferedReader
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shared.errors import BundleError

_SCALER, _ARRAY, _BUFFER, _DTYPE, _ENCODE, _WRAPPER = "scaler", "array", "buffer", "dtype", "encode", "wrapper"
_NAMES = {
    "sklearn.preprocessing._data StandardScaler": _SCALER,
    "numpy ndarray": "type",
    "numpy dtype": _DTYPE,
    "numpy._core.multiarray scalar": "scalar",
    "numpy.core.multiarray scalar": "scalar",
    "numpy._core.multiarray _reconstruct": _ARRAY,
    "numpy.core.multiarray _reconstruct": _ARRAY,
    "numpy._core.numeric _frombuffer": _BUFFER,
    "numpy.core.numeric _frombuffer": _BUFFER,
    "_codecs encode": _ENCODE,
    "joblib.numpy_pickle NumpyArrayWrapper": _WRAPPER,
}
"""All that a pickled scaler names, in numpy 1 and 2, from `pickle` and from `joblib`."""

_PLAIN_TYPES = ("f4", "f8", "i4", "i8", "u4", "u8", "b1")


@dataclass(frozen=True)
class Scaler:
    """What a StandardScaler subtracts and divides by, each float64 of shape [features]."""

    mean: NDArray[np.float64]
    scale: NDArray[np.float64]


def read_scaler(path: Path) -> Scaler:
    """The numbers of a fitted StandardScaler that `pickle` or `joblib` wrote, protocol 2 or later, uncompressed.

    Raises:
        BundleError: the file names anything that a scaler has no need of, or is no fitted scaler.
    """
    try:
        with path.open("rb") as file:
            noted = _Notes(file).read()
        if not isinstance(noted, _Note) or noted.kind != _SCALER:
            raise ValueError("something else is in it")
        return _scaler(noted.state)
    except (ValueError, LookupError, TypeError, AttributeError, MemoryError, OverflowError) as error:
        raise BundleError(f"{path} is not a fitted StandardScaler, pickled uncompressed: {error}") from error


def _scaler(state: Mapping[str, Any]) -> Scaler:
    if "n_features_in_" not in state:
        raise ValueError("it was never fitted")
    known = _array(state["mean_" if state["with_mean"] else "scale_"])
    mean = _array(state["mean_"]) if state["with_mean"] else np.zeros_like(known)
    scale = _array(state["scale_"]) if state["with_std"] else np.ones_like(known)
    if mean.shape != scale.shape or mean.shape != (state["n_features_in_"],):
        raise ValueError(f"for {state['n_features_in_']} features it has {mean.size} means and {scale.size} scales")
    if not (np.isfinite(mean).all() and np.isfinite(scale).all() and (scale > 0).all()):
        raise ValueError("its means must be finite, and its scales above 0")
    return Scaler(mean, scale)


@dataclass
class _Note:
    """A call that a pickle would have made, or an object that it would have built."""

    kind: str
    arguments: tuple[Any, ...] = ()
    state: Any = None
    data: bytes = b""


_MARK = object()


class _Notes:
    """Reads a pickle's opcodes. Names become notes, all else plain values."""

    def __init__(self, file: BufferedReader) -> None:
        self._file = file
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}
        self._actions: dict[str, Callable[[Any], None]] = {
            **dict.fromkeys(_PUSHED, self._stack.append),
            **{name: lambda _, make=make: self._stack.append(make()) for name, make in _MADE.items()},
            **{f"TUPLE{n}": lambda _, n=n: self._stack.append(tuple(self._pop(n))) for n in (1, 2, 3)},
            **dict.fromkeys(("BINPUT", "LONG_BINPUT"), self._remember),
            "MEMOIZE": lambda _: self._remember(len(self._memo)),
            **dict.fromkeys(("BINGET", "LONG_BINGET"), lambda number: self._stack.append(self._memo[number])),
            **dict.fromkeys(("PROTO", "FRAME"), lambda _: None),
            **dict.fromkeys(("REDUCE", "NEWOBJ"), lambda _: self._call(*self._pop(2))),
            "TUPLE": lambda _: self._stack.append(tuple(self._pop_to_mark())),
            "SETITEM": lambda _: self._set(self._pop(2)),
            "SETITEMS": lambda _: self._set(self._pop_to_mark()),
            "GLOBAL": self._name,
            "STACK_GLOBAL": lambda _: self._name(" ".join(self._pop(2))),
            "BUILD": lambda _: self._build(),
        }

    def read(self) -> Any:  # noqa: ANN401 - whatever the pickle holds
        for opcode, argument, _ in pickletools.genops(self._file):
            if opcode.name == "STOP":
                return self._stack.pop()
            if opcode.name not in self._actions:
                raise ValueError(f"a scaler has no use for {opcode.name}")
            self._actions[opcode.name](argument)
        raise ValueError("it has no end")

    def _pop(self, count: int) -> list[Any]:
        taken = self._stack[-count:]
        del self._stack[-count:]
        return taken

    def _pop_to_mark(self) -> list[Any]:
        start = max(i for i, value in enumerate(self._stack) if value is _MARK)
        return self._pop(len(self._stack) - start)[1:]

    def _remember(self, number: int) -> None:
        self._memo[number] = self._stack[-1]

    def _set(self, pairs: list[Any]) -> None:
        self._stack[-1].update(zip(pairs[::2], pairs[1::2], strict=True))

    def _name(self, name: str) -> None:
        if name not in _NAMES:
            raise ValueError(f"it names {name.replace(' ', '.')}, which a scaler has no need of")
        self._stack.append(_Note(_NAMES[name]))

    def _call(self, named: _Note, arguments: tuple[Any, ...]) -> None:
        self._stack.append(_Note(named.kind, arguments))

    def _build(self) -> None:
        state = self._stack.pop()
        note: _Note = self._stack[-1]
        note.state = state
        if note.kind == _WRAPPER:
            # joblib puts an array's bytes into the file behind the object that announces it, aligned by so many bytes.
            if state.get("numpy_array_alignment_bytes") is not None:
                self._file.read(self._file.read(1)[0])
            note.data = self._file.read(prod(state["shape"]) * _dtype(state["dtype"]).itemsize)


_PUSHED = (
    *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"),
    *("BINUNICODE", "SHORT_BINUNICODE", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
)
_MADE: dict[str, Callable[[], Any]] = {
    "EMPTY_TUPLE": tuple,
    "EMPTY_DICT": dict,
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "MARK": lambda: _MARK,
}


def _array(note: _Note) -> NDArray[np.float64]:
    """The array of numbers that the note is of; its shape is [numbers]."""
    if note.kind == _BUFFER:
        data, dtype = note.arguments[:2]
    elif note.kind == _WRAPPER:
        data, dtype = note.data, note.state["dtype"]
    else:
        _, _, dtype, _, data = note.state
    return np.frombuffer(_bytes(data), _dtype(dtype)).astype(np.float64)


def _dtype(note: _Note) -> np.dtype[Any]:
    if note.kind != _DTYPE or note.arguments[0] not in _PLAIN_TYPES:
        raise ValueError(f"its arrays must be of numbers ({', '.join(_PLAIN_TYPES)})")
    return np.dtype(note.arguments[0]).newbyteorder(note.state[1])


def _bytes(data: bytes | _Note) -> bytes:
    """Protocol 2, which knows no bytes, has them as text that is to be encoded."""
    return data.arguments[0].encode("latin1") if isinstance(data, _Note) else data
