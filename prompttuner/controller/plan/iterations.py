"""How many iterations a job still needs: a distribution from its budget, past jobs and its loss curve.

Our own design: median and P90, no more; the policy plans on the P90. The sources are combined in order of how much they
know of this very job: its metric history, else finished jobs on the same data and target, else of the same pool, else a
share of its iteration budget.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from prompttuner.protocol.spec import ResolvedSpec
from prompttuner.protocol.target import Target

__all__ = ["Remaining", "remaining_iterations", "sample_quantiles"]

PRIOR_MID = 0.25
PRIOR_HI = 0.8
"""Shares of ``max_iterations`` assumed while nothing is known."""
CURVE_POINTS = 4
"""Evaluations needed before a loss curve is extrapolated, and the number of latest ones that are used."""
CURVE_SPREAD = 2.0
"""P90 over median of an extrapolated rest: loss curves flatten, so the rest is longer than a straight line says."""


@dataclass(frozen=True, slots=True)
class Remaining:
    """Iterations that a job still needs, as a distribution."""

    mid: float
    hi: float
    source: str


def sample_quantiles(itas: Sequence[float]) -> tuple[float, float]:
    """Median and P90 of past ITAs; with few of them the P90 is widened towards twice the largest."""
    values = np.asarray(itas, dtype=float)
    mid, hi = float(np.median(values)), float(np.quantile(values, 0.9))
    if len(values) < 5:
        hi = max(hi, mid * (1 + 1 / len(values)))
    return mid, hi


def remaining_iterations(
    spec: ResolvedSpec,
    step: int,
    evaluations: Sequence[tuple[int, float]],
    past: tuple[float, float] | None,
) -> Remaining:
    """Median and P90 of the iterations a job still needs.

    Args:
        spec: resolved job spec (``max_iterations``, ``eval_every``, ``target``).
        step: iterations done.
        evaluations: (step, target metric) pairs, ascending in step.
        past: (median, P90) ITA of comparable finished jobs, if any.
    """
    budget = float(spec.max_iterations)
    left = max(budget - step, 1.0)
    every = float(spec.eval_every)
    curve = _extrapolate(spec.target, evaluations)
    if curve is not None:
        return Remaining(min(max(curve, every), left), min(max(curve * CURVE_SPREAD, 2 * every), left), "loss curve")
    if past is not None:
        mid, hi = past
        source = "past jobs"
    else:
        mid, hi, source = PRIOR_MID * budget, PRIOR_HI * budget, "budget"
    # having come this far without reaching it, at least one evaluation is left, and at least a tenth of the past
    mid, hi = max(mid - step, every, 0.1 * mid), max(hi - step, 2 * every, 0.2 * hi)
    return Remaining(min(mid, left), min(hi, left), source)


def _extrapolate(target: Target, evaluations: Sequence[tuple[int, float]]) -> float | None:
    """Steps until the metric meets its target, by a log-linear fit of the gap's latest points; None if it says nothing.

    A loss falls towards zero and a score rises towards one, so log(loss) or log(1 - score) is fitted against the step.
    """
    points = list(evaluations)[-CURVE_POINTS:]
    if len(points) < CURVE_POINTS:
        return None
    goal = target.value
    falls = target.op == "<="
    gaps = [value if falls else 1.0 - value for _, value in points]
    goal_gap = goal if falls else 1.0 - goal
    if min(gaps) <= 0 or goal_gap <= 0 or not all(map(math.isfinite, gaps)):
        return None
    steps = np.array([float(s) for s, _ in points])
    logs = np.log(gaps)
    slope = float(np.polyfit(steps - steps[-1], logs, 1)[0])
    if slope >= -1e-9:
        return None
    return max((float(logs[-1]) - math.log(goal_gap)) / -slope, 0.0)
