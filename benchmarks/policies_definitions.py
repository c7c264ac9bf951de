"""The definitions of the policy comparison: workloads, windows, seeds, policies, tables, words.

Nothing here was chosen by looking at the report windows. Figures that are stated and not measured are named so.

- Default prompt: a sample of the vocabulary. ``TraceJob.iters`` counts from it.
- Deadline: submission + S x the job's time on one GPU from the default prompt (no start-up in it).
- Load: work on one GPU from the default prompt over GPUs x window length.
- Violations: jobs that ended after their deadline, or were rejected. A rejected job costs nothing.
- Unavoidable: misses alone, on warm GPUs, on the most it may use, with the iterations of the table.
- Cost: GPU-seconds of allocations held until all accepted jobs have ended (busy + start-up + warm-idle). Idle agents
  of all baselines, ElasticFlow's too, are kept for 35 s. ElasticFlow takes the whole cluster for its own: what that
  would cost (all GPUs until the last job ends) is shown beside.
- Work bound (``bound_cost``): sum of each job's least GPU-seconds (one GPU, no start-up, no lookup).
- Bound (``bound_violations``): linear relaxation of the time-indexed program (``prompttuner/sim/bound.py``), same
  iterations, start-ups and lookups free: looser than any real schedule.
- Ratio: baseline / prompttuner, of sums over the report windows and seeds.
"""

from __future__ import annotations

import csv
import datetime
import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from prompttuner.trace.generate import DEFAULT_MIX, Workload, draw_bank_factors, generate
from prompttuner.trace.job import TraceJob
from prompttuner.trace.slo import SloMultiple, with_slo
from prompttuner.trace.window import cut, to_load

LENGTH_S = 7200.0
GPUS = (32, 96)
SLOS = ("0.5", "1.0", "1.5", "U(0.5,1.5)")
HEADLINE = (32, "U(0.5,1.5)")
SEEDS = (1, 2, 3, 4, 5)
"""A seed thins (or thickens) the window, draws the deadlines' multiples and the jobs' bank factors."""
HEADLINE_SEEDS = 3
"""At the headline, unless ``--full`` asks for all."""
EXTRA_SEEDS = 1
"""Elsewhere."""
WORK_S = (30.0, 1800.0)
"""Jobs of the Philly-derived trace that are kept: this long, on at most 8 GPUs; the length is taken as the job's time
on one GPU from the default prompt."""
TASKS = 12
BANK_MEDIAN, BANK_SIGMA = 0.5, 0.35
"""A stated bank (lognormal, half of the variance by task), weaker than the measured: the sensitivity run "weaker"."""
FLATTER = ((1, 1.0), (2, 1.8), (4, 3.0), (8, 4.5))
"""Speed-up of the sensitivity run; the profiles' stated one is 1, 1.95, 3.7, 6.8."""
PAIRS = Path(__file__).parent / "results" / "bank_pairs.csv"


@dataclass(frozen=True, slots=True)
class Window:
    """One two-hour window of the Philly-derived trace, by its number since the trace's first job."""

    number: int
    load: float


# All 22 windows that hold at least the work of 32 GPUs at full load, by burstiness (variance over mean of the
# arrivals in five minutes): every second of ten evenly spread ones for tuning, the others for the report.
TUNING = (Window(200, 0.8), Window(596, 0.5), Window(339, 0.6), Window(313, 0.7), Window(330, 0.4))
REPORT = (Window(202, 0.5), Window(344, 0.8), Window(306, 0.6), Window(315, 0.4), Window(309, 0.7))

OURS = "prompttuner"
KEEP_S = 35.0
"""Keep-alive of idle agents of all baselines: INFless's own; ElasticFlow, which owns its cluster, would keep all."""
BASELINES: dict[str, dict[str, object]] = {
    "infless": {},
    "elasticflow-fixed": {"keep_s": KEEP_S},
    "elasticflow": {"keep_s": KEEP_S},
    "edf": {"keep_s": KEEP_S},
    "sbatch": {},
}
ABLATIONS: dict[str, dict[str, object]] = {
    "no warm pool": {"warm_pool": False},
    "no delay": {"delay": False},
    "no resizing": {"resize": False},
    "no forecast": {"forecast": False},
    "no pre-warming": {"prewarm": False},
    "no rescue": {"rescue": False},
    "no boost": {"boost": False},
    "no model switch": {"switch": False},
}


@dataclass(frozen=True, slots=True)
class Wrong:
    """What policies are told, over the truth: iterations, and queue waits, starts and switches of model."""

    work: float = 1.0
    start: float = 1.0
    bank_factor: float | None = None
    """True factor on every job's iterations, while the policies are told the measured bank's."""


