"""Deadlines by SLO multiple: submit time + multiple x the job's one-GPU time from the default prompt."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from prompttuner.errors import SpecError
from prompttuner.trace.job import TraceJob

__all__ = ["SloMultiple", "with_slo"]

_UNIFORM = re.compile(r"^[uU]\(\s*([0-9.]+)\s*,\s*([0-9.]+)\s*\)$")


@dataclass(frozen=True, slots=True)
class SloMultiple:
    """A fixed multiple (``low == high``) or one drawn uniformly for each job."""

    low: float
    high: float

    @classmethod
    def parse(cls, text: str) -> SloMultiple:
        """From ``1.0`` or ``U(0.5,1.5)``.

        Raises:
            SpecError: neither of the two forms, or not 0 < low <= high.
        """
        match = _UNIFORM.match(text.strip())
        try:
            low, high = (float(match[1]), float(match[2])) if match else (float(text), float(text))
        except ValueError:
            raise SpecError(f"SLO multiple {text!r}: write a number such as 1.0, or U(0.5,1.5)") from None
        if not 0 < low <= high < float("inf"):
            raise SpecError(f"SLO multiple {text!r}: must be above 0, and U(low,high) needs low <= high")
        return cls(low, high)

    def __str__(self) -> str:
        return f"{self.low:g}" if self.low == self.high else f"U({self.low:g},{self.high:g})"


def with_slo(jobs: Sequence[TraceJob], slo: SloMultiple, seed: int = 0) -> list[TraceJob]:
    """The jobs with new deadlines; job i's draw depends on ``seed`` and i alone."""
    draws = np.random.default_rng([seed, 0x510]).uniform(slo.low, slo.high, size=len(jobs))
    return [job.with_deadline(float(draw)) for job, draw in zip(jobs, draws, strict=True)]
