"""Bring the rows up to what Slurm and the spool say: bookkeeping only, no file is written, Slurm is not asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from prompttuner.controller.act.transaction import WENT_ON, Tx
from prompttuner.controller.observe.reports import AgentFacts, JobFacts
from prompttuner.db.queries import trials
from prompttuner.db.tables.recorded import order_of, status_of
from prompttuner.protocol.agents import PROTOCOL, AgentStatus
from prompttuner.slurm.backend import NO_ANSWER, EndSource, Seen
from prompttuner.slurm.reasons import Prospect, in_words, prospect_of
from prompttuner.slurm.site.memory import OUT_OF_MEMORY
from prompttuner.slurm.words import Native
from prompttuner.states import ALLOCATION_ENDED, AllocationState, JobState
from prompttuner.worker.resume import MAX_CRASHES

if TYPE_CHECKING:
    from prompttuner.db.tables.models import Allocation, Job

__all__ = ["NODE_PAUSE_S", "apply_agents", "apply_jobs", "signalled"]

ABANDON_AFTER_S = 120.0
"""An intent that neither Slurm nor the spool knows after this long was never submitted (or its sbatch was lost)."""
DONE_GRACE_S = 60.0
"""A lease that says it is done, but whose result cannot be seen yet: a network file system needs time."""

NODE_PAUSE_S = 1800.0
"""So long no allocation is asked for on a node that was at fault."""
FOLDER_GONE = "its folder in the spool was removed while it ran, checkpoints and all: submit it again"

_A = AllocationState
_STARTED = frozenset({Native.RUNNING, Native.COMPLETING, Native.ENDED})


def apply_agents(
    tx: Tx,
    allocations: Sequence[Allocation],
    facts: Mapping[str, AgentFacts],
    seen: Mapping[str, Seen],
    suspect_s: float,
) -> None:
    """Update allocations from their agents' words and from what the resource manager says of them."""
    for allocation in allocations:
        told, view = facts.get(allocation.uuid), seen.get(allocation.uuid)
        if told is not None and allocation.state not in ALLOCATION_ENDED:
            _from_agent(tx, allocation, told, suspect_s, view)
        if view is not None and allocation.state not in ALLOCATION_ENDED:
            _from_manager(tx, allocation, view)


def signalled(told: AgentFacts) -> bool:
    """Whether the agent was ended by a signal: preemption, walltime or scancel, only Slurm knows which."""
    return told.farewell is not None and told.farewell.reason == "signal"


def _from_agent(tx: Tx, allocation: Allocation, told: AgentFacts, suspect_s: float, view: Seen | None) -> None:
    if told.instance is not None and allocation.started_at is None:
        allocation.native_id = allocation.native_id or told.instance.native_id
    if signalled(told) and (view is None or view.state in {Native.RUNNING, Native.COMPLETING, Native.ENDED}):
        return  # Slurm's word follows, perhaps in a later tick: it says why
    if told.farewell is not None:
        _farewell(tx, allocation, told, view)
        return
    status = told.status
    if status is None:
        return
    if allocation.started_at is None:
        allocation.started_at = _start_of(tx, told, view)
        allocation.admitted = True
        if allocation.submitted_at is not None:
            tx.learn(allocation, "queue", max(0.0, allocation.started_at - allocation.submitted_at))
        tx.allocation_state(allocation, _A.STARTING, "its agent has started")
    allocation.host, allocation.address = status.host, status.address
    if status.protocol != PROTOCOL:
        allocation.drain = True
    if status.left_s is not None and allocation.ends_at is None:
        allocation.ends_at = tx.now + status.left_s
    previous = status_of(allocation)
    if previous is None or previous.beat != status.beat or previous.instance != status.instance:
        allocation.status = {**status.to_json(), "seen_at": tx.now}
        if allocation.suspect_since is not None:
            allocation.suspect_since = None
            tx.event("agent_back", allocation=allocation, cause="its heartbeat is seen again")
    elif tx.now - (previous.seen_at or tx.now) > suspect_s and allocation.suspect_since is None:
        allocation.suspect_since = tx.now
        tx.event("agent_suspect", allocation=allocation, cause=f"no heartbeat for {suspect_s:.0f} s")
    order = order_of(allocation)
    if order is None or order.at < (allocation.warm_at or float("inf")):
        pass  # Slurm's queue is in the time that it took
    elif order.seen_s is None and status.order_seq == order.seq:
        allocation.order = replace(order, seen_s=round(tx.now - order.at, 2)).to_json()
    _follow(tx, allocation, status)


