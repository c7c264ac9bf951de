"""What a tick finds out first: words of agents and jobs in the spool, and what the resource manager says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from prompttuner.controller.observe.bookkeeping import signalled
from prompttuner.controller.observe.reports import AgentFacts, Facts, JobFacts, read_agent, read_job
from prompttuner.errors import BackendError, SpoolError
from prompttuner.slurm.backend import Seen
from prompttuner.states import JobState

if TYPE_CHECKING:
    from prompttuner.controller.context import Context
    from prompttuner.db.tables.models import Allocation, Job

__all__ = ["look"]

SIGNALLED_GAP_S = 1.0
"""Least time between two questions to Slurm while it has not yet said why an agent was signalled."""


def look(ctx: Context, jobs: Sequence[Job], allocations: Sequence[Allocation], thorough: bool) -> Facts:
    """Read the spool and ask the resource manager; what cannot be read is told and left out, never fatal.

    ``thorough``: see :func:`prompttuner.controller.observe.reports.read_job`.
    """
    agents = _agents(ctx, allocations)
    ctx.heard = {
        uuid: (told.status.order_owner, told.status.order_seq)
        for uuid, told in agents.items()
        if told.status is not None
    }
    running = _jobs(ctx, [job for job in jobs if job.state == JobState.RUNNING], thorough)
    seen = _ask_manager(ctx, allocations, at_once=any(signalled(told) for told in agents.values()))
    return Facts(agents, running, seen)


def _agents(ctx: Context, allocations: Sequence[Allocation]) -> dict[str, AgentFacts]:
    facts = {}
    for allocation in allocations:
        try:
            facts[allocation.uuid] = told = read_agent(ctx.spool, allocation)
        except (SpoolError, OSError) as error:  # one unreadable folder must not stop the others
            ctx.warn(str(error))
            continue
        for why in told.unread:
            ctx.warn(why)
    return facts


def _jobs(ctx: Context, jobs: Sequence[Job], thorough: bool) -> dict[str, JobFacts]:
    facts = {}
    for job in jobs:
        try:
            facts[job.id] = told = read_job(ctx.spool, job, thorough)
        except (SpoolError, OSError) as error:
            ctx.warn(str(error))
            continue
        for why in told.unread:
            ctx.warn(why)
    return facts


def _ask_manager(ctx: Context, allocations: Sequence[Allocation], at_once: bool) -> dict[str, Seen]:
    """One batched question, no more often than the site allows; no answer means nothing is known, not that it ended.

    ``at_once``: an agent was ended by a signal, and whether by preemption or by its user matters for what comes next.
    """
    gap = min(SIGNALLED_GAP_S, _least_gap(ctx)) if at_once else _least_gap(ctx)
    if not allocations or not ctx.gate.may_ask(ctx.now(), gap):
        return {}
    try:
        return ctx.backend.observe([(a.uuid, a.native_id) for a in allocations])
    except BackendError as error:
        ctx.warn(str(error))
        return {}


def _least_gap(ctx: Context) -> float:
    return ctx.settings.squeue_min_s if ctx.settings.backend == "slurm" else 0.0
