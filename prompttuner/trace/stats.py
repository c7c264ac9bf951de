"""What a trace is like: jobs, work, load, burstiness, deadlines."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from prompttuner.errors import DataError
from prompttuner.files import write_bytes
from prompttuner.trace.job import TraceJob

__all__ = ["plot_stats", "trace_stats"]

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


def plot_stats(path: Path, jobs: Sequence[TraceJob]) -> None:
    """A PNG: submissions over time by LLM, work of the jobs, and SLO multiples.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    import io

    from prompttuner.report.png import load_pyplot

    pyplot = load_pyplot()
    figure, (arrivals, work, slack) = pyplot.subplots(3, 1, figsize=(9, 9), layout="constrained")
    names = sorted({job.llm for job in jobs})
    end = max(job.submit_s for job in jobs)
    bins = np.linspace(0, max(end, 1.0), 121)
    arrivals.hist(
        [[job.submit_s for job in jobs if job.llm == name] for name in names], bins=bins, stacked=True, label=names
    )
    arrivals.set(title=f"Submissions, {len(jobs)} jobs", xlabel="seconds", ylabel=f"jobs in {bins[1]:.0f} s")
    if len(names) <= 10:
        arrivals.legend(fontsize=8)
    values = np.array([job.work_s for job in jobs])
    edges = np.geomspace(values.min() * 0.999, values.max() * 1.001, 40)
    work.hist(values, bins=edges)
    work.set(title="Work on one GPU from the default prompt", xlabel="seconds", ylabel="jobs", xscale="log")
    multiples = [(job.deadline_s - job.submit_s) / job.work_s for job in jobs if not job.best_effort]
    slack.hist(multiples, bins=40)
    slack.set(title=f"Time to the deadline over that work, {len(multiples)} jobs", xlabel="multiple", ylabel="jobs")
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=120, format="png")
    pyplot.close(figure)
    write_bytes(path, buffer.getvalue())


def _counts(submits: np.ndarray, width_s: float) -> np.ndarray:
    first = float(submits.min())
    count = max(1, math.ceil((float(submits.max()) - first + 1e-9) / width_s))
    return np.histogram(submits, bins=count, range=(first, first + count * width_s))[0]