def _farewell(tx: Tx, allocation: Allocation, told: AgentFacts, view: Seen | None) -> None:
    """The agent has said that it ends. When, the resource manager knows better, where it has already been asked."""
    assert told.farewell is not None
    reason, detail = told.farewell.reason, told.farewell.detail
    ended_at, source = (told.farewell.at, EndSource.FAREWELL) if told.farewell.at > 0 else (None, None)
    if view is not None and view.end_source is EndSource.MANAGER:
        ended_at, source = view.ends_at, view.end_source
    if allocation.started_at is None:
        allocation.started_at = _start_of(tx, told, view)
    elif view is not None and view.end_source is EndSource.MANAGER and view.start_at is not None:
        allocation.started_at = view.start_at
    cause = f"the agent ended: {reason}" + (f" ({detail})" if detail else "")
    tx.end_allocation(allocation, reason, cause, ended_at, source)


def _start_of(tx: Tx, told: AgentFacts, view: Seen | None) -> float:
    """When an allocation started: by the resource manager, else by the agent's claim, else now."""
    if view is not None and view.start_at is not None and view.state in _STARTED and view.start_at <= tx.now:
        return view.start_at
    claimed = 0.0 if told.instance is None else told.instance.at
    return min(claimed, tx.now) if claimed > 0 else tx.now


def _follow(tx: Tx, allocation: Allocation, status: AgentStatus) -> None:
    """Change state where the agent has got somewhere by itself (loaded its LLM, is leaving)."""
    state = _A(allocation.state)
    loaded = status.model is not None and status.model == allocation.model
    if state in {_A.STARTING, _A.SWITCHING} and loaded and status.state in {"warm", "busy"}:
        if allocation.warm_at is None:
            allocation.warm_at = tx.now
            tx.learn(allocation, "start", tx.now - (allocation.started_at or tx.now))
        else:
            tx.learn(allocation, "switch", tx.now - allocation.state_since)
        tx.allocation_state(allocation, _A.BUSY if allocation.job_id else _A.WARM, "the LLM is loaded")
    elif status.state == "draining" and state == _A.WARM:
        tx.allocation_state(allocation, _A.DRAINING, "it takes no new job")


def _from_manager(tx: Tx, allocation: Allocation, view: Seen) -> None:
    if view.native_id and not allocation.native_id:
        allocation.native_id = view.native_id
        tx.event("allocation_found", allocation=allocation, cause=f"found by its name as {view.native_id}")
    if view.native_state and view.native_state != allocation.native_state:
        allocation.native_state = view.native_state
    if view.node:
        allocation.node = view.node
    if view.ends_at is not None and view.state == Native.RUNNING:
        allocation.ends_at = view.ends_at
    state = _A(allocation.state)
    _waits(tx, allocation, view)
    if view.start_at is not None and view.state in {Native.RUNNING, Native.ENDED} and view.start_at <= tx.now:
        fresh = allocation.started_at is None
        allocation.started_at = view.start_at
        if fresh and view.state == Native.RUNNING:
            tx.learn(allocation, "queue", max(0.0, view.start_at - (allocation.submitted_at or tx.now)))
    if view.state == Native.ENDED:
        why = " ".join(filter(None, (view.native_state, view.reason)))
        killed = view.reason.startswith(OUT_OF_MEMORY)  # by Slurm, not by a user
        if view.native_state.startswith("CANCELLED") and not allocation.drain and not killed:
            _respect_scancel(tx, allocation)
        reason = view.reason or view.native_state
        cause = f"Slurm says it has ended: {why}".rstrip(": ")
        tx.end_allocation(allocation, reason, cause, view.ends_at, view.end_source)
    elif view.state == Native.PENDING and state == _A.INTENT:
        tx.allocation_state(allocation, _A.PENDING, "queued")
    elif view.state == Native.RUNNING and state in {_A.INTENT, _A.PENDING}:
        if allocation.started_at is None:
            allocation.started_at = tx.now
            tx.learn(allocation, "queue", max(0.0, tx.now - (allocation.submitted_at or tx.now)))
        tx.allocation_state(allocation, _A.STARTING, "Slurm has started it")
    elif (
        view.state == Native.UNKNOWN
        and view.native_state != NO_ANSWER  # Slurm is away: nothing is known of it, so nothing is given up
        and state == _A.INTENT
        and tx.now - allocation.created_at > ABANDON_AFTER_S
    ):
        tx.abandon_allocation(allocation, "neither Slurm nor the spool knows it: it was never submitted")


