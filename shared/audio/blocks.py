"""Cuts a stream of audio frames into blocks of equal length."""

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray


def equal_blocks(frames: Iterable[NDArray[np.float32]], size: int) -> Iterator[NDArray[np.float32]]:
    """Yields the same samples in blocks of `size` samples, of which the last may be shorter.

    Args:
        frames: each of shape [samples, channels], with equal channels; none of them is empty.
        size: in samples.
    """
    pending: list[NDArray[np.float32]] = []
    count = 0
    for frame in frames:
        pending.append(frame)
        count += len(frame)
        if count >= size:
            whole = np.concatenate(pending)
            end = count - count % size
            yield from (whole[start : start + size] for start in range(0, end, size))
            pending, count = [whole[end:]], count - end
    if count:
        yield np.concatenate(pending)
