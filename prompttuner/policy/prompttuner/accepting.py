"""Which deadlines are kept: decided on what the GPUs can do over time, running jobs included, at every plan anew.

Jobs are taken earliest deadline first. Each is given the fewest GPUs, slot of time by slot of time, that end it by its
deadline (progressive filling with the minimum satisfactory share, as in Gu et al., "ElasticFlow", ASPLOS '23), first on
what no running job holds, else on what jobs that are due later hold: these are moved to a later time, at the price of
a pause, and lend their GPUs now. Where a job fits nowhere, the largest one accepted so far that makes it fit loses its
deadline instead, or the job itself (Moore, "An n job, one machine sequencing algorithm", 1968, on the real profile).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from prompttuner.policy.contract.snapshot import AgentPhase, Floats, Ints, JobPhase, Snapshot
from prompttuner.policy.estimate import Estimate, room
from prompttuner.policy.prompttuner.switches import Switches

__all__ = ["Accepted", "accept"]

SLOTS = 96
"""Slots of the time grid at most."""
TRIES = 8
"""Larger jobs that are tried, at most, in the place of one that does not fit."""
EPS = 1e-6


@dataclass(slots=True)
class Accepted:
    """What was decided; rows of ``snapshot.jobs``."""

    dropped: dict[int, float] = field(default_factory=dict)
    """Jobs that are put last -> their GPU-seconds."""
    shares: dict[int, float] = field(default_factory=dict)
    """GPUs of each accepted job in the slot that begins now."""
    pressing: set[int] = field(default_factory=set)
    """Jobs that fit only where others lend or give up theirs."""
    lend: dict[int, int] = field(default_factory=dict)
    """Running jobs -> GPUs they can lend now and still end in time."""


@dataclass(slots=True)
class _Profile:
    start: Floats
    length: Floats
    hard: Floats
    """GPUs free in each slot after the jobs accepted so far."""
    soft: Floats
    """The same without what running jobs that come later in the order hold."""


@dataclass(slots=True)
class _Job:
    row: int
    due: float
    work: float
    fixed: float
    low: int
    speeds: NDArray[np.float64]
    gains: NDArray[np.float64]
    size: float
    have: int
    rect: Floats | None = None
    used: Floats | None = None


def accept(
    snapshot: Snapshot, rules: Switches, guess: Estimate, work: Floats, ends: Floats, rows: Ints, running: Ints, margin: float
) -> Accepted:
    """Decide for the waiting rows (in time's order of deadlines) and the running ones."""
    found = Accepted()
    if not len(rows):
        return found
    jobs, now, tick = snapshot.jobs, snapshot.now, snapshot.tick_s
    profile = _profile(snapshot, guess, ends, np.concatenate([rows, running]), margin)
    order: list[_Job] = []
    speeds = [np.array(table) for table in guess.speeds]
    gains = [np.append(np.diff(table), 0.0) for table in speeds]
    for row in np.concatenate([rows, running]).tolist():
        pool, have = int(jobs.pool[row]), int(guess.members[row])
        top = int(guess.top[row])
        due = float(jobs.deadline[row]) - margin
        load, fixed = float(work[row]), float(guess.fixed[row])
        job = _Job(row, due, load, fixed, max(int(jobs.min_gpus[row]), 1), speeds[pool][: top + 1], gains[pool][: top + 1], 0.0, have)
        job.size = have * float(ends[row] - now) if have else job.low * (fixed + load / float(job.speeds[job.low]))
        if have:
            share = np.clip((float(ends[row]) - profile.start) / profile.length, 0.0, 1.0)
            job.rect = have * share
            settled = jobs.phase[row] == JobPhase.RUNNING and now - float(jobs.phase_since[row]) >= 2 * tick
            if not settled or not rules.resize:
                profile.hard -= job.rect
                profile.soft -= job.rect
                if settled:
                    found.shares[row] = have
                continue
            profile.soft -= job.rect
        order.append(job)
    order.sort(key=lambda job: (job.due, job.row))
    accepted: list[_Job] = []
    for job in order:
        pool = int(jobs.pool[job.row])
        p = snapshot.pools[pool]
        if job.rect is not None:
            profile.soft += job.rect
            if float(ends[job.row]) <= job.due + 0.5 * margin and bool((job.rect <= profile.hard + EPS).all()):
                _take(profile, job, job.rect)
                accepted.append(job)
                continue
            kept = _shrink(profile, job, now, p.resize_s + tick)
            if kept is not None:
                _take(profile, job, kept)
                accepted.append(job)
                continue
            job.fixed = p.warm_s + p.resize_s + 3 * tick
        used = _fit(profile, profile.soft, job)
        if used is None:
            used = _fit(profile, profile.hard, job)
            if used is not None and not job.have:
                found.pressing.add(job.row)
        if used is None:
            victims = sorted((a for a in accepted if a.size > job.size), key=lambda a: (-a.size, a.row))
            for victim in victims[:TRIES]:
                used = _fit(profile, profile.hard + victim.used, job)
                if used is not None:
                    found.pressing.add(job.row)
                    profile.hard += victim.used
                    profile.soft += victim.used
                    accepted.remove(victim)
                    found.dropped[victim.row] = victim.size
                    break
        if used is None:
            found.dropped[job.row] = job.size
            continue
        _take(profile, job, used)
        accepted.append(job)
    for job in accepted:
        share = float(job.used[0])
        found.shares[job.row] = share
        if job.have:
            keep = int(share + 0.5)
            if keep < job.low:
                keep = 0
            if keep < job.have:
                found.lend[job.row] = job.have - keep
    return found


def _shrink(profile: _Profile, job: _Job, now: float, pause: float) -> Floats | None:
    """As many of its GPUs as it can keep from now to its end, one less at the least."""
    for keep in range(min(job.have - 1, len(job.speeds) - 1), job.low - 1, -1):
        end = now + pause + job.work / float(job.speeds[keep])
        if end > job.due:
            return None
        used = keep * np.clip((end - profile.start) / profile.length, 0.0, 1.0)
        if bool((used <= profile.hard + EPS).all()):
            return np.asarray(used)
    return None


def _take(profile: _Profile, job: _Job, used: Floats) -> None:
    job.used = used
    profile.hard -= used
    profile.soft -= used


def _fit(profile: _Profile, free: Floats, job: _Job) -> Floats | None:
    """GPUs in each slot: the least level that ends the job in time; None where none does."""
    last = int(np.searchsorted(profile.start, job.due))
    if not last:
        return None
    length = profile.length[:last]
    start = profile.start[:last]
    overlap = np.minimum(length, job.due - start)
    n = np.arange(job.low, len(job.speeds))
    alloc = np.minimum(n[:, None], np.maximum(free[None, :last], 0.0))
    if job.low > 1:
        alloc[alloc < job.low] = 0.0
    whole = alloc.astype(np.int64)
    rate = job.speeds[whole] + (alloc - whole) * job.gains[whole]
    done = rate * overlap
    total = done.sum(axis=1)
    need = job.work + job.fixed * job.speeds[job.low :]
    enough = np.flatnonzero(total >= need - EPS)
    if not len(enough):
        return None
    k = int(enough[0])
    before = np.cumsum(done[k]) - done[k]
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.clip(np.where(done[k] > 0, (need[k] - before) / done[k], 0.0), 0.0, 1.0)
    used = np.zeros(len(profile.start))
    used[:last] = alloc[k] * share * (overlap / length)
    return used


def _profile(snapshot: Snapshot, guess: Estimate, ends: Floats, rows: Ints, margin: float) -> _Profile:
    jobs, agents, now, tick = snapshot.jobs, snapshot.agents, snapshot.now, snapshot.tick_s
    alive = (agents.phase != AgentPhase.DRAINING) & (agents.pool >= 0)
    coming = alive & (agents.phase != AgentPhase.BUSY) & (agents.phase != AgentPhase.WARM)
    ready = np.maximum(agents.ready_at[coming], now)
    cold = now + min(p.queue_s + p.start_s for p in snapshot.pools)
    spare = room(snapshot)
    due = jobs.deadline[rows] - margin
    marks = np.concatenate([due, ends[rows], ready, [cold] if spare else []])
    marks = np.unique(marks[(marks > now + tick) & np.isfinite(marks)])
    if len(marks) >= SLOTS:
        marks = marks[np.unique(np.linspace(0, len(marks) - 1, SLOTS - 1).astype(np.int64))]
    edges = np.concatenate([[now], marks, [max(float(marks[-1]) if len(marks) else now, now) + 3600.0]])
    start, length = edges[:-1], np.diff(edges)
    free = np.full(len(start), float(alive.sum() - coming.sum()))
    for at in ready.tolist():
        free += np.clip((edges[1:] - at) / length, 0.0, 1.0)
    if spare:
        free += spare * np.clip((edges[1:] - cold) / length, 0.0, 1.0)
    return _Profile(start, length, free, free.copy())
