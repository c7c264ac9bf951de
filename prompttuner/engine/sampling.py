"""Which samples an iteration uses: a pure function of (seed, global step), never of the number of members."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt

__all__ = ["SampleOrder"]

WINDOW = 16
"""Batches that are sorted together with bucketing: large enough to make lengths alike, small enough to keep batches
mixed."""


class SampleOrder:
    """An endless stream of sample ids: one permutation after another, cut into batches.

    With ``lengths`` (bucketing), each window of 16 batches is sorted by length, and its batches are taken in a random
    order: every sample is still used once an epoch, in batches of similar lengths.
    """

    def __init__(self, count: int, batch: int, seed: int, lengths: Sequence[int] | None = None) -> None:
        self.count = count
        self.batch_size = batch
        self.seed = seed
        self._lengths = None if lengths is None else np.asarray(lengths)
        self._permutation = lru_cache(maxsize=4)(self._make_permutation)
        self._window = lru_cache(maxsize=2)(self._make_window)

    def batch(self, step: int) -> list[int]:
        """The ids of global step ``step`` (0, 1, ...), all members together; ``batch_size`` of them."""
        if self._lengths is None:
            ids = self._stream(step * self.batch_size, self.batch_size)
        else:
            ids = self._window(step // WINDOW)[step % WINDOW]
        return [int(index) for index in ids]

    def _make_permutation(self, epoch: int) -> npt.NDArray[np.int64]:
        return np.random.Generator(np.random.Philox(key=[self.seed, epoch])).permutation(self.count)

    def _stream(self, start: int, length: int) -> npt.NDArray[np.int64]:
        parts: list[npt.NDArray[np.int64]] = []
        while length > 0:
            epoch, offset = divmod(start, self.count)
            part = self._permutation(epoch)[offset : offset + length]
            parts.append(part)
            start += len(part)
            length -= len(part)
        return np.concatenate(parts)

    def _make_window(self, window: int) -> npt.NDArray[np.int64]:
        assert self._lengths is not None
        ids = self._stream(window * WINDOW * self.batch_size, WINDOW * self.batch_size)
        rows = ids[np.argsort(self._lengths[ids], kind="stable")].reshape(WINDOW, self.batch_size)
        mixed = np.random.Generator(np.random.Philox(key=[self.seed, window])).permutation(WINDOW)
        return np.asarray(rows[mixed])
