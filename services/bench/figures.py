"""What a benchmark tells: quantities measured again and again."""

import statistics
import time
from collections.abc import Callable
from typing import Self

import numpy as np
from pydantic import BaseModel


class Figure(BaseModel):
    """One measured quantity: the median, two percentiles and the worst of `count` values; of a rate, the highest."""

    name: str
    unit: str
    median: float
    p95: float
    p99: float
    worst: float
    count: int

    @classmethod
    def of(cls, name: str, unit: str, values: list[float]) -> Self:
        p95, p99 = (float(np.percentile(values, share)) for share in (95, 99))
        median = statistics.median(values)
        return cls(name=name, unit=unit, median=median, p95=p95, p99=p99, worst=max(values), count=len(values))


def timed(action: Callable[[], object]) -> float:
    """How many seconds it takes."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start