def _waits(tx: Tx, allocation: Allocation, view: Seen) -> None:
    """Keep Slurm's reason for a waiting one; a reason that time alone does not mend is an event too."""
    if view.state == Native.UNKNOWN:
        return
    reason = view.reason if view.state == Native.PENDING else ""
    if reason == allocation.reason:
        return
    before, prospect = prospect_of(allocation.reason), prospect_of(reason)
    allocation.reason = reason
    if prospect is not Prospect.QUEUE and prospect is not before:
        tx.event("allocation.blocked", allocation=allocation, cause=in_words(reason))


def _respect_scancel(tx: Tx, allocation: Allocation) -> None:
    """The user (or an operator) ended an allocation by hand: a job that can go on without it does not get another."""
    job = tx.last_job_of(allocation)
    others = [] if job is None else [member for member in job.members if member != allocation.uuid]
    cause = "ended by scancel, not by prompttuner"
    if job is not None and others:
        if job.scale_to is not None:
            job.scale_to = min(job.scale_to, len(others))  # the user's latest word counts
        job.max_gpus = min(job.max_gpus, max(job.min_gpus, len(others)))
        if (job.scale_to or job.min_gpus) <= len(others):
            cause += f": not replaced, {job.id} goes on with {len(others)} (`prompttuner scale` gives it more)"
    tx.event("allocation.scancelled", job=job, allocation=allocation, cause=cause)


def apply_jobs(tx: Tx, jobs: Sequence[Job], facts: Mapping[str, JobFacts], live: Mapping[str, Allocation]) -> None:
    """Update running jobs from what their members wrote; lost members leave the membership."""
    for job in jobs:
        told = facts.get(job.id)
        if told is None or job.state != JobState.RUNNING:
            continue
        _adopt_survivors(tx, job, told)
        if told.plan is None and _folder_is_gone(job, live):
            tx.end_job(job, JobState.FAILED, FOLDER_GONE, error=FOLDER_GONE)
            continue
        if told.plan is None or told.plan.generation != job.generation:
            continue  # this generation's plan is not out yet: nothing that was read is about it
        _take_progress(tx, job, told)
        if told.done is not None:
            continue  # finish.py promotes the result
        if any(_fails(tx, job, member, told, live) for member in told.errors):
            continue
        _drop_lost_members(tx, job, live)


def _folder_is_gone(job: Job, live: Mapping[str, Allocation]) -> bool:
    """Whether a plan that was written is no longer there, and none of the job's members works any more."""
    if job.plan_generation != job.generation:
        return False
    working = (live.get(member) for member in job.members)
    return not any(
        one is not None and one.state not in ALLOCATION_ENDED and not _lease_outcome(one, job) for one in working
    )


def _adopt_survivors(tx: Tx, job: Job, told: JobFacts) -> None:
    """Members went on by themselves after a loss: their plan counts, it only removes members."""
    plan = told.plan
    if plan is None or plan.generation <= job.generation or plan.by == "controller":
        return
    tx.new_members(job, list(plan.members), f"{WENT_ON} ({plan.by})", plan.generation)
    job.plan_generation = plan.generation


