"""Carry out a plan: every change is a row first; Slurm and the spool follow."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from prompttuner.controller.act.transaction import Tx
from prompttuner.controller.plan.notes import NOTE_LIMIT, differs
from prompttuner.controller.plan.planner import Decision
from prompttuner.controller.plan.pools import Pool
from prompttuner.controller.resources import Resources
from prompttuner.db.queries.live import Rows, live_rows
from prompttuner.db.tables.models import Allocation, Job
from prompttuner.policy.contract.plan import Assign, Demote, Plan, Reject, Release, Request, Restore, Stop, SwitchModel
from prompttuner.states import JOB_ENDED, AllocationState, JobState

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

__all__ = ["Acted", "apply_plan", "carry_out"]

_A = AllocationState


@dataclass(slots=True)
class Acted:
    """What is left to do outside the database once the plan's rows are committed."""

    intents: list[str]
    """Allocations to submit."""
    cancels: list[str]
    """Allocations to cancel."""
    explained: list[str] = field(default_factory=list)
    """Jobs whose note was renewed."""


def carry_out(res: Resources, decision: Decision, rows: Rows) -> tuple[Acted, Rows]:
    """Write a decision to the rows in one transaction; returns what is left to do, and the rows as they are now."""
    outlook, plan = decision.outlook, decision.plan
    if outlook is None or not decision.to_write:
        return Acted([], []), rows

    def work(session: Session) -> tuple[Acted, Rows]:
        tx = Tx(session, res.now())
        present = live_rows(session)
        by_id, by_uuid = {job.id: job for job in present.jobs}, {a.uuid: a for a in present.allocations}
        tx.recall(action.job for action in plan.actions if isinstance(action, Assign))
        acted = apply_plan(tx, plan, by_id, by_uuid, outlook.pools, decision.gpus_per_agent)
        for name in acted.explained:
            by_id[name].iters_mid, by_id[name].iters_hi = outlook.remaining[name].mid, outlook.remaining[name].hi
        session.flush()
        return acted, live_rows(session)

    return res.state.write(work)


def apply_plan(
    tx: Tx,
    plan: Plan,
    jobs: Mapping[str, Job],
    allocations: Mapping[str, Allocation],
    pools: Sequence[Pool],
    gpus_per_agent: int,
) -> Acted:
    """Turn actions into rows. An action that no longer fits the rows is dropped; the next plan knows."""
    acted = Acted([], [])
    explained: dict[str, str] = {name: str(note) for name, note in plan.notes.items() if name in jobs}
    for action in plan.actions:
        match action:
            case Request(pool=index, reason=reason, job=name):
                acted.intents.append(str(uuid.uuid4()))
                tx.new_allocation(acted.intents[-1], pools[index], gpus_per_agent, name, str(reason))
            case Release(agent=agent, reason=reason):
                if _release(tx, allocations.get(agent), str(reason)):
                    acted.cancels.append(agent)
            case Assign(job=name, agents=agents, reason=reason, lookup_s=lookup_s):
                if name in jobs and _assign(tx, jobs[name], agents, allocations, str(reason), lookup_s):
                    explained[name] = str(reason)
            case SwitchModel(agent=agent, pool=index, reason=reason, job=name):
                _switch(tx, allocations.get(agent), pools[index], pools, name, str(reason))
            case Demote(job=name, reason=reason):
                _mark(tx, jobs.get(name), True, str(reason))
                explained[name] = str(reason)
            case Restore(job=name, reason=reason):
                _mark(tx, jobs.get(name), False, str(reason))
            case Reject(job=name, reason=reason):
                _end(tx, jobs.get(name), JobState.REJECTED, str(reason))
            case Stop(job=name, reason=reason):
                _end(tx, jobs.get(name), JobState.STOPPED, str(reason))
    for name, note in explained.items():
        job = jobs[name]
        if differs(job.note, note) and job.state not in JOB_ENDED:
            job.note = note[:NOTE_LIMIT]
            acted.explained.append(name)
    return acted


def _release(tx: Tx, allocation: Allocation | None, reason: str) -> bool:
    """Mark for the end; True if Slurm must be told (it has not started, so no agent can hear of it)."""
    if allocation is None or allocation.drain or allocation.state == _A.BUSY:
        return False
    allocation.drain = True
    tx.event("release", allocation=allocation, cause=reason)
    if allocation.state in {_A.WARM, _A.SWITCHING}:
        tx.allocation_state(allocation, _A.DRAINING, reason)
    return allocation.state in {_A.INTENT, _A.PENDING, _A.STARTING}


def _assign(
    tx: Tx, job: Job, agents: Sequence[str], allocations: Mapping[str, Allocation], reason: str, lookup_s: float
) -> bool:
    if job.state not in {JobState.QUEUED, JobState.RUNNING} or list(agents) == list(job.members):
        return False
    for agent in agents:
        allocation = allocations.get(agent)
        free = allocation is not None and allocation.state == _A.WARM and not allocation.drain
        ours = allocation is not None and allocation.state == _A.BUSY and allocation.job_id == job.id
        if not (free or ours):
            return False
    if lookup_s > 0 and not job.lookup_done:
        job.lookup_budget_s = lookup_s
    elif job.first_step_at is None and not job.lookup_done and not job.lookup_budget_s:
        job.lookup_budget_s = 0.0
    tx.new_members(job, list(agents), reason)
    return True


def _switch(
    tx: Tx, allocation: Allocation | None, pool: Pool, pools: Sequence[Pool], job: str | None, reason: str
) -> None:
    if allocation is None or allocation.state != _A.WARM or allocation.drain:
        return
    present = next((p for p in pools if p.key == allocation.pool), None)
    if present is None or present.place != pool.place:
        return  # another GPU type or set-up: an agent cannot turn into that
    allocation.pool, allocation.model, allocation.reserved_for = pool.key, pool.model, job
    tx.allocation_state(allocation, _A.SWITCHING, reason)


def _mark(tx: Tx, job: Job | None, best_effort: bool, reason: str) -> None:
    if job is not None and job.best_effort != best_effort:
        job.best_effort = best_effort
        tx.event("demote" if best_effort else "restore", job=job, cause=reason)


def _end(tx: Tx, job: Job | None, state: JobState, reason: str) -> None:
    if job is not None and job.state not in JOB_ENDED:
        tx.end_job(job, state, reason)
