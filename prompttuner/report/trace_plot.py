"""A picture of a trace: when jobs come, how long they are, how much time they have."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from prompttuner.files import write_bytes
from prompttuner.report.charts import PALETTE, REST_COLOUR
from prompttuner.report.png import load_pyplot, plain
from prompttuner.report.svg import time_label, time_ticks
from prompttuner.trace.job import TraceJob
from prompttuner.words import Counted

__all__ = ["plot_stats"]

MOST_LLMS = len(PALETTE) - 1
WIDE = 100.0
"""Largest over smallest value from which on an axis is logarithmic."""


def plot_stats(path: Path, jobs: Sequence[TraceJob]) -> None:
    """A PNG: submissions over time by LLM, work of the jobs, and SLO multiples where jobs have deadlines.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    pyplot = load_pyplot()
    multiples = [(job.deadline_s - job.submit_s) / job.work_s for job in jobs if not job.best_effort]
    count = 3 if multiples else 2
    figure, axes = pyplot.subplots(count, 1, figsize=(9, 3 * count), layout="constrained")
    _arrivals(axes[0], jobs)
    work = [job.work_s for job in jobs]
    _histogram(axes[1], work, "Work of a job on one GPU from the default prompt", "seconds", "log")
    if multiples:
        title = f"Time to the deadline, in multiples of that work: {Counted(len(multiples), 'job')}"
        scale = "log" if max(multiples) > WIDE * min(multiples) else "linear"
        _histogram(axes[2], multiples, title, "multiple", scale)
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=120, format="png")
    pyplot.close(figure)
    write_bytes(path, buffer.getvalue())


def _arrivals(axes: Any, jobs: Sequence[TraceJob]) -> None:
    """Submissions over time from the first one on, stacked by LLM: the most frequent ones, then all others."""
    first = min(job.submit_s for job in jobs)
    span = max(max(job.submit_s for job in jobs) - first, 1.0)
    bins = np.linspace(0, span, 121)
    frequent = [name for name, _ in Counter(job.llm for job in jobs).most_common()]
    own, rest = frequent[:MOST_LLMS], frequent[MOST_LLMS:]
    groups = [*([name] for name in own), *([rest] if rest else [])]
    times = [[job.submit_s - first for job in jobs if job.llm in set(group)] for group in groups]
    names = [*map(plain, own), *([str(Counted(len(rest), "other"))] if rest else [])]
    axes.hist(times, bins=bins, stacked=True, label=names, color=[*PALETTE[:MOST_LLMS], REST_COLOUR][: len(groups)])
    ticks = time_ticks(span)
    axes.set_xticks(ticks, [time_label(tick) for tick in ticks])
    each = f"jobs in {time_label(bins[1])}" if bins[1] >= 1 else f"jobs in {bins[1]:.2g} s"
    axes.set(title=f"Submissions: {Counted(len(jobs), 'job')}", xlabel="time since the first", ylabel=each)
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=8, frameon=False)


def _histogram(axes: Any, values: Sequence[float], title: str, unit: str, scale: str) -> None:
    low, high = min(values) * 0.999, max(values) * 1.001
    edges = np.geomspace(low, high, 41) if scale == "log" else np.linspace(low, high, 41)
    axes.hist(values, bins=edges, color=PALETTE[0])
    axes.set(title=title, xlabel=unit, ylabel="jobs", xscale=scale)
    axes.yaxis.get_major_locator().set_params(integer=True)
