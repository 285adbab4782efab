"""The feature cache: the frozen encoders' features of every utterance, written once and read by memory mapping."""

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

FeatureArray = NDArray[np.float16]


class FeatureFile:
    """Features of many utterances, each of shape [tokens, ...], in one array; the key is the utterance's id."""

    def __init__(self, folder: Path) -> None:
        self._array = np.load(folder / "features.npy", mmap_mode="r")
        self._spans: dict[str, list[int]] = json.loads((folder / "spans.json").read_text())

    def __contains__(self, id_: str) -> bool:
        return id_ in self._spans

    def __getitem__(self, id_: str) -> FeatureArray:
        start, end = self._spans[id_]
        return self._array[start:end]

    @staticmethod
    def exists(folder: Path) -> bool:
        """Whether a complete file is in the folder."""
        return (folder / "spans.json").is_file()

    @staticmethod
    def write(folder: Path, items: Iterable[tuple[str, FeatureArray]]) -> None:
        """Write a file, replacing an earlier one. `exists` is true only after everything is written."""
        folder.mkdir(parents=True, exist_ok=True)
        spans: dict[str, list[int]] = {}
        sequences: list[FeatureArray] = []
        count = 0
        for id_, sequence in items:
            spans[id_] = [count, count + len(sequence)]
            count += len(sequence)
            sequences.append(sequence)
        array = open_memmap(
            folder / "features.npy", mode="w+", dtype=np.float16, shape=(count, *sequences[0].shape[1:])
        )
        at = 0
        for sequence in sequences:
            array[at : at + len(sequence)] = sequence
            at += len(sequence)
        array.flush()
        (folder / "spans.json").write_text(json.dumps(spans))
