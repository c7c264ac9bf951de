"""Plan: what is known and expected becomes the snapshot that the policy decides on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from prompttuner.controller.act.limits import Limits
from prompttuner.controller.act.transaction import WENT_ON
from prompttuner.controller.plan.blocked import find_blockage
from prompttuner.controller.plan.expectations import Expectations, Outlook
from prompttuner.controller.plan.lookups import with_lookups
from prompttuner.controller.plan.notes import new_notes
from prompttuner.controller.plan.on_trial import read_trials
from prompttuner.controller.plan.pools import Pool
from prompttuner.controller.plan.snapshot import SnapshotInputs, build_snapshot
from prompttuner.controller.resources import Resources
from prompttuner.controller.upkeep.harvest import BankView
from prompttuner.db.queries import allocations as allocation_rows
from prompttuner.db.queries import leases as lease_rows
from prompttuner.db.queries.live import Rows
from prompttuner.db.tables.models import Allocation
from prompttuner.policy.budget import within_budget
from prompttuner.policy.contract.plan import Action, Assign, Plan, Policy, Request, SwitchModel
from prompttuner.slurm.site.memory import needed_mb, weights_bytes
from prompttuner.states import AllocationState, JobState

__all__ = ["Decision", "Planner"]

NOTES_EVERY_S = 5.0
"""Why jobs wait is put into words now and then only: with thousands of jobs that is work."""
UNEXPLAINED_S = 30.0
"""A job whose member leaves by itself is not given another for so long, unless Slurm has said why before."""
SEEMS_WARM_S = 10.0
"""The same where the agent has not said that it ends."""


@dataclass(slots=True)
class Decision:
    """A plan, and what it was made from."""

    plan: Plan
    outlook: Outlook | None = None
    gpus_per_agent: int = 1
    to_write: bool = False
    """Whether rows change: there are actions, or notes that say something else than the rows."""


class Planner:
    """Asks the policy; remembers when it wants to be asked again."""

    def __init__(self, resources: Resources, policy: Policy, limits: Limits, bank: BankView) -> None:
        self._res = resources
        self._policy = policy
        self._limits = limits
        self._expectations = Expectations(resources, bank)
        self.prewarm = resources.settings.prewarm
        """Whether agents may be started for jobs that are only foreseen."""
        self.next_plan_s = 0.0
        """Period of cron's ticks where those come next; 0: a daemon ticks."""
        self._plan_at = float("-inf")
        """When the policy wants to plan next (Unix time) although there may be neither job nor allocation."""
        self._last_noted = float("-inf")
        """When jobs that wait were last explained (steady seconds)."""

    def plan(self, rows: Rows) -> Decision:
        """The policy's plan for these rows; an empty one where there is nothing to plan for."""
        res = self._res
        if not rows.jobs and not rows.allocations and res.now() < self._plan_at:
            return Decision(Plan(wake_at=self._plan_at))
        specs = self._expectations.specs_of(rows.jobs)
        jobs = [job for job in rows.jobs if job.id in specs]
        outlook = self._expectations.of(jobs, rows.allocations)
        if not outlook.pools:
            self._plan_at = float("inf")
            return Decision(Plan())
        blockage = find_blockage(self._limits.gate, rows.allocations, res.now())
        in_vain = blockage.in_vain(rows.jobs, rows.allocations)
        limits = self._limits.now(rows.allocations, prewarm=self.prewarm)
        each = self._limits.gpus_per_agent
        on_trial = read_trials(res, rows.jobs, rows.allocations, limits, each)
        given = SnapshotInputs(
            now=res.now(),
            tick_s=res.settings.tick_s,
            limits=blockage.narrowed(limits),
            pools=outlook.pools,
            profiles=outlook.profiles,
            remaining=outlook.remaining,
            bank=outlook.bank,
            arrivals=outlook.arrivals,
            step_s=outlook.step_s,
            next_plan_s=self.next_plan_s,
            kept=self._with_unexplained_loss(rows.allocations),
            barred=frozenset(in_vain) | on_trial.barred.keys(),
        )
        counted = [a for a in rows.allocations if a.uuid not in blockage.allocations]
        snapshot = build_snapshot(jobs, counted, given)
        plan = within_budget(snapshot, self._policy.plan(snapshot), each)
        keys = [pool.key for pool in outlook.pools]
        plan = on_trial.within(blockage.within(plan, keys, in_vain), keys)
        plan = self._with_refusal(plan, rows, {**in_vain, **on_trial.barred})
        plan = self._with_room(plan, outlook.pools, limits.requests_now)
        plan = with_lookups(plan, rows.jobs, outlook, res.now())
        self._plan_at = plan.wake_at
        return Decision(plan, outlook, each, bool(plan.actions) or (self._notes_due() and new_notes(plan, jobs)))

    def _with_refusal(self, plan: Plan, rows: Rows, explained: Mapping[str, str]) -> Plan:
        """While the manager takes no allocation, that is why jobs wait, whatever a policy makes of it."""
        refusal = self._limits.gate.refusal()
        if refusal is None:
            return plan
        assigned = {action.job for action in plan.actions if isinstance(action, Assign)}
        waiting = [job.id for job in rows.jobs if job.state == JobState.QUEUED]
        notes = {name: refusal for name in waiting if name not in explained and name not in assigned}
        return replace(plan, notes={**plan.notes, **notes})

    def _with_room(self, plan: Plan, pools: Sequence[Pool], requests_now: float) -> Plan:
        """No agent switches to an LLM that its memory does not hold: another allocation is asked for, if one may."""
        switches = [action for action in plan.actions if isinstance(action, SwitchModel)]
        if not switches or self._res.settings.backend != "slurm":
            return plan
        uuids = [action.agent for action in switches]
        given = self._res.state.query(lambda session: allocation_rows.memory_of(session, uuids))
        room = requests_now - sum(isinstance(action, Request) for action in plan.actions)
        actions: list[Action] = []
        for action in plan.actions:
            if isinstance(action, SwitchModel) and action.agent in given:
                weights = weights_bytes(pools[action.pool].model)
                if weights is not None and needed_mb(weights) > given[action.agent]:
                    if room >= 1:
                        actions.append(Request(action.pool, action.reason, action.job))
                        room -= 1
                    continue
            actions.append(action)
        return replace(plan, actions=actions)

    def _with_unexplained_loss(self, allocations: Sequence[Allocation]) -> frozenset[str]:
        """Jobs that a member has left by itself a moment ago.

        Only Slurm knows why, and what a user cancels there is not made good. A worker may be signalled, and leave,
        before its agent says that it ends; so an agent that seems to be warm after that counts for a moment too.
        """
        now = self._res.now()
        limits = {AllocationState.DRAINING: UNEXPLAINED_S, AllocationState.WARM: SEEMS_WARM_S}
        leaving = [
            a.uuid
            for a in allocations
            if not a.drain and 0 <= now - a.state_since < limits.get(AllocationState(a.state), 0.0)
        ]
        if not leaving:
            return frozenset()
        return frozenset(self._res.state.query(lambda session: lease_rows.jobs_of_latest(session, leaving, WENT_ON)))

    def _notes_due(self) -> bool:
        now = self._res.steady()
        due = now - self._last_noted >= NOTES_EVERY_S
        if due:
            self._last_noted = now
        return due
