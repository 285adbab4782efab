"""The result of a benchmark: statistics of one repeated measurement."""

import statistics
import time
from collections.abc import Callable
from typing import Self

import numpy as np
from pydantic import BaseModel


class Figure(BaseModel):
    """Statistics of `count` values of one measured quantity, in `unit`."""

    name: str
    unit: str
    median: float
    p95: float
    p99: float
    max: float
    count: int

    @classmethod
    def of(cls, name: str, unit: str, values: list[float]) -> Self:
        """Compute the statistics of `values`."""
        p95, p99 = (float(np.percentile(values, share)) for share in (95, 99))
        median = statistics.median(values)
        return cls(name=name, unit=unit, median=median, p95=p95, p99=p99, max=max(values), count=len(values))


def timed(action: Callable[[], object]) -> float:
    """Run `action` and return the seconds it took."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start
