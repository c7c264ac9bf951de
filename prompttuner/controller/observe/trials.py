"""Starts that fail: counted by whose fault they were, so that what cannot start is not started again and again.

A pool (or, with the site's own fault, every pool) is *on trial* from its first failed start until an allocation of it
is warm: it pauses, one minute first, then twice as long each time up to an hour, and one allocation at a time is tried.
The rows keep that, so ticks of cron and a new controller know.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from prompttuner.config import Settings
from prompttuner.controller.act.transaction import Tx
from prompttuner.controller.observe.bookkeeping import NODE_PAUSE_S
from prompttuner.controller.observe.reports import AgentFacts
from prompttuner.controller.resources import Resources
from prompttuner.db.queries import live, trials
from prompttuner.db.tables.models import Allocation, PoolTrial
from prompttuner.slurm.ends import Fault, Verdict, judge
from prompttuner.states import ALLOCATION_ENDED, AllocationState, JobState

__all__ = ["note_starts", "of_settings", "pause_s"]

PAUSE_S, LONGEST_PAUSE_S = 60.0, 3600.0
JOB_FAULTS = 2
"""Failed starts by its own fault after which a job fails, on two nodes where the site has two."""
LAST_FAULT = 4
"""So many do even on one node: Slurm may have no other to give."""
LOADS = frozenset({"model", "model unread"})
"""Reasons of farewells that concern the LLM that was to be loaded, even if another one was warm before."""
DETAIL_LIMIT = 2000

_A = AllocationState
_UNWANTED = frozenset({_A.STARTING, _A.PENDING, _A.INTENT})


def pause_s(failures: int) -> float:
    """How long to wait after so many failed starts in a row."""
    return float(min(LONGEST_PAUSE_S, PAUSE_S * 2 ** min(max(failures, 1) - 1, 30)))


def of_settings(settings: Settings) -> str:
    """Hash of what an allocation is asked for with: once it differs, what failed before may work."""
    part = settings.slurm if settings.backend == "slurm" else settings.local
    return hashlib.sha256(part.model_dump_json().encode()).hexdigest()[:16]


def note_starts(tx: Tx, res: Resources, allocations: Sequence[Allocation], told: dict[str, AgentFacts]) -> None:
    """Look at the allocations as a tick has just updated them: which became warm, which ended before.

    Args:
        allocations: those that had not ended before this transaction.
        told: what their agents said, by allocation.
    """
    warm = [a for a in allocations if a.warm_at == tx.now]
    if warm:
        trials.forget(tx.session, {"", *(a.pool for a in warm)})
    for allocation in allocations:
        if allocation.state != _A.ENDED or allocation.drain:
            continue
        facts = told.get(allocation.uuid)
        farewell = None if facts is None else facts.farewell
        switched = farewell is not None and farewell.reason in LOADS
        if allocation.warm_at is not None and not switched:
            continue
        verdict = judge(res.spool.agent(allocation.uuid), farewell, allocation.native_state)
        if verdict is not None:
            _count(tx, res, allocation, verdict)


def _count(tx: Tx, res: Resources, allocation: Allocation, verdict: Verdict) -> None:
    allocation.end_cause, allocation.end_detail = verdict.fault.value, verdict.reason[:DETAIL_LIMIT]
    if verdict.fault is Fault.HOST:
        _keep_away(tx, allocation, verdict)
        return
    key = "" if verdict.fault is Fault.SITE else allocation.pool
    node = allocation.node or allocation.host or ""
    settings = of_settings(res.settings)
    before = trials.load(tx.session).get(key)
    if before is not None and before.settings != settings:
        before = None
    failures = 1 if before is None else before.failures + 1
    nodes = sorted({*(before.nodes if before is not None else ()), *([node] if node else [])})
    pause = 0.0 if verdict.fault is Fault.JOB else pause_s(failures)
    trial = PoolTrial(
        pool=key,
        failures=failures,
        paused_until=tx.now + pause,
        nodes=nodes,
        cause=verdict.fault.value,
        reason=verdict.reason[:DETAIL_LIMIT],
        allocation=allocation.uuid,
        settings=settings,
    )
    trials.save(tx.session, trial, tx.now)
    where = f" on {node}" if node else ""
    whose = "every pool" if not key else f"pool {key}"
    ahead = f"; {whose} pauses for {pause:.0f} s" if pause else ""
    cause = f"it ended{where} before it was warm, the {verdict.fault.value}'s fault: {verdict.reason}{ahead}"
    tx.event("allocation.failed_start", allocation=allocation, cause=cause, data={"failures": failures, "node": node})
    if verdict.fault is Fault.JOB and _is_proven(tx, failures, nodes):
        _fail_jobs(tx, allocation.pool, verdict, failures)
        trials.forget(tx.session, {allocation.pool})


def _keep_away(tx: Tx, allocation: Allocation, verdict: Verdict) -> None:
    """The node's fault is no reason to pause a pool: the next allocation goes elsewhere."""
    node = allocation.node or allocation.host
    cause = f"the node's fault: {verdict.reason}"
    if node:
        trials.exclude(tx.session, node, tx.now + NODE_PAUSE_S, verdict.reason[:DETAIL_LIMIT], tx.now)
        cause = f"{node} is kept away from for {NODE_PAUSE_S / 60:.0f} min, {cause}"
    tx.event("allocation.failed_start", allocation=allocation, cause=cause, data={"node": node})


def _is_proven(tx: Tx, failures: int, nodes: Sequence[str]) -> bool:
    if failures < JOB_FAULTS:
        return False
    return len(nodes) > 1 or trials.known_nodes(tx.session) < 2 or failures >= LAST_FAULT


def _fail_jobs(tx: Tx, pool: str, verdict: Verdict, failures: int) -> None:
    """All jobs that wait for an allocation of this pool: each would fail in the same way."""
    text = f"{failures} allocations ended before they were warm: {verdict.reason}"
    for job in live.live_rows(tx.session).jobs:
        if job.pool == pool and job.state == JobState.QUEUED:
            tx.end_job(job, JobState.FAILED, text, error=text)
    for other in live.allocations_not_ended(tx.session):
        if other.pool == pool and other.state in _UNWANTED and other.state not in ALLOCATION_ENDED:
            other.drain = True
            tx.event("release", allocation=other, cause="its pool cannot start")
