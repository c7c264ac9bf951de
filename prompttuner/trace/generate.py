"""A seeded generator of bursty streams of prompt-tuning jobs.

Arrivals are a Neyman-Scott cluster process (Neyman & Scott 1958): bursts begin at random, each brings a geometric
number of jobs, spread exponentially. For windows long against the spread the variance of the number of arrivals is
``2 x burst_jobs - 1`` times its mean: ``burst_jobs = 1`` is a Poisson stream.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prompttuner.errors import SpecError
from prompttuner.trace.job import TraceJob
from prompttuner.trace.slo import SloMultiple, with_slo

__all__ = ["DEFAULT_MIX", "LlmMix", "Workload", "draw_bank_factors", "generate"]


@dataclass(frozen=True, slots=True)
class LlmMix:
    """One LLM's share of the jobs, and seconds for one iteration on one GPU."""

    llm: str
    share: float
    step_s: float


DEFAULT_MIX = (LlmMix("gpt2-base", 0.4, 0.10), LlmMix("gpt2-large", 0.35, 0.35), LlmMix("vicuna-7b", 0.25, 0.9))
"""Stated, not measured: the three sizes of the PromptTuner paper's test bed, with made-up step times."""


@dataclass(frozen=True, slots=True)
class Workload:
    """What to generate. Work is lognormal; a job's bank factor is its task's factor times noise of its own."""

    gpus: int = 32
    load: float = 0.6
    """One-GPU work from the default prompt, summed over the jobs, over ``gpus x length_s``."""
    length_s: float = 7200.0
    burst_jobs: float = 8.0
    """Mean jobs in a burst; 1 for a Poisson stream."""
    every_s: float = 0.0
    """Bursts begin so many seconds apart, jobs are dealt to them in turn (a cron job's sweeps); 0: at random times."""
    burst_spread_s: float = 60.0
    """Mean delay of a burst's job after the burst's begin."""
    work_median_s: float = 300.0
    work_sigma: float = 0.9
    """Standard deviation of the work's natural logarithm."""
    work_min_s: float = 30.0
    work_max_s: float = 1800.0
    llms: tuple[LlmMix, ...] = DEFAULT_MIX
    tasks: int = 12
    max_gpus: int = 8
    bank_median: float = 0.5
    """Median factor on the iterations after a Prompt Bank lookup."""
    bank_sigma: float = 0.35
    slo: SloMultiple | None = None
    """None leaves the jobs best effort."""
    seed: int = 0

    def __post_init__(self) -> None:
        for wrong, what in (
            (self.gpus < 1, "gpus must be 1 or more"),
            (not 0 < self.load <= 10, "load must lie above 0 and be 10 at most"),
            (not 0 < self.length_s < math.inf, "length must be above 0"),
            (not self.burst_jobs >= 1, "burst_jobs must be 1 or more"),
            (not 0 <= self.every_s <= self.length_s, "every must lie within the length"),
            (not self.burst_spread_s >= 0, "burst_spread must be 0 or more"),
            (not 0 < self.work_min_s <= self.work_median_s <= self.work_max_s, "work needs 0 < min <= median <= max"),
            (not self.llms or any(m.share <= 0 or m.step_s <= 0 for m in self.llms), "llms need shares above 0"),
            (self.tasks < 1 or self.max_gpus < 1, "tasks and max_gpus must be 1 or more"),
            (not 0 < self.bank_median <= 1, "bank_median must lie above 0 and be 1 at most"),
        ):
            if wrong:
                raise SpecError(f"workload: {what}")


def generate(workload: Workload) -> list[TraceJob]:
    """The jobs by submit time; equal workloads give equal jobs. The load is met exactly."""
    rng = np.random.default_rng([workload.seed, 0x6E])
    target = workload.load * workload.gpus * workload.length_s
    submits: list[float] = []
    works: list[float] = []
    total = 0.0
    rounds = int(workload.length_s // workload.every_s) if workload.every_s else 0
    while total < target:
        begin = len(submits) % rounds * workload.every_s if rounds else rng.uniform(0, workload.length_s)
        for _ in range(1 if rounds else int(rng.geometric(1 / workload.burst_jobs))):
            # a burst near the end wraps around, so that no part of the window is emptier than another
            submits.append((begin + rng.exponential(workload.burst_spread_s)) % workload.length_s)
            works.append(_work(workload, rng))
            total += works[-1]
            if total >= target:
                break
    scale = target / total
    shares = np.array([mix.share for mix in workload.llms])
    picks = rng.choice(len(workload.llms), size=len(works), p=shares / shares.sum())
    tasks = rng.integers(0, workload.tasks, size=len(works))
    factors = draw_bank_factors(tasks, workload.bank_median, workload.bank_sigma, workload.seed)
    jobs = []
    for i, k in enumerate(sorted(range(len(works)), key=lambda k: submits[k])):
        mix = workload.llms[int(picks[k])]
        jobs.append(
            TraceJob(
                id=f"j{i:05d}",
                submit_s=round(submits[k], 3),
                llm=mix.llm,
                iters=works[k] * scale / mix.step_s,
                step_s=mix.step_s,
                max_gpus=workload.max_gpus,
                bank_factor=float(factors[k]),
                task=f"task-{int(tasks[k]):02d}",
                requested_gpus=1,
            )
        )
    return jobs if workload.slo is None else with_slo(jobs, workload.slo, workload.seed)


def draw_bank_factors(tasks: NDArray[np.int64], median: float, sigma: float, seed: int) -> NDArray[np.float64]:
    """Factors on the iterations after a lookup, shape (jobs,), within [0.1, 1].

    Lognormal with this median; half of the variance belongs to the task, half to the job.
    """
    rng = np.random.default_rng([seed, 0xBA])
    by_task = rng.normal(0, sigma / math.sqrt(2), size=int(tasks.max(initial=0)) + 1)
    own = rng.normal(0, sigma / math.sqrt(2), size=len(tasks))
    return np.clip(median * np.exp(by_task[tasks] + own), 0.1, 1.0)


def _work(workload: Workload, rng: np.random.Generator) -> float:
    draw = workload.work_median_s * math.exp(rng.normal(0, workload.work_sigma))
    return float(min(max(draw, workload.work_min_s), workload.work_max_s))
