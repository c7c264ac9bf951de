"""What a plan may not count on: pools that pause after failed starts, and those that are tried once more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from prompttuner.controller.observe.trials import of_settings
from prompttuner.controller.resources import Resources
from prompttuner.db.queries import trials
from prompttuner.db.tables.models import Allocation, Job, PoolTrial
from prompttuner.policy.contract.plan import Action, Plan, Request, SwitchModel
from prompttuner.policy.contract.snapshot import SiteLimits
from prompttuner.spec.when import format_duration
from prompttuner.states import AllocationState, JobState

__all__ = ["OnTrial", "read_trials"]

_COMING = frozenset({AllocationState.INTENT, AllocationState.PENDING, AllocationState.STARTING})


@dataclass(frozen=True, slots=True)
class OnTrial:
    """The trials as they are now, and which jobs wait for them."""

    barred: Mapping[str, str] = field(default_factory=dict)
    """By job: why it is given nothing for now."""
    paused: frozenset[str] = frozenset()
    """Pools of which no allocation is asked for."""
    tried: frozenset[str] = frozenset()
    """Pools of which one may be asked for."""

    def within(self, plan: Plan, pools: Sequence[str]) -> Plan:
        """The plan without what would start again what cannot start; the jobs that wait are told why."""
        if not self.paused and not self.tried:
            return plan
        actions: list[Action] = []
        left = set(self.tried)
        for action in plan.actions:
            if isinstance(action, Request | SwitchModel):
                pool = pools[action.pool]
                if pool in self.paused or (isinstance(action, SwitchModel) and pool in self.tried):
                    continue
                if pool in self.tried:
                    if pool not in left:
                        continue
                    left.discard(pool)
            actions.append(action)
        return replace(plan, actions=actions, notes={**plan.notes, **self.barred})


def read_trials(
    res: Resources, jobs: Sequence[Job], allocations: Sequence[Allocation], limits: SiteLimits, each: int
) -> OnTrial:
    """What failed starts mean for this tick's plan; one statement where nothing failed.

    A pool that is on trial gets one allocation at a time, and never the last slot that a job with a deadline, of a
    pool that works, could use.
    """
    known = res.state.query(trials.load)
    if not known:
        return OnTrial()
    now, present = res.now(), of_settings(res.settings)
    everyone = known.pop("", None)
    keys = {job.pool for job in jobs}
    about = {key: one for key in keys if (one := known.get(key) or everyone) is not None and one.settings == present}
    coming = {a.pool for a in allocations if a.state in _COMING and not a.drain}
    paused = {key for key, one in about.items() if now < one.paused_until or key in coming}
    tried = about.keys() - paused
    if everyone is not None and everyone.settings == present and tried:
        # One probe for all pools together: it is the same thing that fails.
        first = _first(jobs, tried)
        if coming:
            first = ""
        paused |= {key for key in tried if key != first}
        tried = {first} if first else set()
    waiting = [job for job in jobs if job.state == JobState.QUEUED]
    urgent = any(job.pool not in about and job.deadline_at is not None and not job.best_effort for job in waiting)
    free = (limits.gpus - sum(a.gpus for a in allocations)) / max(each, 1)
    if urgent and free < 2:
        paused |= tried
        tried = set()
    warm = {a.pool for a in allocations if a.state == AllocationState.WARM and not a.drain}
    barred: dict[str, str] = {}
    chosen: set[str] = set()
    for job in sorted(waiting, key=_urgency):
        if job.pool in tried and job.pool not in chosen:
            chosen.add(job.pool)
        elif job.pool in about and job.pool not in warm:
            barred[job.id] = _why(about[job.pool], now)
    return OnTrial(barred, frozenset(paused), frozenset(tried))


def _first(jobs: Sequence[Job], pools: set[str]) -> str:
    waiting = sorted((job for job in jobs if job.pool in pools and job.state == JobState.QUEUED), key=_urgency)
    return waiting[0].pool if waiting else ""


def _urgency(job: Job) -> tuple[bool, float, float]:
    """The earliest deadline first; best effort last."""
    return (job.deadline_at is None or job.best_effort, job.deadline_at or 0.0, job.submitted_at)


def _why(trial: PoolTrial, now: float) -> str:
    left = trial.paused_until - now
    again = f"tried again in {format_duration(left)}" if left > 0 else "being tried again"
    starts = "start" if trial.failures == 1 else "starts in a row"
    return f"{trial.failures} failed {starts}, {again} (`prompttuner pool resume` does so at once): {trial.reason}"
