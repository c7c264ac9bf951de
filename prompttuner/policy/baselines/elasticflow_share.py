"""ElasticFlow's planning on plain numbers: minimum satisfactory shares, admission, and left-over GPUs.

Re-implemented from a description of the published system (Gu et al., ASPLOS 2023). Sizes are powers of two, time runs
in slots. A job's *share* is the smallest size q with which, given at most q GPUs in each stretch of free GPUs and
counted backwards from its deadline, its work is done; before the first stretch it needs, it runs at the size below.
"""

from __future__ import annotations

import heapq
import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TypeAlias

__all__ = ["EfJob", "Free", "Placement", "align", "left_over", "place", "place_all"]


@dataclass(slots=True)
class EfJob:
    """What planning knows of a job."""

    id: str
    left: float
    """Iterations (or any unit of work) still to do; above 0."""
    deadline: float
    levels: tuple[int, ...]
    """Sizes it may use, ascending powers of two."""
    rates: tuple[float, ...]
    """Work a second at each level."""
    gpus: int = 0
    """GPUs from now on, as decided by ``place_all`` and ``left_over``."""
    placement: Placement | None = None


@dataclass(frozen=True, slots=True)
class Placement:
    """A plan for one job: sizes over time, until ``end`` (a slot's edge)."""

    segments: tuple[tuple[float, int], ...]
    """(begin, GPUs), ascending; the last one ends at ``end``."""
    real_end: float
    end: float
    late: bool
    next_change: float
    """When its size changes next; inf if never."""

    @property
    def gpu_s(self) -> float:
        """GPU-seconds of the plan."""
        ends = (*(begin for begin, _ in self.segments[1:]), self.end)
        return sum(gpus * (to - begin) for (begin, gpus), to in zip(self.segments, ends, strict=True))


@dataclass(slots=True)
class Free:
    """Free GPUs over time: a step function, its last value without end. Neighbours always differ."""

    times: list[float]
    values: list[int]

    def with_plan(self, plan: Placement, sign: int) -> Free:
        """The function with a plan's GPUs taken out (-1) or given back (+1)."""
        changes = [(begin, sign * gpus) for begin, gpus in plan.segments]
        changes.append((plan.end, 0))
        changes.append((math.inf, 0))
        # what lies after the plan's end is copied as it is
        times, values = self.times, self.values
        n = bisect_right(times, plan.end)
        out_t: list[float] = []
        out_v: list[int] = []
        i, k, own = 0, 0, 0
        value = values[0]
        last: int | None = None
        while i < n or k < len(changes) - 1:
            at = times[i] if i < n and times[i] <= changes[k][0] else changes[k][0]
            if i < n and times[i] == at:
                value = values[i]
                i += 1
            while changes[k][0] == at:
                own = changes[k][1]
                k += 1
            if value + own != last:
                last = value + own
                out_t.append(at)
                out_v.append(last)
        return Free(out_t + times[n:], out_v + values[n:])


def align(start: float, time: float, slot: float) -> float:
    """``time`` rounded up to a slot's edge, counted from ``start``."""
    return start + math.ceil((time - start) / slot) * slot


def fit(levels: Sequence[int], free: int) -> int:
    """Index of the largest level of at most ``free`` GPUs; -1 when none fits."""
    return bisect_right(levels, free) - 1


def place(job: EfJob, free: Free, now: float, slot: float, first: int = -1) -> Placement:
    """Plan one job into ``free`` by its minimum satisfactory share.

    Args:
        first: index of the level it gets until the next change of ``free``, whatever its share; -1 without.
    """
    due = align(now, job.deadline, slot)
    begin, left = now, job.left
    head: list[tuple[float, int]] = []
    if first >= 0:
        head.append((now, job.levels[first]))
        real_end = math.ceil(now + left / job.rates[first])
        until = free.times[1] if len(free.times) > 1 else due
        end = align(now, real_end, slot)
        done = (min(until, job.deadline) if until == due else until) - now
        if done <= 0 or (until >= end and job.deadline >= real_end) or done * job.rates[first] >= left:
            return Placement(tuple(head), real_end, end, real_end > job.deadline, math.inf)
        left -= done * job.rates[first]
        begin = until
    edges, values = _window(free, begin, due)
    levels = job.levels
    window = edges, [bisect_right(levels, value) - 1 for value in values]
    found = _share(job, window, left, due)
    if found is None:
        at, left = _until_due(job, window, left, head, max(due, begin))
        return _late(job, free, at, left, head, first, (now, slot))
    return _in_time(job, window, left, head, found, slot)


