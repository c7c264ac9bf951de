"""Which jobs are looked up in the Prompt Banks, and how long that may take: what is known decides, not what is guessed.

A policy weighs a lookup by seconds. Of an LLM whose pace nobody has measured it has stated figures only, and these may
be off by a factor of ten: there a lookup is made wherever the banks have entries of the LLM and the deadline leaves
room. The lookup bounds itself by the iterations that it can save (``bank/lookup/cost.py``); the seconds granted are
only what the deadline allows.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from prompttuner.controller.plan.expectations import Outlook
from prompttuner.db.tables.models import Job
from prompttuner.policy.contract.plan import Action, Assign, Plan

__all__ = ["granted_s", "with_lookups"]

ROOM_SHARE = 0.25
"""Of the time that is left to the deadline."""
MOST_S = 3600.0


def with_lookups(plan: Plan, jobs: Iterable[Job], outlook: Outlook, now: float) -> Plan:
    """The plan with the lookups that its first leases shall make."""
    by_id = {job.id: job for job in jobs}

    def looked(action: Action) -> Action:
        if not isinstance(action, Assign) or not action.agents or action.job not in by_id:
            return action
        return replace(action, lookup_s=granted_s(by_id[action.job], action.lookup_s, outlook, now))

    return replace(plan, actions=[looked(action) for action in plan.actions])


def granted_s(job: Job, planned_s: float, outlook: Outlook, now: float) -> float:
    """Seconds that a lookup of this job may take; 0: none is made.

    Args:
        job: about to get members.
        planned_s: what the policy grants; above 0 where it expects a lookup to pay.
        outlook: pools and banks as they are known.
        now: Unix seconds.
    """
    if job.lookup_done or job.step or job.first_step_at is not None:
        return planned_s
    bounded = job.deadline_at is not None and not job.best_effort
    room = ROOM_SHARE * (job.deadline_at - now) if bounded and job.deadline_at is not None else MOST_S
    room = min(max(room, 0.0), MOST_S)
    if job.initial_prompt == "bank":
        return room if room > 0 else MOST_S  # the user insists, and the deadline is past
    if planned_s > 0:
        return max(planned_s, room)
    guessed = job.pool not in outlook.measured
    profile = outlook.profiles.get(job.pool)
    if guessed and job.pool in outlook.bank and profile is not None and room > profile.lookup_s:
        return room
    return planned_s
