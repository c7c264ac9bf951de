"""Speed-up curves as concave hulls: what a job can reach, at best, with so many GPU-seconds in so much time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from prompttuner.errors import SpecError

__all__ = ["Hull", "Speedup", "hull_of", "speedup_at"]

Speedup: TypeAlias = Sequence[tuple[int, float]]
"""(GPUs, speed-up over one GPU), ascending, as ``PoolProfile.speedup``."""


@dataclass(frozen=True, slots=True)
class Hull:
    """Vertices of the concave hull of the points (GPUs, rate) that a job may use, (0, 0) left out.

    Switching between two sizes within a stretch of time reaches every point of the hull, and no schedule of whole
    GPUs lies above it.
    """

    gpus: NDArray[np.float64]
    rate: NDArray[np.float64]
    """One-GPU seconds of work done in a second, shape of ``gpus``, strictly rising."""

    @property
    def top_rate(self) -> float:
        """The highest rate that any number of GPUs reaches."""
        return float(self.rate[-1])

    @property
    def least_gpu_s(self) -> float:
        """GPU-seconds for one one-GPU second of work at the most efficient size."""
        return float(self.gpus[0] / self.rate[0])


def speedup_at(speedup: Speedup, gpus: int) -> float:
    """Speed-up with this many GPUs: interpolated in between, no gain beyond the last, linear below the first."""
    sizes, values = zip(*speedup, strict=True)
    return float(np.interp(gpus, (0, *sizes), (0.0, *values)))


def hull_of(speedup: Speedup, min_gpus: int, max_gpus: int) -> Hull:
    """The hull over the whole sizes from ``min_gpus`` to ``max_gpus``.

    Raises:
        SpecError: there is no such size.
    """
    if min_gpus > max_gpus:
        raise SpecError(f"needs {min_gpus} GPUs at least, but {max_gpus} can be had at most")
    known = [size for size, _ in speedup if min_gpus < size < max_gpus]
    sizes = sorted({min_gpus, *known, max_gpus})
    gpus, rates = [0.0], [0.0]
    for size in sizes:
        rate = speedup_at(speedup, size)
        if rate <= rates[-1]:
            continue  # more GPUs for no more work
        while len(gpus) > 1 and (rates[-1] - rates[-2]) * (size - gpus[-1]) <= (rate - rates[-1]) * (
            gpus[-1] - gpus[-2]
        ):
            gpus.pop()
            rates.pop()
        gpus.append(float(size))
        rates.append(rate)
    return Hull(np.array(gpus[1:]), np.array(rates[1:]))
