"""What every policy derives from a snapshot: predicted times, GPUs that suffice, and the order of jobs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from prompttuner.policy.contract.snapshot import AgentPhase, Floats, Ints, JobPhase, PoolProfile, Snapshot

__all__ = ["Estimate", "estimate", "queue_order", "room", "speed_table"]

LOOKUP_GAIN = 1.0
"""A lookup is worth its time where it is expected to save this many times the GPU-seconds it costs."""


@lru_cache(maxsize=256)
def speed_table(speedup: tuple[tuple[int, float], ...], upto: int) -> tuple[float, ...]:
    """Speed-up of 0, 1, ..., ``upto`` members: interpolated between the given sizes, flat beyond the last."""
    sizes = [float(n) for n, _ in speedup]
    gains = [gain for _, gain in speedup]
    return (0.0, *(float(np.interp(n, sizes, gains)) for n in range(1, upto + 1)))


@dataclass(slots=True)
class Estimate:
    """Derived columns, one row a job. A run with n members ends ``fixed + work / speed(n)`` seconds after its start."""

    members: Ints
    """Agents that are BUSY with the job now."""
    lookup: NDArray[np.bool_]
    """A Prompt Bank lookup is still to be done (or under way) and expected to pay."""
    fixed: Floats
    """Seconds that more members do not shorten: start-up of the lease, lookup (what is left of them)."""
    work: Floats
    """One-member seconds of tuning left at the planning quantile, after the lookup if ``lookup``."""
    work_mid: Floats
    """The same at the median."""
    work_plain: Floats
    """One-member seconds left at the planning quantile if no lookup is done."""
    speeds: list[tuple[float, ...]]
    """For each pool: speed-up by number of members."""
    top: Ints
    """Most members worth having: the job's own limit, the site's, and the end of the speed-up table."""

    def seconds(self, row: int, pool: int, members: int) -> float:
        """Predicted seconds from now to the end with this many members."""
        return float(self.fixed[row]) + float(self.work[row]) / self.speeds[pool][members]

    def fewest(self, row: int, pool: int, low: int, seconds: float) -> int:
        """Fewest members, from ``low`` up, that end within ``seconds``; 0 where none do."""
        left = seconds - float(self.fixed[row])
        work = float(self.work[row])
        if left <= 0:
            return 0
        table = self.speeds[pool]
        for n in range(low, int(self.top[row]) + 1):
            if work <= left * table[n]:
                return n
        return 0


def estimate(snapshot: Snapshot, bank: bool = True) -> Estimate:
    """All derived columns of a snapshot, in a few vector operations; without ``bank`` no new lookup is planned."""
    jobs, agents, pools, now = snapshot.jobs, snapshot.agents, snapshot.pools, snapshot.now
    member = (agents.phase == AgentPhase.BUSY) & (agents.job >= 0)
    members = np.bincount(agents.job[member], minlength=jobs.n).astype(np.int64)
    upto = int(max((p.speedup[-1][0] for p in pools), default=1))
    ends = np.array([p.speedup[-1][0] for p in pools], dtype=np.int64)
    site = snapshot.limits.gpus if math.isfinite(snapshot.limits.gpus) else upto
    top = np.minimum(np.maximum(jobs.min_gpus, np.minimum(jobs.max_gpus, ends[jobs.pool])), max(int(site), 1))
    # a job may want, or by hand have, more members than any profile tells of
    widest = max(upto, int(top.max(initial=0)), int(jobs.min_gpus.max(initial=0)), int(members.max(initial=0)))
    speeds = [speed_table(p.speedup, widest) for p in pools]

    warm_s = _column(pools, "warm_s")[jobs.pool]
    lookup_s = _column(pools, "lookup_s")[jobs.pool]
    waited = np.maximum(now - jobs.phase_since, 0.0)
    looking = jobs.phase == JobPhase.LOOKUP
    fresh = (jobs.phase == JobPhase.WAITING) | (jobs.phase == JobPhase.HELD)
    starting = jobs.phase == JobPhase.STARTING

    plain_mid = jobs.step_s * jobs.iters_mid
    plain_hi = jobs.step_s * jobs.iters_hi
    pays = (plain_mid * (1.0 - jobs.bank_factor_mid) > LOOKUP_GAIN * lookup_s) & bank
    lookup = (((fresh | starting) & pays & (jobs.bank_factor_mid < 1.0)) | looking).astype(np.bool_)
    fixed = np.where(fresh, warm_s, np.where(starting, np.maximum(warm_s - waited, 0.0), 0.0))
    fixed = fixed + np.where(looking, np.maximum(lookup_s - waited, 0.0), np.where(lookup, lookup_s, 0.0))
    return Estimate(
        members=members,
        lookup=lookup,
        fixed=fixed,
        work=np.where(lookup, plain_hi * jobs.bank_factor_hi, plain_hi),
        work_mid=np.where(lookup, plain_mid * jobs.bank_factor_mid, plain_mid),
        work_plain=plain_hi,
        speeds=speeds,
        top=top,
    )


def queue_order(snapshot: Snapshot, rows: Ints) -> Ints:
    """These rows earliest deadline first; best effort last; then by priority (high first), submit time and row."""
    jobs = snapshot.jobs
    due = np.where(jobs.best_effort[rows], np.inf, jobs.deadline[rows])
    return rows[np.lexsort((rows, jobs.submit[rows], -jobs.priority[rows], due))]


def room(snapshot: Snapshot) -> int:
    """Allocations that may be asked for now, within all limits. One without GPUs (a CPU slot) counts as one."""
    agents, limits = snapshot.agents, snapshot.limits
    if limits.gpu_hours_left <= 0:
        return 0
    held = float(np.maximum(agents.gpus, 1).sum())
    return int(max(min(limits.gpus - held, limits.allocations - agents.n, limits.requests_now, 1e6), 0.0))


def _column(pools: list[PoolProfile], name: str) -> Floats:
    return np.array([getattr(p, name) for p in pools], dtype=np.float64)
