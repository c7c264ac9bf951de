"""One cell of the policy comparison: what is simulated, and the figures that come out."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import policies_definitions as defs
import policies_models as models

from prompttuner.policy import get
from prompttuner.policy.contract.snapshot import PoolProfile
from prompttuner.profiles import stated
from prompttuner.sim import SimOptions, simulate
from prompttuner.sim.bound import bound
from prompttuner.trace.generate import DEFAULT_MIX
from prompttuner.trace.job import TraceJob

__all__ = ["Cell", "Figures", "run_cell"]

Figures = dict[str, str | int | float | bool]
"""A row of the results: the cell's own fields, and counts, GPU-seconds and CPU seconds."""
BOUND_SLOTS = 100


@dataclass(frozen=True, slots=True)
class Cell:
    """One simulation (or, with ``policy`` "bound", one bound)."""

    policy: str
    label: str
    bank: bool
    gpus: int
    slo: str
    window: int
    load: float
    seed: int
    switches: tuple[tuple[str, object], ...] = ()
    variant: str = ""
    """"" or the name of a sensitivity run."""
    trace: str = "philly"


@lru_cache(maxsize=1)
def _base() -> tuple[list[TraceJob], str]:
    return defs.base_jobs()


def run_cell(cell: Cell) -> Figures:
    """Simulate (or bound) one cell; plain figures."""
    jobs = _jobs(cell)
    start = time.process_time()
    figures = _bounded(cell, jobs) if cell.policy == "bound" else _simulated(cell, jobs)
    plain = {key: value for key, value in asdict(cell).items() if key != "switches"}
    return {**plain, "jobs": len(jobs), **figures, "cpu_s": round(time.process_time() - start, 2)}


def _jobs(cell: Cell) -> Sequence[TraceJob]:
    if cell.trace == models.TRACE:
        return models.window_jobs(cell.window, cell.gpus, cell.slo, cell.seed)
    window = defs.Window(cell.window, cell.load)
    jobs = defs.window_jobs(_base()[0], window, cell.gpus, cell.slo, cell.seed, cell.variant == "weaker")
    factor = defs.WRONG[cell.variant].bank_factor if cell.variant in defs.WRONG else None
    return jobs if factor is None else [replace(job, bank_factor=factor) for job in jobs]


def _profiles(cell: Cell, jobs: Sequence[TraceJob]) -> dict[str, PoolProfile]:
    if cell.trace == models.TRACE:
        return models.profiles({job.llm for job in jobs})
    known = stated([mix.llm for mix in DEFAULT_MIX])
    flatter = cell.variant == "flatter"
    return {n: replace(p, speedup=defs.FLATTER) for n, p in known.items()} if flatter else known


def _bounded(cell: Cell, jobs: Sequence[TraceJob]) -> Figures:
    speedups = {n: p.speedup for n, p in _profiles(cell, jobs).items()}
    limit = bound(jobs, cell.gpus, speedups, bank=cell.bank, slots=BOUND_SLOTS)
    return {
        "unavoidable": limit.unavoidable,
        "bound_violations": limit.violations,
        "bound_cost": round(limit.work_gpu_s, 1),
    }


def _simulated(cell: Cell, jobs: Sequence[TraceJob]) -> Figures:
    prior = defs.bank_prior(cell.variant == "weaker")
    spread = 0.2 if cell.variant == "uncertain" else 0.0
    wrong = defs.WRONG.get(cell.variant, defs.Wrong())
    options = SimOptions(
        gpus=cell.gpus, bank=cell.bank, bank_mid=prior[0], bank_hi=prior[1], predict_sigma=spread, start_sigma=spread,
        predict_bias=wrong.work, seed=cell.seed,
    )  # fmt: skip
    profiles = _profiles(cell, jobs)
    told = {
        name: replace(p, **{key: wrong.start * getattr(p, key) for key in ("queue_s", "start_s", "switch_s")})
        for name, p in profiles.items()
    }
    result = simulate(jobs, profiles, get(cell.policy, **dict(cell.switches)), options, told)
    return {
        "violations": result.violations,
        "rejected": sum(job.rejected for job in result.jobs),
        "cost": round(result.cost_s, 1),
        "busy": round(result.busy_s, 1),
        "startup": round(result.startup_s, 1),
        "idle": round(result.idle_s, 1),
        "cluster_cost": round(result.cluster_s, 1),
    }
