"""What a lookup may cost: a share of the iterations that the job is expected to take, counted in evaluations.

An evaluation is one candidate on one sample; a tuning step counts ``STEP_COST`` of them a sample. Counted so, a plan
needs no measured pace of the LLM: it holds on any device. Time comes in only where a deadline bounds it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prompttuner.bank.folder.entry import Entry
from prompttuner.bank.lookup.race import STEP_COST, RaceSettings, race_cost
from prompttuner.bank.lookup.strategies import Layers, choose

__all__ = ["Allowance", "allowance", "expected_iterations", "of_spec", "plan_race", "plan_samples"]

SHARE = 0.5
"""Of the expected iterations. A bank saves about half of them where it helps at all (benchmarks/bank_real.py)."""
SCORING_SHARE = 0.6
"""Of that, what the scores may take; the race has the rest."""
PRIOR = 0.25
"""Share of ``max_iterations`` that is expected where the bank does not tell; the controller assumes the same."""
DEFAULT_ITERATIONS = 1000
"""As in job specs."""
LEAST_STEPS = 4
"""A lookup may always cost as much as so many iterations."""
LEAST_SAMPLES = 4
ENOUGH = 3
"""Entries whose iterations are known before their median is believed."""
RACES = ((8, (2, 2, 4)), (4, (2, 2)), (3, (2,)), (2, (2,)))
"""(finalists, steps of each round), from the most thorough to the cheapest race."""


@dataclass(frozen=True, slots=True)
class Allowance:
    """How much a lookup may spend."""

    evaluations: int
    iterations: float
    """That the job is expected to take from the vocabulary."""
    origin: str
    """Where that is from."""


def expected_iterations(entries: Iterable[Entry | None], max_iterations: int) -> tuple[float, str]:
    """Iterations that a job of this LLM takes, by the jobs that made the bank's entries; and how that is known."""
    itas = {True: list[float](), False: list[float]()}
    for entry in entries:
        quality = {} if entry is None else entry.quality
        ita = quality.get("ita")
        if isinstance(ita, int | float) and ita > 0:
            itas[str(quality.get("start", "")).startswith("vocab")].append(float(ita))
    for plain, what in ((True, "from the vocabulary"), (False, "from whatever start")):
        if len(itas[plain]) >= ENOUGH:
            return min(median(itas[plain]), float(max_iterations)), f"median of {len(itas[plain])} jobs {what}"
    return PRIOR * max_iterations, "a quarter of max_iterations"


def allowance(expected: tuple[float, str], batch: int) -> Allowance:
    """What a lookup may spend for a job of ``batch`` samples a step that is expected to take so many iterations."""
    iterations, origin = expected
    steps = max(float(LEAST_STEPS), SHARE * iterations)
    return Allowance(int(steps * batch * STEP_COST), iterations, origin)


def plan_samples(strategy: str, layers: Layers, most: int, evaluations: float) -> tuple[int, int]:
    """On how many samples candidates are scored so that the scores fit their share: (samples, evaluations it takes).

    Never fewer than 4 (or ``most``): whether that is worth it is the caller's to say.
    """
    samples = most
    while True:
        cost = choose(strategy, layers, _nothing, samples).evaluations
        if cost <= SCORING_SHARE * evaluations or samples <= LEAST_SAMPLES:
            return samples, cost
        samples = max(LEAST_SAMPLES, samples // 2)


def plan_race(
    settings: RaceSettings, finalists: int, samples: int, batch: int, evaluations: float
) -> RaceSettings | None:
    """The most thorough race among so many finalists that fits; None where none does."""
    wanted = [settings, *(RaceSettings(n, steps, settings.samples) for n, steps in RACES)]
    for one in wanted:
        if sum(one.steps) > sum(settings.steps) or one.finalists > settings.finalists:
            continue
        if race_cost(one, min(finalists, one.finalists), samples, batch) <= evaluations:
            return one
    return None


def of_spec(spec: Mapping[str, Any], entries: Iterable[Entry | None]) -> Allowance:
    """The allowance of a job with this resolved spec."""
    most = int(spec.get("max_iterations") or DEFAULT_ITERATIONS)
    return allowance(expected_iterations(entries, most), int(spec["batch_size"]))


def _nothing(candidates: Sequence[int], samples: Sequence[int]) -> NDArray[np.float64]:
    """Scores for counting only."""
    return np.zeros((len(candidates), len(samples)))
