"""Overload: which waiting jobs cannot all be met, and whom to put last so that most are (Moore-Hodgson)."""

from __future__ import annotations

import heapq

import numpy as np

from prompttuner.policy.contract.plan import Why
from prompttuner.policy.contract.snapshot import Floats, Ints
from prompttuner.policy.prompttuner.planning_pass import Pass
from prompttuner.policy.prompttuner.timeline import Kind

__all__ = ["put_last"]


def put_last(work: Pass, queue: list[int]) -> list[int]:
    """The queue (rows by deadline) without the jobs that are put last; those are noted and added to ``late``.

    Moore, "An n job, one machine sequencing algorithm for minimizing the number of late jobs" (1968), in Hodgson's
    form, on the total of all GPUs: jobs are accepted by deadline; where the work accepted exceeds what all GPUs can
    do until then, the largest one accepted so far is put last. A job counts with its GPU-seconds on the fewest GPUs
    that meet its deadline alone.
    """
    if not queue:
        return queue
    snapshot, rows = work.snapshot, np.array(queue, dtype=np.int64)
    running = _running(work)
    due = snapshot.jobs.deadline[np.concatenate([rows, running])]
    order = np.argsort(due, kind="stable")
    sizes = np.concatenate([_gpu_seconds(work, rows), _left(work, running)])[order]
    room = work.rules.overload * _capacity(work, due[order], len(running) > 0)
    if np.all(np.cumsum(sizes) <= room):
        return queue
    total = 0.0
    accepted: list[tuple[float, int]] = []
    dropped: dict[int, float] = {}
    for place, size, limit in zip(order.tolist(), sizes.tolist(), room.tolist(), strict=True):
        total += size
        if place < len(queue):
            heapq.heappush(accepted, (-size, place))
        while total > limit and accepted:
            largest, gone = heapq.heappop(accepted)
            total += largest
            dropped[gone] = -largest
    for place, size in dropped.items():
        row = queue[place]
        work.late.append(row)
        left = float(snapshot.jobs.deadline[row]) - snapshot.now
        text = (
            "more is due within {:.0f} s than the GPUs can do; its {:.0f} GPU-seconds would make more jobs late; "
            "a later deadline, or others that end early, would change that"
        )
        work.notes[snapshot.jobs.id[row]] = Why(text, left, size)
    return [row for place, row in enumerate(queue) if place not in dropped]


def _gpu_seconds(work: Pass, rows: Ints) -> Floats:
    """Of each job on the fewest GPUs that meet its deadline alone; what is left to add for a running one."""
    jobs, guess = work.snapshot.jobs, work.guess
    left = jobs.deadline[rows] - work.snapshot.now - guess.fixed[rows]
    load = np.array([work.work[row] for row in rows.tolist()])
    out = np.empty(len(rows))
    for pool, table in enumerate(guess.speeds):
        mine = np.flatnonzero(jobs.pool[rows] == pool)
        speed = np.array(table)
        with np.errstate(divide="ignore", invalid="ignore"):
            wanted = np.where(left[mine] > 0, load[mine] / left[mine], np.inf)
        n = np.clip(np.searchsorted(speed, wanted), 1, np.maximum(guess.top[rows[mine]], 1))
        out[mine] = n * (guess.fixed[rows[mine]] + load[mine] / speed[n])
    return np.where(guess.members[rows] > 0, 0.0, out)


def _running(work: Pass) -> Ints:
    """Jobs that run towards a deadline; where they can be paused, they count with what they have left, by deadline."""
    jobs = work.snapshot.jobs
    if not work.rules.resize:
        return np.zeros(0, dtype=np.int64)
    return np.flatnonzero((work.guess.members > 0) & np.array(work.timely, dtype=np.bool_) & (jobs.deadline < np.inf))


def _left(work: Pass, running: Ints) -> Floats:
    return np.asarray((work.ends[running] - work.snapshot.now) * work.guess.members[running], dtype=np.float64)


def _capacity(work: Pass, until: Floats, paused: bool) -> Floats:
    """GPU-seconds all agents (and those that may be asked for) can give before each time.

    Agents of running jobs from now on if ``paused``, else from their job's end.
    """
    timeline = work.timeline
    ready = [
        timeline.now if paused and entry[1] == Kind.BUSY else entry[0]
        for entries in timeline.pools
        for entry in entries
    ]
    ready += [min(timeline.cold_at)] * int(min(timeline.room, 1e5))
    times = np.sort(np.array(ready))
    before = np.concatenate([[0.0], np.cumsum(times)])
    count = np.searchsorted(times, until)
    return np.asarray(count * until - before[count])