def place_all(
    jobs: Sequence[EfJob], gpus: int, now: float, slot: float, put_off: float = math.inf
) -> tuple[Free, list[EfJob]]:
    """Plan all jobs from an empty cluster, by deadline; returns what stays free, and the jobs that will be late.

    Args:
        put_off: plan jobs that will be late after all others, as if due so many seconds from now; inf leaves them
            where their deadline puts them, with all the GPUs they can use.
    """
    free = Free([now], [gpus])
    late: list[EfJob] = []
    for job in sorted(jobs, key=lambda job: job.deadline):
        plan = place(job, free, now, slot)
        if plan.late:
            late.append(job)
        if plan.late and put_off < math.inf:
            continue
        free = _take(job, plan, free, now)
    if put_off < math.inf:
        for job in late:
            job.deadline = now + put_off
            free = _take(job, place(job, free, now, slot), free, now)
    return free, late


def _take(job: EfJob, plan: Placement, free: Free, now: float) -> Free:
    job.placement = plan
    job.gpus = plan.segments[0][1] if plan.segments[0][0] <= now else 0
    return free.with_plan(plan, -1)


@dataclass(order=True, slots=True)
class _Raise:
    """A job, one level higher, and what that would cost; the smallest goes first."""

    key: tuple[int, float, int]
    job: EfJob = field(compare=False)
    plan: Placement = field(compare=False)
    free: Free = field(compare=False)
    step: int = field(compare=False)


def left_over(
    jobs: Sequence[EfJob],
    free: Free,
    gpus: int,
    *,
    now: float,
    slot: float,
    diminishing: bool,
    lazy: bool = False,
) -> Free:
    """Raise jobs by one level at a time from now to the next change, while GPUs are free.

    Each time the job with the best score is raised and its rest is planned anew; jobs without GPUs go first. The score
    is the growth of its GPU-time for each GPU more.

    Args:
        diminishing: smallest growth first, as the paper's text has it; False for the released code's largest first.
        lazy: score a job again only when it comes to the front of the queue, instead of after every raise.
    """
    spare = gpus - sum(job.gpus for job in jobs)
    score = _scorer(now, slot, diminishing)
    if lazy:
        return _left_over_lazy(jobs, free, spare, score)
    while spare > 0:
        best: _Raise | None = None
        for order, job in enumerate(jobs):
            raised = score(job, free, spare, order)
            if raised is not None and (best is None or raised < best):
                best = raised
        if best is None:
            break
        spare -= best.step
        free = _apply(best)
    return free


def _left_over_lazy(jobs: Sequence[EfJob], free: Free, spare: int, score: _Score) -> Free:
    heap = [r for order, job in enumerate(jobs) if (r := score(job, free, spare, order)) is not None]
    heapq.heapify(heap)
    while heap and spare > 0:
        head = heapq.heappop(heap)
        fresh = score(head.job, free, spare, head.key[2])
        if fresh is None:
            continue
        if heap and heap[0] < fresh:
            heapq.heappush(heap, fresh)
            if fresh.key != head.key:
                continue
            fresh = heapq.heappop(heap)
        spare -= fresh.step
        free = _apply(fresh)
        again = score(fresh.job, free, spare, fresh.key[2])
        if again is not None:
            heapq.heappush(heap, again)
    return free


_Score = Callable[[EfJob, Free, int, int], _Raise | None]


def _scorer(now: float, slot: float, diminishing: bool) -> _Score:
    def score(job: EfJob, free: Free, spare: int, order: int) -> _Raise | None:
        level = fit(job.levels, job.gpus) + 1
        if level >= len(job.levels) or job.levels[level] - job.gpus > spare or job.placement is None:
            return None
        step = job.levels[level] - job.gpus
        own = free.with_plan(job.placement, +1)
        plan = place(job, own, now, slot, level)
        growth = (plan.gpu_s - job.placement.gpu_s) / step
        key = (1 if job.gpus else 0, growth if diminishing else -growth, order)
        return _Raise(key, job, plan, own, step)

    return score


