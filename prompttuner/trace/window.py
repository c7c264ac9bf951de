"""Windows of a longer trace, thinned or thickened to a load, keeping its bursts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from prompttuner.errors import SpecError
from prompttuner.trace.job import TraceJob

__all__ = ["cut", "load_of", "starts_by_work", "to_load"]


def cut(jobs: Sequence[TraceJob], start_s: float, length_s: float = 7200.0) -> list[TraceJob]:
    """The jobs submitted within [start, start + length), with times counted from the window's start."""
    inside = [job for job in jobs if start_s <= job.submit_s < start_s + length_s]
    return [replace(job, submit_s=job.submit_s - start_s, deadline_s=job.deadline_s - start_s) for job in inside]


def load_of(jobs: Sequence[TraceJob], gpus: int, length_s: float = 7200.0) -> float:
    """One-GPU work from the default prompt over capacity (``gpus x length_s``)."""
    return sum(job.work_s for job in jobs) / (gpus * length_s)


def to_load(
    jobs: Sequence[TraceJob], gpus: int, load: float, *, length_s: float = 7200.0, seed: int = 0, jitter_s: float = 30.0
) -> list[TraceJob]:
    """The window with this load, by copying jobs (moved by up to ``jitter_s``) or leaving out random ones.

    Whole jobs are added or left out, so work per job and bursts stay as they were; one job's work at most is
    missing to the load.

    Raises:
        SpecError: the window has no jobs.
    """
    if not jobs:
        raise SpecError("the window holds no jobs: choose another start")
    rng = np.random.default_rng([seed, 0x10AD])
    target = load * gpus * length_s
    out: list[TraceJob] = []
    total = 0.0
    copy = 0
    full = False
    while not full:
        for i in rng.permutation(len(jobs)):
            job = jobs[int(i)]
            full = total + job.work_s > target
            if full:  # going on with smaller jobs would skew the sizes
                break
            total += job.work_s
            out.append(job if copy == 0 else _copy(job, copy, float(rng.uniform(-jitter_s, jitter_s)), length_s))
        copy += 1
    return sorted(out, key=lambda job: (job.submit_s, job.id))


def starts_by_work(jobs: Sequence[TraceJob], length_s: float, quantiles: Sequence[float]) -> list[float]:
    """Starts of disjoint windows whose work lies at these quantiles of all windows with at least 10 jobs.

    Raises:
        SpecError: too few such windows.
    """
    work: dict[int, float] = {}
    count: dict[int, int] = {}
    for job in jobs:
        k = int(job.submit_s // length_s)
        work[k] = work.get(k, 0.0) + job.work_s
        count[k] = count.get(k, 0) + 1
    ranked = sorted((w, k) for k, w in work.items() if count[k] >= 10)
    if len(ranked) < len(quantiles):
        raise SpecError(f"only {len(ranked)} windows of {length_s:g} s have 10 jobs or more")
    picks = [ranked[round(q * (len(ranked) - 1))][1] for q in quantiles]
    return [k * length_s for k in picks]


def _copy(job: TraceJob, number: int, shift_s: float, length_s: float) -> TraceJob:
    submit = min(max(job.submit_s + shift_s, 0.0), length_s)
    moved = submit - job.submit_s
    return replace(job, id=f"{job.id}+{number}", submit_s=submit, deadline_s=job.deadline_s + moved)
