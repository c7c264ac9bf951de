"""Keeps a plan of any policy within a budget of GPU-hours: what cannot be paid to its predicted end is not begun.

Running jobs are never cut short by it: their predicted rest is set aside first. What is left pays for new jobs, growth
and new allocations in the plan's order, each with its predicted cost at the planning quantile; what it cannot pay for
is left out of the plan, and idle allocations that then have nothing to do are given back. Allocations for no job in
particular come last, after the idle ones that are kept.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from prompttuner.policy.contract.plan import Action, Assign, Plan, Reason, Release, Request, SwitchModel, Why
from prompttuner.policy.contract.snapshot import AgentPhase, JobPhase, Snapshot
from prompttuner.policy.estimate import Estimate, estimate

__all__ = ["within_budget"]

_COMING = (AgentPhase.REQUESTED, AgentPhase.STARTING, AgentPhase.SWITCHING)


def within_budget(snapshot: Snapshot, plan: Plan, gpus_each: int = 1) -> Plan:
    """The plan without what ``snapshot.limits.gpu_hours_left`` cannot pay for.

    Args:
        gpus_each: GPUs of a new allocation; one without GPUs (a CPU slot) counts as one.
    """
    if not np.isfinite(snapshot.limits.gpu_hours_left):
        return plan
    purse = _Purse(snapshot, estimate(snapshot), gpus_each)
    purse.set_aside()
    kept: list[Action] = []
    dropped: list[tuple[str | None, float]] = []
    # what was only to be warmed for jobs that may come is paid from what is left, and the lack of it stops nothing else
    later = [action for action in plan.actions if isinstance(action, Request) and action.job is None]
    for action in (action for action in plan.actions if not (isinstance(action, Request) and action.job is None)):
        cost = purse.cost(action)
        if cost <= 0 or cost <= purse.left_s:
            purse.left_s -= max(cost, 0.0)
            purse.take(action)
            kept.append(action)
        else:
            dropped.append((getattr(action, "job", None), cost))
    notes = purse.notes(dropped)
    kept += purse.idle_to_release(kept, bool(dropped))
    for request in later:
        if (cost := purse.cost(request)) <= purse.left_s:
            purse.left_s -= cost
            kept.append(request)
    return Plan(kept, plan.wake_at, {**plan.notes, **notes} if notes else plan.notes)


@dataclass(slots=True)
class _Purse:
    """GPU-seconds that are left, and for which jobs they are set aside already."""

    snapshot: Snapshot
    est: Estimate
    gpus_each: int
    left_s: float = 0.0
    committed_s: float = 0.0
    paid: dict[int, float] = field(default_factory=dict)
    """Row of a job -> GPU-seconds set aside for its run."""
    rows: dict[str, int] = field(init=False)
    """Job -> its row."""

    def __post_init__(self) -> None:
        self.rows = {name: row for row, name in enumerate(self.snapshot.jobs.id)}

    def set_aside(self) -> None:
        """For the rest of what runs, and for what was asked for."""
        agents = self.snapshot.agents
        for row in np.flatnonzero(self.est.members > 0).tolist():
            self.paid[row] = self._run_s(row, int(self.est.members[row]))
        coming = 0.0
        for agent in np.flatnonzero(np.isin(agents.phase, _COMING)).tolist():
            coming += self._start_s(agent)
            row = int(agents.job[agent])
            if row >= 0 and row not in self.paid:
                self.paid[row] = self._run_s(row, 1)
        self.committed_s = coming + sum(self.paid.values())
        self.left_s = self.snapshot.limits.gpu_hours_left * 3600 - self.committed_s

    def cost(self, action: Action) -> float:
        """GPU-seconds that an action adds to what is set aside."""
        pools = self.snapshot.pools
        match action:
            case Assign(job=name, agents=agents):
                row = self.rows[name]
                more = len(agents) > int(self.est.members[row])
                return self._run_s(row, len(agents)) - self.paid.get(row, 0.0) if more else 0.0
            case Request(pool=pool, job=name):
                idle_s = self.snapshot.limits.idle_limit_s if name is None else 0.0
                return self.gpus_each * (pools[pool].start_s + idle_s) + self._new_run_s(name)
            case SwitchModel(pool=pool, job=name):
                return self.gpus_each * pools[pool].switch_s + self._new_run_s(name)
        return 0.0

    def take(self, action: Action) -> None:
        """Remember what an action that was kept has paid for."""
        name = getattr(action, "job", None)
        if name is None or not isinstance(action, Assign | Request | SwitchModel):
            return
        row = self.rows[name]
        if isinstance(action, Assign):
            if len(action.agents) > int(self.est.members[row]):
                self.paid[row] = max(self._run_s(row, len(action.agents)), self.paid.get(row, 0.0))
        elif row not in self.paid:
            self.paid[row] = self._run_s(row, 1)

    def notes(self, dropped: list[tuple[str | None, float]]) -> dict[str, Reason]:
        """For jobs that cannot be paid: those of ``dropped`` (job, GPU-seconds), and others that wait."""
        jobs, left = self.snapshot.jobs, max(self.snapshot.limits.gpu_hours_left, 0.0)
        costs = {name: cost for name, cost in dropped if name is not None}
        for row in np.flatnonzero(jobs.phase == JobPhase.WAITING).tolist():
            cost = self._run_s(row, 1)
            if row not in self.paid and cost > self.left_s:
                costs.setdefault(jobs.id[row], cost)
        words = (
            "gets no more GPUs: the budget (max_gpu_hours) has {:.2f} GPU-hours left, of which {:.2f} are for what "
            "runs; this needs {:.2f}; a larger budget or fewer max_iterations would change that"
        )
        return {name: Why(words, left, self.committed_s / 3600, cost / 3600) for name, cost in costs.items()}

    def idle_to_release(self, kept: list[Action], refused: bool) -> list[Action]:
        """Idle agents that have nothing to do, or whose idle limit cannot be paid."""
        agents, limits = self.snapshot.agents, self.snapshot.limits
        used = {name for a in kept if isinstance(a, Assign) for name in a.agents}
        used |= {a.agent for a in kept if isinstance(a, Release | SwitchModel)}
        found: list[Action] = []
        for row in np.flatnonzero(agents.phase == AgentPhase.WARM).tolist():
            if agents.id[row] in used:
                continue
            idle_s = max(limits.idle_limit_s - (self.snapshot.now - float(agents.since[row])), 0.0)
            cost = idle_s * max(int(agents.gpus[row]), 1)
            if refused or cost > self.left_s:
                found.append(Release(agents.id[row], "the budget cannot pay for more (max_gpu_hours)"))
            else:
                self.left_s -= cost
        return found

    def _run_s(self, row: int, members: int) -> float:
        """GPU-seconds of a job from now to its predicted end."""
        pool = int(self.snapshot.jobs.pool[row])
        members = min(members, len(self.est.speeds[pool]) - 1)
        return self.est.seconds(row, pool, members) * members * self.gpus_each

    def _new_run_s(self, job: str | None) -> float:
        """The same with one member, for a job that nothing is set aside for yet."""
        if job is None:
            return 0.0
        row = self.rows[job]
        return 0.0 if row in self.paid else self._run_s(row, 1)

    def _start_s(self, agent: int) -> float:
        waits = max(float(self.snapshot.agents.ready_at[agent]) - self.snapshot.now, 0.0)
        return waits * max(int(self.snapshot.agents.gpus[agent]), 1)