def _take_progress(tx: Tx, job: Job, told: JobFacts) -> None:
    progress = told.progress
    if told.lookup is not None and not job.lookup_done:
        job.lookup = told.lookup.to_json()
        job.lookup_done = True
        tx.event("lookup", job=job, cause=told.lookup.why or told.lookup.source or "looked up")
        if told.lookup.source:
            job.initial_prompt = told.lookup.source
        if told.lookup.evaluations and told.lookup.seconds:
            tx.measured.append((job.pool, job.model, "lookup", float(told.lookup.seconds)))
    if progress is None:
        return
    if progress.first_step_at and job.first_step_at is None:
        job.first_step_at = progress.first_step_at
        job.lookup_done = True
    rate = progress.iters_per_s
    if rate is not None and rate != job.iters_per_s and told.plan is not None:
        tx.speeds.append((job.pool, job.model, len(told.plan.members), float(rate)))
    columns = {name: name for name in ("step", "metric", "best", "iters_per_s")} | {"train_loss": "loss"}
    for column, name in columns.items():
        value = getattr(progress, name)
        if value is not None and value != getattr(job, column):
            setattr(job, column, value)
    if progress.initial_prompt:
        job.initial_prompt = progress.initial_prompt
    if progress.evaluations is not None:
        evaluations = [list(one) for one in progress.evaluations]
        if evaluations != job.evaluations:
            job.evaluations = evaluations


def _fails(tx: Tx, job: Job, member: str, told: JobFacts, live: Mapping[str, Allocation]) -> bool:
    """An error that would come again ends the job; a crash, or a node's fault, is tried again with a bound."""
    error = told.errors[member]
    if error.kind == "host":
        return _host_failed(tx, job, member, error.message, live.get(member))
    if error.kind == "crash":
        return _crashed(tx, job, error.message or "a worker died")
    tx.end_job(job, JobState.FAILED, f"{error.kind}: {error.message}", error=f"{error.kind}: {error.message}")
    return True


def _host_failed(tx: Tx, job: Job, member: str, message: str, allocation: Allocation | None) -> bool:
    """The node is at fault: its agent takes no new job, new ones go elsewhere, and the job goes on without it."""
    job.crash_count += 1
    if job.crash_count >= MAX_CRASHES:
        text = f"{job.crash_count} agents could not work for it, the last: {message}"
        tx.end_job(job, JobState.FAILED, text, error=text)
        return True
    node = None if allocation is None else allocation.node or allocation.host
    if allocation is not None:
        allocation.drain = True
        tx.event("drain", job=job, allocation=allocation, cause=f"its node is at fault: {message}")
    if node:
        trials.exclude(tx.session, node, tx.now + NODE_PAUSE_S, message, tx.now)
    others = [one for one in job.members if one != member]
    tx.new_members(job, others, f"{node or member[:8]} is at fault ({message}): on without it")
    return True


def _crashed(tx: Tx, job: Job, message: str) -> bool:
    job.crash_count += 1
    if job.crash_count >= MAX_CRASHES:
        text = f"its worker crashed {job.crash_count} times, last: {message}; see `prompttuner logs {job.id}`"
        tx.end_job(job, JobState.FAILED, text, error=text)
    else:
        tx.new_members(job, list(job.members), f"a worker crashed ({message}): again from the last checkpoint")
    return True


def _drop_lost_members(tx: Tx, job: Job, live: Mapping[str, Allocation]) -> None:
    staying, gone = [], []
    for member in job.members:
        allocation = live.get(member)
        if allocation is None or allocation.state in ALLOCATION_ENDED:
            gone.append(f"{member[:8]} ended")
        elif _left(tx, allocation, job):
            gone.append(f"{member[:8]} left")
        else:
            staying.append(member)
            if _lease_outcome(allocation, job) == "crashed":
                status = status_of(allocation)
                _crashed(tx, job, (status.error if status is not None else "") or "killed")
                return
    if gone:
        tx.new_members(job, staying, "members lost: " + ", ".join(gone))


def _lease_outcome(allocation: Allocation, job: Job) -> str:
    """How the agent says its lease for the job's present generation has ended; empty while it has not."""
    status = status_of(allocation)
    if status is None or status.job != job.id or status.generation != job.generation or status.state == "busy":
        return ""
    return status.lease


def _left(tx: Tx, allocation: Allocation, job: Job) -> bool:
    outcome = _lease_outcome(allocation, job)
    if outcome in {"left", "terminated"}:
        return True
    status = status_of(allocation)
    waited = 0.0 if status is None or status.seen_at is None else tx.now - status.seen_at
    return outcome in {"done", "failed"} and waited > DONE_GRACE_S
