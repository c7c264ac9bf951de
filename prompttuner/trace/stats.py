"""What a trace is like: jobs, work, load, burstiness, deadlines."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from prompttuner.errors import DataError
from prompttuner.trace.job import TraceJob

__all__ = ["trace_stats"]

BIN_S = 60.0


def trace_stats(jobs: Sequence[TraceJob], gpus: int = 32) -> dict[str, Any]:
    """Figures of a trace.

    ``load`` is one-GPU work from the default prompt over ``gpus`` for the time from the first to the last submission;
    ``dispersion`` the variance over the mean of submissions in 10-minute bins (1 for a Poisson stream).

    Raises:
        DataError: no jobs.
    """
    if not jobs:
        raise DataError("the trace holds no jobs")
    submits = np.array([job.submit_s for job in jobs])
    work = np.array([job.work_s for job in jobs])
    span = float(submits.max() - submits.min())
    multiples = [(job.deadline_s - job.submit_s) / job.work_s for job in jobs if not job.best_effort]
    minute_mean, _, minute_max = _bins(submits, BIN_S)
    tens_mean, tens_var, _ = _bins(submits, 600.0)
    return {
        "jobs": len(jobs),
        "span_s": span,
        "work_gpu_s": float(work.sum()),
        "work_s_p50": float(np.median(work)),
        "work_s_p90": float(np.quantile(work, 0.9)),
        "load": float(work.sum() / (gpus * span)) if span > 0 else math.inf,
        "load_gpus": gpus,
        "per_minute_mean": minute_mean,
        "per_minute_max": minute_max,
        "dispersion": tens_var / tens_mean,
        "with_deadline": len(multiples),
        "slo_multiple_p10": float(np.quantile(multiples, 0.1)) if multiples else None,
        "slo_multiple_p50": float(np.median(multiples)) if multiples else None,
        "bank_factor_p50": float(np.median([job.bank_factor for job in jobs])),
        "llms": dict(Counter(job.llm for job in jobs).most_common()),
        "tasks": len({job.task for job in jobs}),
        "users": len({job.user for job in jobs if job.user}),
    }


def _bins(submits: np.ndarray, width_s: float) -> tuple[float, float, int]:
    """Mean, variance and maximum of the submissions in each bin; empty bins count without being made."""
    where = ((submits - submits.min()) // width_s).astype(np.int64)
    full = np.unique(where, return_counts=True)[1]
    mean = len(submits) / (int(where.max()) + 1)
    return mean, float((full**2).sum() / (int(where.max()) + 1) - mean**2), int(full.max())