WRONG = {
    "bank does not help": Wrong(bank_factor=1.0),
    "bank hurts (1.5 x)": Wrong(bank_factor=1.5),
    "half the work told": Wrong(work=0.5),
    "twice the work told": Wrong(work=2.0),
    "half the start-up told": Wrong(start=0.5),
    "twice the start-up told": Wrong(start=2.0),
}
"""Rows with a wrong prior, at the headline: those of the bank with it, the others without."""
TABLES = ("paper", "equal_bank", "no_bank")
"""paper: the bank is ours alone; equal_bank: all may use it and skip a lookup; no_bank: nobody has it."""


def base_jobs() -> tuple[list[TraceJob], str]:
    """The whole stream without deadlines, and where it comes from."""
    folder = os.environ.get("PROMPTTUNER_TRACES", "")
    path = Path(folder) / "philly" / "philly_to_2017-11-14.csv"
    if folder and path.exists():
        return _philly(path), "philly_to_2017-11-14.csv (petuum/adaptdl, branch osdi21-artifact)"
    return [], "prompttuner.trace.generate (PROMPTTUNER_TRACES is not set: windows by number are generated)"


def _philly(path: Path) -> list[TraceJob]:
    """Jobs of 30 to 1800 s on at most 8 GPUs; LLM and task class drawn for each (shares of ``DEFAULT_MIX``)."""
    rng = np.random.default_rng(5)
    share = [mix.share for mix in DEFAULT_MIX]
    rows = []
    with path.open() as file:
        for row in csv.DictReader(file):
            work = float(row["duration"])
            if WORK_S[0] <= work <= WORK_S[1] and 1 <= int(row["num_gpus"]) <= 8:
                at = datetime.datetime.fromisoformat(row["timestamp"]).replace(tzinfo=datetime.UTC).timestamp()
                rows.append((at, work, int(rng.choice(len(share), p=share)), int(rng.integers(0, TASKS))))
    rows.sort()
    return [
        TraceJob(
            id=f"p{i}",
            submit_s=at - rows[0][0],
            llm=DEFAULT_MIX[k].llm,
            iters=work / DEFAULT_MIX[k].step_s,
            step_s=DEFAULT_MIX[k].step_s,
            task=f"task-{task:02d}",
        )
        for i, (at, work, k, task) in enumerate(rows)
    ]


def window_jobs(
    base: list[TraceJob], window: Window, gpus: int, slo: str, seed: int, weaker: bool = False
) -> list[TraceJob]:
    """One cell's jobs: the window at its load on these GPUs, with deadlines and bank factors drawn by the seed."""
    multiple = SloMultiple.parse(slo)
    if base:
        jobs = to_load(cut(base, window.number * LENGTH_S), gpus, window.load, seed=seed)
    else:
        burst = 4.0 + window.number % 40
        jobs = generate(Workload(gpus=gpus, load=window.load, burst_jobs=burst, seed=1000 * window.number + seed))
    return with_slo(with_bank(jobs, seed, weaker), multiple, seed)


def with_bank(jobs: list[TraceJob], seed: int, weaker: bool = False) -> list[TraceJob]:
    """Each job's true factor on its iterations after a lookup: drawn from the measured pairs, or (weaker) as stated."""
    measured = measured_factors()
    if measured is not None and not weaker:
        rng = np.random.default_rng([seed, 0xFA])
        factors = rng.choice(measured, size=len(jobs))
    else:
        tasks = np.array([int(job.task.rpartition("-")[2]) for job in jobs])
        factors = draw_bank_factors(tasks, BANK_MEDIAN, BANK_SIGMA, seed)
    return [replace(job, bank_factor=float(f)) for job, f in zip(jobs, factors, strict=True)]


def measured_factors() -> np.ndarray | None:
    """ita_bank / ita_vocab of the measured pairs, within [0.01, 10]; None where there is no such file."""
    if not PAIRS.exists():
        return None
    with PAIRS.open() as file:
        rows = list(csv.DictReader(file))
    return np.array([min(max(float(r["ita_bank"]) / float(r["ita_vocab"]), 0.01), 10.0) for r in rows])


def bank_prior(weaker: bool = False) -> tuple[float, float]:
    """Median and P90 of the factor, which every policy knows."""
    measured = measured_factors()
    if measured is None or weaker:
        return BANK_MEDIAN, float(min(BANK_MEDIAN * np.exp(1.2816 * BANK_SIGMA), 1.0))
    return min(float(np.median(measured)), 1.0), min(float(np.quantile(measured, 0.9)), 1.0)
