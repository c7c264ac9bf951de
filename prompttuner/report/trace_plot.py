"""A picture of a trace: when jobs come, how long they are, how much time they have."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from prompttuner.files import write_bytes
from prompttuner.report.png import load_pyplot
from prompttuner.trace.job import TraceJob

__all__ = ["plot_stats"]


def plot_stats(path: Path, jobs: Sequence[TraceJob]) -> None:
    """A PNG: submissions over time by LLM, work of the jobs, and SLO multiples.

    Raises:
        ConfigError: matplotlib is not installed.
    """
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
