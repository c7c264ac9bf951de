"""Allocations that Slurm will not start as things are: plans do not count on them, and ask for no more like them.

A limit that Slurm has named is kept for an hour: else the first GPU of a two-GPU job would be warmed again and again
for a second one that cannot come.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from prompttuner.policy.contract.plan import Plan, Release, Request
from prompttuner.policy.contract.snapshot import SiteLimits
from prompttuner.slurm.reasons import Prospect, in_words, prospect_of
from prompttuner.states import AllocationState, JobState
from prompttuner.words import Counted

if TYPE_CHECKING:
    from prompttuner.controller.act.gate import Gate
    from prompttuner.db.tables.models import Allocation, Job

__all__ = ["Blockage", "find_blockage"]

_QUEUED = frozenset({AllocationState.INTENT, AllocationState.PENDING})


@dataclass(frozen=True, slots=True)
class Blockage:
    """What Slurm holds back in this tick; empty where it holds back nothing."""

    allocations: frozenset[str] = frozenset()
    """Those that plans must not count on."""
    limit_gpus: int | None = None
    """GPUs that can be held at a time, as Slurm's limit shows; None: no limit has shown."""
    limit_words: str = ""
    closed: bool = False
    """A limit holds back an allocation now: so it would any other."""
    pools: Mapping[str, str] = field(default_factory=dict)
    """Pools for which nothing can start as it is asked for, with the reason."""
    reserved: Mapping[str, str] = field(default_factory=dict)
    """The job that a blocked allocation is meant for."""

    def __bool__(self) -> bool:
        return bool(self.allocations) or self.limit_gpus is not None

    def narrowed(self, limits: SiteLimits) -> SiteLimits:
        """The site's limits with the one that has shown."""
        return limits if self.limit_gpus is None else replace(limits, gpus=min(limits.gpus, self.limit_gpus))

    def in_vain(self, jobs: Sequence[Job], allocations: Sequence[Allocation]) -> dict[str, str]:
        """Waiting jobs that no plan can give their fewest GPUs, with the reason."""
        if not self:
            return {}
        usable: dict[str, int] = {}
        for a in allocations:
            if a.uuid not in self.allocations:
                usable[a.pool] = usable.get(a.pool, 0) + a.gpus
        found = {job.id: self._why(job, usable.get(job.pool, 0)) for job in jobs if job.state == JobState.QUEUED}
        return {name: why for name, why in found.items() if why is not None}

    def _why(self, job: Job, usable: int) -> str | None:
        need = job.scale_to or job.min_gpus
        if self.limit_gpus is not None and need > self.limit_gpus:
            return f"it needs {Counted(need, 'GPU')} at a time, and Slurm gives {self.limit_gpus}: {self.limit_words}"
        if job.pool in self.pools and need > usable:
            return f"Slurm does not start what it needs: {self.pools[job.pool]}"
        return None

    def within(self, plan: Plan, pools: Sequence[str], in_vain: Mapping[str, str]) -> Plan:
        """The plan without requests that Slurm would hold back too; what was asked for in vain is given back.

        Args:
            pools: pool keys by the plan's index.
            in_vain: reasons by waiting job.
        """
        if not self:
            return plan
        actions = [
            action
            for action in plan.actions
            if not (isinstance(action, Request) and (self.closed or pools[action.pool] in self.pools))
        ]
        gone = {action.agent for action in actions if isinstance(action, Release)}
        for uuid in sorted(self.allocations - gone):
            if self.limit_gpus is not None and self.reserved.get(uuid) in in_vain:
                actions.append(Release(uuid, "Slurm does not start it, and its job cannot do without"))
        return replace(plan, actions=actions, notes={**plan.notes, **in_vain})


def find_blockage(gate: Gate, allocations: Sequence[Allocation], now: float) -> Blockage:
    """What Slurm's reasons say of the allocations that wait; remembers a limit, and forgets one that is exceeded."""
    waiting = [a for a in allocations if a.state in _QUEUED and not a.drain]
    prospects = {a.uuid: prospect_of(a.reason) for a in waiting}
    blocked = frozenset(uuid for uuid, prospect in prospects.items() if prospect is not Prospect.QUEUE)
    held = sum(a.gpus for a in allocations if a.state not in _QUEUED)
    limited = [a for a in waiting if prospects[a.uuid] is Prospect.LIMIT]
    if limited and held:
        gate.learn_limit(now, held, in_words(limited[0].reason))
    limit = gate.known_limit(now, held)
    words = in_words(limited[0].reason) if limited else "" if limit is None else limit[1]
    pools = {a.pool: in_words(a.reason) for a in waiting if prospects[a.uuid] in {Prospect.NEVER, Prospect.HELD}}
    reserved = {a.uuid: a.reserved_for for a in waiting if a.uuid in blocked and a.reserved_for is not None}
    return Blockage(blocked, None if limit is None else limit[0], words, bool(limited), pools, reserved)
