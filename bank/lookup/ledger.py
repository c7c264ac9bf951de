"""The scores a lookup has seen so far: nothing is scored twice, every evaluation is counted, a budget stops it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["Ledger", "OutOfBudget", "ScoreFn"]

Floats = NDArray[np.float64]


class ScoreFn(Protocol):
    """Loss of candidates on samples: (candidates, samples), lower is better, inf where a candidate is refused."""

    def __call__(self, candidates: Sequence[int], samples: Sequence[int], /) -> Floats:
        """Mean loss of each candidate on each sample: float64, shape (candidates, samples)."""


class OutOfBudget(Exception):
    """The lookup's time or evaluations are spent; what was learned so far stands."""


class Ledger:
    """Losses by candidate. All candidates see the samples in one and the same order, so differences are paired.

    Args:
        score: the loss function.
        samples: how many samples there are.
        limit: most evaluations (one candidate on one sample) that may be made; None for no limit.
        stop: asked before each batch; True ends the lookup.
        batch: candidates handed to ``score`` at once.
    """

    def __init__(
        self,
        score: ScoreFn,
        samples: int,
        limit: int | None = None,
        stop: Callable[[], bool] = lambda: False,
        batch: int = 32,
    ) -> None:
        self._score = score
        self._stop = stop
        self._batch = batch
        self.samples = samples
        self.limit = limit
        self.evaluations = 0
        self.losses: dict[int, Floats] = {}

    def means(self, candidates: Sequence[int], count: int) -> Floats:
        """Mean loss of each candidate on the first ``count`` samples; only what is not known yet is computed.

        Raises:
            OutOfBudget: part of it may have been learned.
        """
        count = min(count, self.samples)
        waiting: dict[int, list[int]] = {}
        for candidate in dict.fromkeys(candidates):
            have = len(self.losses.get(candidate, ()))
            if have < count:
                waiting.setdefault(have, []).append(candidate)
        for have, group in sorted(waiting.items()):
            for start in range(0, len(group), self._batch):
                self._learn(group[start : start + self._batch], have, count)
        return np.array([self.losses[candidate][:count].mean() for candidate in candidates])

    def ranking(self) -> list[int]:
        """Candidates by promise: those that were kept longest (scored on most samples) first, then by mean loss."""
        return sorted(self.losses, key=lambda c: (-len(self.losses[c]), float(self.losses[c].mean()), c))

    def mean(self, candidate: int) -> float:
        """Mean loss of a candidate on all samples it has seen."""
        return float(self.losses[candidate].mean())

    def _learn(self, group: list[int], have: int, count: int) -> None:
        cost = len(group) * (count - have)
        if self._stop() or (self.limit is not None and self.evaluations + cost > self.limit):
            raise OutOfBudget
        values = np.asarray(self._score(group, range(have, count)), dtype=np.float64)
        values = np.where(np.isnan(values), np.inf, values)
        self.evaluations += cost
        for candidate, row in zip(group, values, strict=True):
            self.losses[candidate] = np.concatenate([self.losses.get(candidate, np.zeros(0)), row])
