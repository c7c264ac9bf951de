"""From rows to the columns that a policy plans on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from prompttuner.controller.plan.experience import Arrived
from prompttuner.controller.plan.iterations import Remaining
from prompttuner.controller.plan.pools import Pool
from prompttuner.policy.contract.snapshot import (
    AgentPhase,
    Agents,
    Arrivals,
    JobPhase,
    Jobs,
    PoolProfile,
    SiteLimits,
    Snapshot,
)
from prompttuner.states import AllocationState, JobState

if TYPE_CHECKING:
    from prompttuner.db.tables.models import Allocation, Job

__all__ = ["BankOutlook", "build_snapshot"]

INF = float("inf")
_PHASES = {
    AllocationState.INTENT: AgentPhase.REQUESTED,
    AllocationState.PENDING: AgentPhase.REQUESTED,
    AllocationState.STARTING: AgentPhase.STARTING,
    AllocationState.WARM: AgentPhase.WARM,
    AllocationState.BUSY: AgentPhase.BUSY,
    AllocationState.SWITCHING: AgentPhase.SWITCHING,
    AllocationState.DRAINING: AgentPhase.DRAINING,
}


@dataclass(frozen=True, slots=True)
class BankOutlook:
    """What a lookup is expected to bring for jobs of a pool: factors on the iterations (median, P90)."""

    factor_mid: float = 1.0
    factor_hi: float = 1.0


@dataclass(slots=True)
class SnapshotInputs:
    """All that :func:`build_snapshot` needs besides the rows."""

    now: float
    tick_s: float
    limits: SiteLimits
    pools: Sequence[Pool]
    profiles: Mapping[str, PoolProfile]
    remaining: Mapping[str, Remaining]
    """By job id."""
    bank: Mapping[str, BankOutlook] = field(default_factory=dict)
    """By pool key."""
    arrivals: Mapping[str, Sequence[Arrived]] = field(default_factory=dict)
    """By pool key: submissions, ascending in time."""
    step_s: Mapping[str, float] = field(default_factory=dict)
    """By job id: seconds of an iteration on one member, where it is known beforehand."""
    next_plan_s: float = 0.0
    """See ``Snapshot.next_plan_s``."""
    kept: frozenset[str] = frozenset()
    """Jobs that keep the members they have for the moment, whatever their limits."""
    barred: frozenset[str] = frozenset()
    """Waiting jobs that cannot be given what they need at present: planned for as if they were held."""


def build_snapshot(jobs: Sequence[Job], allocations: Sequence[Allocation], given: SnapshotInputs) -> Snapshot:
    """Columns of the active jobs and of the allocations that have not ended."""
    index = {pool.key: i for i, pool in enumerate(given.pools)}
    row_of = {job.id: i for i, job in enumerate(jobs)}
    profiles = [given.profiles[pool.key] for pool in given.pools]
    return Snapshot(
        now=given.now,
        jobs=_jobs(jobs, index, profiles, given, _joined(allocations)),
        agents=_agents(allocations, index, row_of, profiles, given.now),
        pools=profiles,
        limits=given.limits,
        arrivals=_arrivals(given),
        tick_s=given.tick_s,
        next_plan_s=given.next_plan_s,
    )


def _arrivals(given: SnapshotInputs) -> Arrivals:
    """Rows become columns: times, work and slack."""
    rows = [np.array(given.arrivals.get(pool.key, ()), dtype=np.float64).reshape(-1, 3) for pool in given.pools]
    return Arrivals([r[:, 0] for r in rows], [r[:, 2] for r in rows], [r[:, 1] for r in rows])


def _jobs(
    jobs: Sequence[Job],
    index: Mapping[str, int],
    profiles: Sequence[PoolProfile],
    given: SnapshotInputs,
    joined: Mapping[str, float],
) -> Jobs:
    no_bank = BankOutlook()
    outlooks = [no_bank if job.lookup_done or job.step else given.bank.get(job.pool, no_bank) for job in jobs]
    limits = [_limits(job, given.kept) for job in jobs]
    return Jobs(
        id=[job.id for job in jobs],
        pool=_ints(index[job.pool] for job in jobs),
        phase=_ints(JobPhase.HELD if job.id in given.barred else _job_phase(job) for job in jobs),
        submit=_floats(job.submitted_at for job in jobs),
        deadline=_floats(INF if job.deadline_at is None else job.deadline_at for job in jobs),
        priority=_ints(job.priority for job in jobs),
        min_gpus=_ints(low for low, _ in limits),
        max_gpus=_ints(high for _, high in limits),
        step_s=_floats(given.step_s.get(job.id) or _step_s(job, profiles[index[job.pool]]) for job in jobs),
        iters_mid=_floats(given.remaining[job.id].mid for job in jobs),
        iters_hi=_floats(given.remaining[job.id].hi for job in jobs),
        bank_factor_mid=_floats(outlook.factor_mid for outlook in outlooks),
        bank_factor_hi=_floats(outlook.factor_hi for outlook in outlooks),
        phase_since=_floats(_phase_since(job, joined) for job in jobs),
        best_effort=np.array([bool(job.best_effort) for job in jobs], dtype=np.bool_),
        stop_on_miss=np.array([job.on_miss == "stop" for job in jobs], dtype=np.bool_),
    )


def _agents(
    allocations: Sequence[Allocation],
    index: Mapping[str, int],
    row_of: Mapping[str, int],
    profiles: Sequence[PoolProfile],
    now: float,
) -> Agents:
    return Agents(
        id=[a.uuid for a in allocations],
        pool=_ints(index.get(a.pool, -1) for a in allocations),
        phase=_ints(_agent_phase(a) for a in allocations),
        job=_ints(row_of.get(a.job_id or a.reserved_for or "", -1) for a in allocations),
        gpus=_ints(a.gpus for a in allocations),
        since=_floats(a.state_since for a in allocations),
        ready_at=_floats(_ready_at(a, profiles[index[a.pool]] if a.pool in index else None, now) for a in allocations),
        ends_at=_floats(INF if a.ends_at is None else a.ends_at for a in allocations),
    )


def _limits(job: Job, kept: frozenset[str]) -> tuple[int, int]:
    """Fewest and most members that the policy may give it now."""
    if job.id in kept and job.members:
        return len(job.members), len(job.members)
    return job.scale_to or job.min_gpus, job.scale_to or job.max_gpus


def _job_phase(job: Job) -> JobPhase:
    if job.state == JobState.HELD:
        return JobPhase.HELD
    if job.state == JobState.QUEUED:
        return JobPhase.WAITING
    if job.first_step_at is not None:
        return JobPhase.RUNNING
    return JobPhase.LOOKUP if not job.lookup_done and job.lookup_budget_s else JobPhase.STARTING


def _joined(allocations: Sequence[Allocation]) -> dict[str, float]:
    """By job id: when its latest member joined."""
    joined: dict[str, float] = {}
    for a in allocations:
        if a.job_id is not None and a.state == AllocationState.BUSY:
            joined[a.job_id] = max(a.state_since, joined.get(a.job_id, a.state_since))
    return joined


def _phase_since(job: Job, joined: Mapping[str, float]) -> float:
    """Since when it is in its phase; a running job begins anew with each member that joins it.

    A job that never had a member waits since it was submitted, however late its request was taken: it was not paused.
    """
    if job.state == JobState.QUEUED and job.generation == 0:
        return job.submitted_at
    if job.state == JobState.RUNNING and job.first_step_at is not None:
        return max(job.state_since, joined.get(job.id, job.state_since))
    return job.state_since


def _agent_phase(allocation: Allocation) -> AgentPhase:
    """One that was told to go takes no job, even if Slurm has not started it yet or its agent is just starting."""
    if allocation.drain and allocation.job_id is None:
        return AgentPhase.DRAINING
    return _PHASES[AllocationState(allocation.state)]


def _step_s(job: Job, profile: PoolProfile) -> float:
    """Seconds of an iteration on one member: measured on this very job where it ran, else the pool's figure."""
    if job.iters_per_s and job.members:
        return speedup_at(profile, len(job.members)) / job.iters_per_s
    return profile.step_s


def speedup_at(profile: PoolProfile, members: int) -> float:
    """Speed-up at a world size, linear between the profile's points."""
    xs, ys = zip(*profile.speedup, strict=True)
    return float(np.interp(members, xs, ys))


def _ready_at(allocation: Allocation, profile: PoolProfile | None, now: float) -> float:
    """Predicted time at which an allocation is warm; never in the past for one that is not."""
    if profile is None or allocation.state in {AllocationState.WARM, AllocationState.BUSY}:
        return allocation.state_since
    if allocation.state in {AllocationState.INTENT, AllocationState.PENDING}:
        left = profile.queue_s + profile.start_s
    elif allocation.state == AllocationState.SWITCHING:
        left = profile.switch_s
    else:
        left = profile.start_s
    return max(now, allocation.state_since + left)


def _ints(values: Iterable[int]) -> np.ndarray[Any, np.dtype[np.int64]]:
    return np.fromiter(values, dtype=np.int64)


def _floats(values: Iterable[float]) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.fromiter(values, dtype=np.float64)
