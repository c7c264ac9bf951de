"""How many GPUs there are over time, in slots, and the least share of them that ends a job by its deadline."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from prompttuner.policy.contract.snapshot import AgentPhase, Floats, Snapshot
from prompttuner.policy.estimate import room

__all__ = ["EPS", "Fit", "Grid", "fit", "make_grid"]

SLOTS = 96
"""Slots of the time grid at most."""
EPS = 1e-6
LAST_S = 3600.0
"""Length of the last slot: from the last time that matters on."""


@dataclass(frozen=True, slots=True)
class Grid:
    """Slots of time from now on; a time within a slot counts with its share of it."""

    start: Floats
    length: Floats
    gpus: Floats
    """GPUs that are there in each slot, whoever has them (those that may be asked for after a cold start)."""

    def until(self, ends: Floats) -> Floats:
        """Share of each slot that lies before each of these times, shape (times, slots)."""
        return np.asarray(np.clip((ends[:, None] - self.start) / self.length, 0.0, 1.0))


@dataclass(frozen=True, slots=True)
class Fit:
    """A job's place: GPUs by slot (a slot in which it ends counts in part), and those it has from now on."""

    used: Floats
    now: float


def make_grid(snapshot: Snapshot, marks: Floats) -> Grid:
    """Slots that begin and end at these times, or at some of them where they are many."""
    agents, now = snapshot.agents, snapshot.now
    alive = (agents.phase != AgentPhase.DRAINING) & (agents.pool >= 0)
    there = alive & ((agents.phase == AgentPhase.BUSY) | (agents.phase == AgentPhase.WARM))
    ready = np.maximum(agents.ready_at[alive & ~there], now)
    asked = room(snapshot)
    if asked:
        cold = now + min(p.queue_s + p.start_s for p in snapshot.pools)
        ready = np.concatenate([ready, np.full(min(asked, 100_000), cold)])
    times = np.concatenate([marks, ready])
    times = np.unique(times[(times > now + snapshot.tick_s) & np.isfinite(times)])
    if len(times) >= SLOTS:
        times = times[np.unique(np.linspace(0, len(times) - 1, SLOTS - 1).astype(np.int64))]
    edges = np.concatenate([[now], times, [(float(times[-1]) if len(times) else now) + LAST_S]])
    grid = Grid(edges[:-1], np.diff(edges), np.full(len(edges) - 1, float(there.sum())))
    kinds, counts = np.unique(ready, return_counts=True)
    if len(kinds):
        grid.gpus[:] += counts @ (1.0 - grid.until(kinds))
    return grid


def fit(grid: Grid, free: Floats, due: float, work: float, fixed: float, low: int, speeds: Floats) -> Fit | None:
    """The least level of GPUs, or as many as are free where that is less, that ends the job in time; None: none does.

    Args:
        free: GPUs of each slot that it may have.
        work: one-member seconds.
        fixed: seconds in which it holds its GPUs and gets no work done.
        low: fewest GPUs.
        speeds: speed-up by number of GPUs, from 0 to the most.
    """
    slots = int(np.searchsorted(grid.start, due))
    most = len(speeds) - 1
    if not slots or most < low:
        return None
    overlap = np.minimum(grid.length[:slots], due - grid.start[:slots])
    there = np.maximum(free[:slots], 0.0)
    if low > 1:
        there[there < low] = 0.0
    sizes = np.arange(most + 1)

    def done(level: int) -> Floats:
        return np.asarray(np.interp(np.minimum(there, level), sizes, speeds) * overlap)

    def enough(gained: Floats, level: int) -> bool:
        return float(gained.sum()) >= work + fixed * float(speeds[level]) - EPS

    level, gained = low, done(low)
    if not enough(gained, level):
        short, level = level, most
        gained = done(most)
        if most == low or not enough(gained, most):
            return None
        while level - short > 1:
            middle = (level + short) // 2
            tried = done(middle)
            if enough(tried, middle):
                level, gained = middle, tried
            else:
                short = middle
    need = work + fixed * float(speeds[level])
    left = need - (np.cumsum(gained) - gained)
    part = np.clip(left / np.maximum(gained, 1e-12), 0.0, 1.0)
    used = np.zeros(len(grid.start))
    used[:slots] = np.minimum(there, level) * part * (overlap / grid.length[:slots])
    return Fit(used, min(float(there[0]), level))
