"""A snapshot as one has learned to read it: what is told of work, bank, queue and starts, corrected by past errors."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import numpy as np

from prompttuner.policy.contract.snapshot import Floats, JobPhase, Lessons, PoolProfile, Snapshot

__all__ = ["corrected", "ratio"]

PRIOR = 2.0
"""Observations that the belief in what is told counts for: ten others outweigh it five to one."""
LATEST = 16
"""Observations that are looked at, the latest: as many new ones make good for what was wrong before."""
MEMORY_S = 7200.0
"""An observation loses weight by a factor e in this time: who no longer tries a lookup tries it again one day."""
QUANTILE = 1.2816
"""Of the standard normal distribution: P90."""
HONEST = 0.02
"""Errors of the logarithm below which what is told is taken as it is."""


def ratio(seen: Floats, now: float) -> tuple[float, float]:
    """(median, P90) of truth over told: lognormal, shrunk towards 1; exactly 1 where nothing was wrong.

    Args:
        seen: as in ``Lessons``, shape (observations, 2).
    """
    latest = seen[-LATEST:]
    if not len(latest):
        return 1.0, 1.0
    weight = np.exp(-np.maximum(now - latest[:, 0], 0.0) / MEMORY_S)
    logs, total = np.log(latest[:, 1]), float(weight.sum()) + PRIOR
    mean = float((weight * logs).sum()) / total
    spread = math.sqrt(float((weight * (logs - mean) ** 2).sum() + PRIOR * mean**2) / total)
    if abs(mean) < HONEST and spread < HONEST:
        return 1.0, 1.0
    return math.exp(mean), math.exp(mean + QUANTILE * spread)


def corrected(snapshot: Snapshot) -> Snapshot:
    """The same moment with pools, iterations and bank factors as past errors tell; itself where there were none."""
    lessons, jobs, now = snapshot.lessons, snapshot.jobs, snapshot.now
    if not any(len(seen) for pool in lessons for seen in (pool.work, pool.bank, pool.queue, pool.start)):
        return snapshot
    work = np.array([ratio(pool.work, now) for pool in lessons])
    bank = np.array([ratio(pool.bank, now) for pool in lessons])
    pools = [_profile(profile, pool, now) for profile, pool in zip(snapshot.pools, lessons, strict=True)]
    fresh = (jobs.phase == JobPhase.WAITING) | (jobs.phase == JobPhase.HELD)
    unseen = np.where(fresh, 1.0, 0.0) if jobs.unseen is None else jobs.unseen
    # what is told is told over the unseen share alone: told = truth (1 + (1 / ratio - 1) unseen)
    factor = 1.0 / (1.0 + (1.0 / work[jobs.pool] - 1.0) * unseen[:, None])
    mid, high = jobs.iters_mid * factor[:, 0], jobs.iters_mid * factor[:, 1]
    hopes = jobs.bank_factor_mid < 1.0
    by = np.where(hopes[:, None], bank[jobs.pool], 1.0)
    better = replace(
        jobs,
        iters_mid=mid,
        iters_hi=np.maximum(jobs.iters_hi * factor[:, 0], high),
        bank_factor_mid=jobs.bank_factor_mid * by[:, 0],
        bank_factor_hi=np.maximum(jobs.bank_factor_hi * by[:, 0], jobs.bank_factor_mid * by[:, 1]),
    )
    return replace(snapshot, jobs=better, pools=pools)


def _profile(profile: PoolProfile, lessons: Lessons, now: float) -> PoolProfile:
    """Queue and start-up between median and P90, as deadlines are planned."""
    of = partial(ratio, now=now)
    (queue, queue_hi), (start, start_hi) = of(lessons.queue), of(lessons.start)
    return replace(
        profile,
        queue_s=profile.queue_s * (queue + queue_hi) / 2,
        start_s=profile.start_s * (start + start_hi) / 2,
    )
