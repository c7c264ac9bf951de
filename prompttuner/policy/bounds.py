"""Keep running jobs within their bounds when the user changes them by hand: a wrapper around any policy."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from prompttuner.policy.plan import Action, Assign, Plan, Policy, Reason, Release, Request, SwitchModel, Why
from prompttuner.policy.snapshot import AgentPhase, JobPhase, Snapshot

__all__ = ["KeepBounds"]

_COMING = (AgentPhase.REQUESTED, AgentPhase.STARTING, AgentPhase.SWITCHING)
_WORKING = (JobPhase.STARTING, JobPhase.LOOKUP, JobPhase.RUNNING)


@dataclass(frozen=True, slots=True)
class KeepBounds:
    """The inner policy's plan, but that running jobs with fewer members than ``min_gpus`` or more than ``max_gpus`` are
    brought within: `scale` sets both. Policies choose within the bounds when a job starts; this is for changes later.
    """

    inner: Policy

    @property
    def name(self) -> str:
        return self.inner.name

    def plan(self, snapshot: Snapshot) -> Plan:
        """The inner plan, less its actions that contradict a bound, plus those that keep it."""
        plan = self.inner.plan(snapshot)
        members = _members(snapshot)
        outside = [row for row, held in members.items() if not _within(snapshot, row, len(held))]
        if not outside:
            return plan
        actions = _Rest(snapshot, plan, outside)
        notes: dict[str, Reason] = {}
        for row in outside:
            note = actions.mend(row, members[row])
            if note is not None:
                notes[snapshot.jobs.id[row]] = note
        return Plan(actions.kept, min(plan.wake_at, snapshot.now + snapshot.tick_s), {**plan.notes, **notes})


def _members(snapshot: Snapshot) -> dict[int, list[int]]:
    """Rows of the agents of each working job, by the job's row."""
    agents = snapshot.agents
    found: dict[int, list[int]] = {}
    for row in np.flatnonzero((agents.phase == AgentPhase.BUSY) & (agents.job >= 0)).tolist():
        found.setdefault(int(agents.job[row]), []).append(row)
    return {job: rows for job, rows in sorted(found.items()) if snapshot.jobs.phase[job] in _WORKING}


def _within(snapshot: Snapshot, row: int, count: int) -> bool:
    return bool(snapshot.jobs.min_gpus[row] <= count <= max(snapshot.jobs.max_gpus[row], snapshot.jobs.min_gpus[row]))


class _Rest:
    """The inner plan's actions that stay, and the agents that they leave free."""

    def __init__(self, snapshot: Snapshot, plan: Plan, outside: list[int]) -> None:
        self.snapshot = snapshot
        jobs = {snapshot.jobs.id[row] for row in outside}
        pools = {int(snapshot.jobs.pool[row]) for row in outside}
        row_of = {name: row for row, name in enumerate(snapshot.agents.id)}
        self.kept = [action for action in plan.actions if not self._contradicts(action, jobs, pools, row_of)]
        used = set(_used(self.kept))
        agents = snapshot.agents
        self.free = [
            row for row in np.flatnonzero(agents.phase == AgentPhase.WARM).tolist() if agents.id[row] not in used
        ]
        held = float(agents.gpus.sum()) + sum(isinstance(action, Request) for action in self.kept)
        limits = snapshot.limits
        requests = sum(isinstance(action, Request) for action in self.kept)
        room = min(limits.gpus - held, limits.allocations - agents.n - requests, limits.requests_now - requests)
        self.room = int(max(0.0, min(room, 1e6))) if limits.gpu_hours_left > 0 else 0

    def _contradicts(self, action: Action, jobs: set[str], pools: set[int], row_of: dict[str, int]) -> bool:
        """Another membership for such a job, or the end of an agent that it could use."""
        if isinstance(action, Assign):
            return action.job in jobs
        if isinstance(action, Release | SwitchModel):
            return int(self.snapshot.agents.pool[row_of[action.agent]]) in pools
        return False

    def mend(self, row: int, held: list[int]) -> Reason | None:
        """Bring one job within its bounds as far as agents allow; returns why it has to wait, if it has."""
        snapshot, ids = self.snapshot, self.snapshot.agents.id
        name, low = snapshot.jobs.id[row], int(snapshot.jobs.min_gpus[row])
        high = max(int(snapshot.jobs.max_gpus[row]), low)
        pool = int(snapshot.jobs.pool[row])
        if len(held) > high:
            why = Why("{} members are more than the {} it may have", len(held), high)
            self.kept.append(Assign(name, tuple(ids[a] for a in held[:high]), why))
            return None
        mine = [a for a in self.free if snapshot.agents.pool[a] == pool][: low - len(held)]
        self.free = [a for a in self.free if a not in mine]
        if mine:
            why = Why("{} members are fewer than the {} it shall have", len(held), low)
            self.kept.append(Assign(name, tuple(ids[a] for a in [*held, *mine]), why))
        short = low - len(held) - len(mine)
        agents = snapshot.agents
        coming = int(np.sum(np.isin(agents.phase, _COMING) & (agents.pool == pool) & (agents.job == row)))
        asked = min(max(short - coming, 0), self.room)
        self.room -= asked
        for _ in range(asked):
            self.kept.append(Request(pool, Why("job {} shall have {} GPUs, {} are missing", name, low, short), name))
        if short == 0:
            return None
        return Why(
            "shall have {} GPUs, has {}: {} on their way, the rest when GPUs come free",
            low,
            low - short,
            coming + asked,
        )


def _used(actions: list[Action]) -> Iterator[str]:
    for action in actions:
        if isinstance(action, Assign):
            yield from action.agents
        elif isinstance(action, Release | SwitchModel):
            yield action.agent
