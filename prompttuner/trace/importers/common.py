"""What all importers share: which jobs are wanted, how they become prompt-tuning jobs, and moments in time."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np

from prompttuner.errors import DataError, SpecError
from prompttuner.trace.generate import DEFAULT_MIX, LlmMix, draw_bank_factors
from prompttuner.trace.job import TraceJob
from prompttuner.trace.rows import Loaded, Problem
from prompttuner.words import Counted

__all__ = ["Arrival", "Wanted", "mapped", "moment"]

MOST_FACTOR = 1e6


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which rows of a foreign trace are taken, and what prompt-tuning jobs they stand for.

    A foreign job's GPU-time (run time x GPUs) times ``factor`` becomes the one-GPU work from the default prompt. Task
    and bank factor, which no public trace has, are drawn by ``seed``; so is the LLM where the trace does not say it.
    """

    min_s: float = 0.0
    max_s: float = math.inf
    """Run times outside (as in the file, before ``factor``) are left out."""
    factor: float = 1.0
    """Run times are multiplied by this."""
    max_gpus: int = 8
    """Jobs of more GPUs are left out; also the most GPUs that each job may use."""
    llms: tuple[LlmMix, ...] = DEFAULT_MIX
    tasks: int = 12
    bank_median: float = 0.5
    bank_sigma: float = 0.35
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.min_s <= self.max_s or self.max_gpus < 1 or self.tasks < 1 or not self.llms:
            raise SpecError("import: 0 <= shortest <= longest run time, and 1 GPU, task and LLM at least")
        if not 0 < self.factor <= MOST_FACTOR:
            raise SpecError(f"import: the factor on run times must be above 0, {MOST_FACTOR:g} at most")


@dataclass(frozen=True, slots=True)
class Arrival:
    """One row of a foreign trace."""

    line: int
    id: str
    at: float
    """Seconds on the trace's own clock."""
    run_s: float
    gpus: int
    user: str = ""
    slo_s: float = math.inf
    """Time from submission to deadline."""
    llm: str = ""
    """The LLM it needs; drawn where the trace does not say."""
    step_s: float = 0.0
    """Seconds of an iteration of that LLM on one GPU."""


def mapped(loaded: Loaded, rows: Iterable[Arrival], wanted: Wanted) -> Loaded:
    """Turn arrivals into jobs; times count from the first one taken. Others are counted in ``left_out``."""
    taken: list[Arrival] = []
    seen: dict[str, int] = {}
    for row in rows:
        reason = _reason(row, wanted)
        if reason:
            loaded.leave_out(reason)
        elif row.id in seen:
            loaded.problems.append(Problem(row.line, f"job {row.id!r} is already on line {seen[row.id]}"))
        else:
            seen[row.id] = row.line
            taken.append(row)
    taken.sort(key=lambda row: (row.at, row.line))
    start = taken[0].at if taken else 0.0
    rng = np.random.default_rng([wanted.seed, 0x1B])
    shares = np.array([mix.share for mix in wanted.llms])
    picks = rng.choice(len(wanted.llms), size=len(taken), p=shares / shares.sum())
    tasks = rng.integers(0, wanted.tasks, size=len(taken))
    factors = draw_bank_factors(tasks, wanted.bank_median, wanted.bank_sigma, wanted.seed)
    for row, pick, task, factor in zip(taken, picks, tasks, factors, strict=True):
        mix = wanted.llms[int(pick)]
        step_s = row.step_s if row.llm else mix.step_s
        try:
            job = TraceJob(
                id=row.id,
                submit_s=row.at - start,
                llm=row.llm or mix.llm,
                iters=row.run_s * row.gpus * wanted.factor / step_s,
                step_s=step_s,
                deadline_s=row.at - start + row.slo_s,
                max_gpus=wanted.max_gpus,
                bank_factor=float(factor),
                task=f"task-{int(task):02d}",
                requested_gpus=row.gpus,
                user=row.user,
            )
        except DataError as error:
            loaded.problems.append(Problem(row.line, str(error)))
        else:
            loaded.jobs.append(job)
    loaded.jobs.sort(key=lambda job: (job.submit_s, job.id))
    loaded.problems.sort(key=lambda problem: problem.line)
    return loaded


def moment(text: str, form: str) -> float:
    """Unix seconds of a time without a zone (taken as UTC: only differences matter). Raises ValueError."""
    try:
        return datetime.strptime(text, form).replace(tzinfo=UTC).timestamp()
    except ValueError:
        raise ValueError(f"{text!r} is not a time of the form {form}") from None


def _reason(row: Arrival, wanted: Wanted) -> str:
    if row.run_s <= 0:
        return "never ran"  # first: what a job that never ran was given says nothing of what it asked for
    if row.gpus < 1:
        return "asked for no GPU"
    if row.gpus > wanted.max_gpus:
        return f"asked for more than {Counted(wanted.max_gpus, 'GPU')}"
    if row.run_s < wanted.min_s:
        return f"ran for less than {wanted.min_s:g} s"
    if row.run_s > wanted.max_s:
        return f"ran for more than {wanted.max_s:g} s"
    return ""
