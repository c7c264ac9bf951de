"""ElasticFlow's own time model, for checking our ElasticFlow against the figures its released simulator prints.

Events (submissions, ends, planned size changes) are at least one scheduling slot apart; whatever falls within a slot
is handled at its end. At each event everything is planned and packed anew, largest first. Each running job then loses
an overhead: 2 s (7 s on clusters of 256 GPUs and more) where this very set of GPUs was used before, else
2 (log2 n + 1) s more, and 27 s (47 s) more at every ``slot``-th event. A job counts as met by its end without the last
round's overhead and slot rounding. The planning functions are those of the policy (``elasticflow_share``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from prompttuner.policy.baselines.elasticflow_share import EfJob, left_over, place_all
from prompttuner.sim.rates import Speedup
from prompttuner.trace.job import TraceJob

__all__ = ["ElasticFlowResult", "simulate_elasticflow"]


@dataclass(slots=True)
class ElasticFlowResult:
    """``gpu_s``: GPU-seconds between events, planned sizes times time, as its log has it."""

    met: list[str] = field(default_factory=list)
    late: list[str] = field(default_factory=list)
    rejected: list[str] = field(default_factory=list)
    gpu_s: float = 0.0
    events: int = 0


@dataclass(slots=True, eq=False)
class _Running:
    plan: EfJob
    end_event: float = math.inf
    overhead: float = 0.0


@dataclass(slots=True)
class _Cluster:
    gpus: int
    slot: float
    diminishing: bool
    one_by_one: bool
    lazy: bool
    jobs: list[_Running] = field(default_factory=list)
    used_sets: set[tuple[int, int]] = field(default_factory=set)
    result: ElasticFlowResult = field(default_factory=ElasticFlowResult)

    def progress(self, seconds: float, now: float) -> None:
        """Work done since the last event."""
        for job in self.jobs:
            placement = job.plan.placement
            if not job.plan.gpus or placement is None:
                continue
            ran = max(seconds - max(0.0, now - placement.real_end) - job.overhead, 0.0)
            done = ran * _rate(job.plan)
            if job.plan.left <= done and job.end_event > now:
                job.end_event = now
            job.plan.left = max(job.plan.left - done, 1e-6)

    def finish(self, now: float) -> None:
        for job in [j for j in self.jobs if j.end_event <= now]:
            self.jobs.remove(job)
            late = job.plan.placement is None or job.plan.placement.real_end > job.plan.deadline
            (self.result.late if late else self.result.met).append(job.plan.id)

    def admit(self, arrivals: list[EfJob], now: float) -> None:
        """The released code rejects all arrivals of a slot together if any job, old or new, would miss."""
        for group in [[job] for job in arrivals] if self.one_by_one else [arrivals]:
            _, late = place_all([job.plan for job in self.jobs] + group, self.gpus, now, self.slot)
            if not late:
                self.jobs += [_Running(job) for job in group]
            else:
                self.result.rejected += [job.id for job in group]

    def plan(self, now: float, submit: float) -> float:
        """Decide all sizes from now on; returns when to do so for a change of size, inf when an end comes first."""
        plans = [job.plan for job in self.jobs]
        free, _ = place_all(plans, self.gpus, now, self.slot)
        order = sorted(plans, key=lambda p: p.deadline)
        left_over(order, free, self.gpus, now=now, slot=self.slot, diminishing=self.diminishing, lazy=self.lazy)
        restart = self.result.events > 0 and self.result.events % int(self.slot) == 0
        known = self._pack()
        if restart:
            self.used_sets.clear()
        change, end = math.inf, math.inf
        for job in self.jobs:
            placement = job.plan.placement
            if placement is None:
                continue
            change, end = min(change, placement.next_change), min(end, placement.end)
            job.overhead = self._overhead(job.plan.gpus, restart, job.plan.id in known) if job.plan.gpus else 0.0
            job.end_event = placement.end + job.overhead
        self.result.events += 1
        # ends are compared without their overhead: a change of size at an end waits for it
        return change if change < min(end, submit) else math.inf

    def _pack(self) -> set[str]:
        """Places jobs largest first, so that sets are aligned; returns those whose set was used before."""
        known: set[str] = set()
        at = 0
        for job in sorted(self.jobs, key=lambda j: -j.plan.gpus):
            place = (at, job.plan.gpus)
            if place in self.used_sets:
                known.add(job.plan.id)
            self.used_sets.add(place)
            at += job.plan.gpus
        return known

    def _overhead(self, gpus: int, restart: bool, known: bool) -> float:
        large = self.gpus >= 256
        seconds = 7.0 if large else 2.0
        if known:
            return seconds
        return seconds + (47.0 if large else 27.0) * restart + 2 * (math.log2(gpus) + 1)


def simulate_elasticflow(
    jobs: Sequence[TraceJob],
    gpus: int,
    speedups: Mapping[str, Speedup],
    *,
    slot_s: float = 240.0,
    fixed: bool = False,
    lazy: bool = False,
) -> ElasticFlowResult:
    """Run a trace through ElasticFlow in its own time model.

    Args:
        speedups: by ``TraceJob.llm``; sizes are those listed, up to the fastest and ``max_gpus``.
        fixed: left-over GPUs to the smallest growth of GPU-time, and arrivals admitted one by one.
        lazy: as ``left_over``: quicker on large traces, and not always the same choice.
    """
    cluster = _Cluster(gpus, slot_s, fixed, fixed, lazy)
    waiting = [_plan_of(job, gpus, speedups) for job in sorted(jobs, key=lambda j: j.submit_s)]
    submits = sorted(job.submit_s for job in jobs)
    upcoming, now, last = 0, submits[0] if submits else 0.0, submits[0] if submits else 0.0
    while upcoming < len(waiting) or cluster.jobs:
        cluster.progress(now - last, now)
        cluster.finish(now)
        arrivals = []
        while upcoming < len(waiting) and submits[upcoming] <= now:
            arrivals.append(waiting[upcoming])
            upcoming += 1
        if arrivals:
            cluster.admit(arrivals, now)
        submit = submits[upcoming] if upcoming < len(waiting) else math.inf
        change = cluster.plan(now, submit)
        following = min([change, submit, *(job.end_event for job in cluster.jobs)])
        if math.isinf(following):
            break
        following = max(following, now + slot_s)
        cluster.result.gpu_s += (following - now) * sum(job.plan.gpus for job in cluster.jobs)
        last, now = now, following
    return cluster.result


def _plan_of(job: TraceJob, gpus: int, speedups: Mapping[str, Speedup]) -> EfJob:
    limit = min(gpus, job.max_gpus)
    curve = [(n, s) for n, s in speedups[job.llm] if n <= limit]
    return EfJob(job.id, job.iters, job.deadline_s, tuple(n for n, _ in curve), tuple(s / job.step_s for _, s in curve))


def _rate(job: EfJob) -> float:
    return job.rates[job.levels.index(job.gpus)]
