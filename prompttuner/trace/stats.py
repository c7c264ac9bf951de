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
    per_minute = _counts(submits, BIN_S)
    tens = _counts(submits, 600.0)
    return {
        "jobs": len(jobs),
        "span_s": span,
        "work_gpu_s": float(work.sum()),
        "work_s_p50": float(np.median(work)),
        "work_s_p90": float(np.quantile(work, 0.9)),
        "load": float(work.sum() / (gpus * span)) if span > 0 else math.inf,
        "load_gpus": gpus,
        "per_minute_mean": float(per_minute.mean()),
        "per_minute_max": int(per_minute.max()),
        "dispersion": float(tens.var() / tens.mean()),
        "with_deadline": len(multiples),
        "slo_multiple_p10": float(np.quantile(multiples, 0.1)) if multiples else None,
        "slo_multiple_p50": float(np.median(multiples)) if multiples else None,
        "bank_factor_p50": float(np.median([job.bank_factor for job in jobs])),
        "llms": dict(Counter(job.llm for job in jobs).most_common()),
        "tasks": len({job.task for job in jobs}),
        "users": len({job.user for job in jobs if job.user}),
    }


def _counts(submits: np.ndarray, width_s: float) -> np.ndarray:
    first = float(submits.min())
    count = max(1, math.ceil((float(submits.max()) - first + 1e-9) / width_s))
    return np.histogram(submits, bins=count, range=(first, first + count * width_s))[0]
