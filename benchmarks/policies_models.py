"""The comparison's second trace: GenTD26, whose requests say which of 87 base models they need; no bank.

Stated before any of its windows was run: two-hour windows that begin at even hours (UTC); for each cluster size the
five of the greatest load below 1. Execution times x 10 (a request took 23 s in the median), up to 8 GPUs a job, the
stated speed-up. Each model's load is one of 7,531 that were measured, drawn by its name; a start takes 10 s more.
"""

from __future__ import annotations

import os
from collections import defaultdict
from functools import lru_cache
from pathlib import Path

from prompttuner.policy.contract.snapshot import PoolProfile
from prompttuner.trace.importers.common import Wanted
from prompttuner.trace.importers.gentd26 import import_gentd26, profiles_of, read_loads
from prompttuner.trace.job import TraceJob
from prompttuner.trace.slo import SloMultiple, with_slo
from prompttuner.trace.window import cut

__all__ = ["COUNT", "GPUS", "SLO", "TRACE", "available", "busiest", "profiles", "window_jobs"]

TRACE = "gentd26"
REQUESTS, LOADS = "lora_request_trace_to_2024-11-30.csv", "basemodel_update_latency_anon.csv"
FACTOR = 10.0
LENGTH_S = 7200.0
BEFORE_S = 3470.0
"""The first request came so long after an even hour (2024-11-15 16:57:50): window 0 begins there."""
GPUS = (32, 16)
SLO = "U(0.5,1.5)"
COUNT = 5


def _folder() -> Path:
    return Path(os.environ.get("PROMPTTUNER_TRACES", "")) / "alibaba_2026"


def available() -> bool:
    """Whether PROMPTTUNER_TRACES has the two files."""
    return (_folder() / REQUESTS).exists() and (_folder() / LOADS).exists()


@lru_cache(maxsize=1)
def _base() -> list[TraceJob]:
    return import_gentd26(_folder() / REQUESTS, Wanted(factor=FACTOR)).require_clean().jobs


def window_jobs(number: int, gpus: int, slo: str, seed: int) -> list[TraceJob]:
    """A window's jobs, with deadlines drawn by the seed."""
    del gpus  # the window is taken as it is, not thinned
    jobs = cut(_base(), number * LENGTH_S - BEFORE_S, LENGTH_S)
    return with_slo(jobs, SloMultiple.parse(slo), seed)


def busiest(gpus: int) -> list[tuple[int, float]]:
    """(number, load) of the report windows for a cluster of this size, busiest first."""
    work: dict[int, float] = defaultdict(float)
    for job in _base():
        work[int((job.submit_s + BEFORE_S) // LENGTH_S)] += job.work_s
    loads = sorted(((seconds / (gpus * LENGTH_S), number) for number, seconds in work.items()), reverse=True)
    return [(number, round(load, 3)) for load, number in loads if load < 1][:COUNT]


@lru_cache(maxsize=1)
def _loads() -> tuple[float, ...]:
    return tuple(read_loads(_folder() / LOADS).tolist())


def profiles(llms: set[str]) -> dict[str, PoolProfile]:
    """By model: the stated default with a load drawn from the measured ones."""
    import numpy as np

    return {profile.name: profile for profile in profiles_of(llms, np.array(_loads()), "GenTD26's measured loads")}
