"""Mixes the channels of a recording to mono, also where they are in opposite phase and would cancel."""

from collections.abc import Iterable, Iterator
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from shared.audio.blocks import equal_blocks

_BLOCK = 4_000
"""Samples for which the mix is decided together: 0.25 s at 16 kHz."""
_FADE = 160
"""Samples over which one mix changes into another."""
_CANCELLED = 0.1
"""The channels cancel if their mean has less than this share of the energy that it has if they have nothing in common.
"""
_MUCH_LOUDER = 2.0
"""Another channel must have this many times the energy to be chosen in place of the one that was chosen before."""

Frames = NDArray[np.float32]
"""Samples of shape [samples, channels]."""


class Downmix:
    """Mixes a recording's channels to their mean, and to the loudest channel in blocks in which they cancel.

    The result does not depend on how the recording is cut into frames.

    Attributes:
        cancelled: the number of samples for which the loudest channel was chosen.
    """

    def __init__(self) -> None:
        self.cancelled = 0

    def mix(self, frames: Iterable[Frames]) -> Iterator[Frames]:
        """Yields the mix of a recording's frames, in frames of shape [samples, 1]."""
        for channels, alike in groupby(frames, lambda frame: frame.shape[1]):
            yield from self._mix(alike, channels)

    def _mix(self, frames: Iterable[Frames], channels: int) -> Iterator[Frames]:
        if channels == 1:
            yield from frames
            return
        energies = np.zeros(channels)
        loudest: int | None = None
        before: int | None = None
        for block in equal_blocks(frames, _BLOCK):
            mean = block.mean(axis=1, keepdims=True)
            mix = None
            if np.vdot(mean, mean) < _CANCELLED * np.vdot(block, block) / channels**2:
                self.cancelled += len(block)
                energies += np.square(block, dtype=np.float64).sum(axis=0)
                # Of channels that are about equally loud always the same, because they differ in phase.
                if loudest is None or energies.max() > _MUCH_LOUDER * energies[loudest]:
                    loudest = int(energies.argmax())
                mix = loudest
            old, new = (mean if number is None else block[:, number : number + 1] for number in (before, mix))
            yield new if before == mix else _faded(old, new)
            before = mix


def _faded(old: Frames, new: Frames) -> Frames:
    """Returns `new`, into which `old` changes over its first samples."""
    rise = np.linspace(0, 1, min(_FADE, len(new)), dtype=np.float32)[:, None]
    faded = new.copy()
    faded[:_FADE] = rise * new[:_FADE] + (1 - rise) * old[:_FADE]
    return faded