def _apply(raised: _Raise) -> Free:
    raised.job.gpus += raised.step
    raised.job.placement = raised.plan
    return raised.free.with_plan(raised.plan, -1)


_Segment: TypeAlias = tuple[float, int]
_Window: TypeAlias = tuple[list[float], list[int]]
"""Edges of segments, and the index of the largest level that fits into each (-1: none)."""


def _window(free: Free, begin: float, due: float) -> tuple[list[float], list[int]]:
    """Edges and values of the free GPUs within [begin, due)."""
    if begin >= due:
        return [], []
    i = bisect_right(free.times, begin) - 1
    j = i + 1
    while j < len(free.times) and free.times[j] < due:
        j += 1
    return [begin, *free.times[i + 1 : j]], free.values[i:j]


def _share(job: EfJob, window: _Window, left: float, due: float) -> tuple[int, int] | None:
    """(level index, first segment that needs it), or None when no level is enough."""
    edges, fits = window
    rates = job.rates
    for q in range(len(job.levels)):
        end, done = due, 0.0
        for k in range(len(edges) - 1, -1, -1):
            level, edge = fits[k], edges[k]
            if level >= 0:
                done += ((job.deadline if end == due else end) - edge) * rates[level if level < q else q]
                if done >= left:
                    return q, k
            end = edge
    return None


def _in_time(
    job: EfJob, window: _Window, left: float, head: list[_Segment], found: tuple[int, int], slot: float
) -> Placement:
    """The plan of a share: level below it before the segment that needs it, and up to the end of the work."""
    edges, fits = window
    q, point = found
    segments = list(head)
    levels, rates, deadline = job.levels, job.rates, job.deadline
    usable = len(fits) - 1
    while fits[usable] < 0:
        usable -= 1
    for k, begin in enumerate(edges):
        most, level = q if k >= point else q - 1, fits[k]
        level = min(level, most)
        segments.append((begin, levels[level] if level >= 0 else 0))
        if level < 0:
            continue
        follow = edges[k + 1] if k + 1 < len(edges) else math.inf
        done = ((follow if follow < deadline else deadline) - begin) * rates[level]
        if k == usable or (k >= point and done >= left):
            seconds = math.ceil(left / job.rates[level])
            end = begin + align(0.0, seconds, slot)
            # at the next edge, where others change size, its plan is looked at again even if it is done before
            late = begin + seconds > job.deadline
            return Placement(tuple(segments), begin + seconds, end, late, _change(segments, follow))
        left = left - done if left - done > 1e-9 else 1e-9
    raise AssertionError("no stretch of time with a GPU, although its share was found there")


def _until_due(job: EfJob, window: _Window, left: float, head: list[_Segment], at: float) -> tuple[float, float]:
    """Give a job that will miss all it can use until its deadline; returns (time, work left)."""
    edges, fits = window
    for k, edge in enumerate(edges):
        level = fits[k]
        head.append((edge, job.levels[level] if level >= 0 else 0))
        if level >= 0:
            until = edges[k + 1] if k + 1 < len(edges) else job.deadline
            left = max(left - (until - edge) * job.rates[level], 1e-9)
    return at, left


def _late(
    job: EfJob,
    free: Free,
    at: float,
    left: float,
    segments: list[_Segment],
    first: int,
    when: tuple[float, float],
) -> Placement:
    """As much as there is from the deadline on, until the work is done; ``when`` is (now, slot)."""
    while True:
        i = bisect_right(free.times, at) - 1
        last = i + 1 >= len(free.times)
        level = first if last and first >= 0 else fit(job.levels, free.values[i])
        segments.append((at, job.levels[level] if level >= 0 else 0))
        if level >= 0:
            until = math.inf if last else free.times[i + 1]
            if (until - at) * job.rates[level] >= left:
                real_end = math.ceil(at + left / job.rates[level])
                end = align(when[0], real_end, when[1])
                return Placement(tuple(segments), real_end, end, True, _change(segments, math.inf))
            left -= (until - at) * job.rates[level]
        at = free.times[i + 1]


def _change(segments: list[_Segment], follow: float) -> float:
    """When the size first differs from the one before."""
    for (_, before), (begin, gpus) in pairwise(segments):
        if gpus != before:
            return begin
    return follow
