"""One tick: requests, observe, plan, act, and the spool brought up to date. Cut off anywhere, the next one mends it."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sqlalchemy import select
from sqlalchemy.orm import defer

from prompttuner.controller.act import submission as submitting
from prompttuner.controller.act.apply import Acted, apply_plan, new_notes
from prompttuner.controller.act.projection import changed, obeys_another, order_for, write_order, write_plan
from prompttuner.controller.act.transaction import WENT_ON, Tx
from prompttuner.controller.inbox import apply_inbox
from prompttuner.controller.observe.bookkeeping import apply_agents, apply_jobs
from prompttuner.controller.observe.collect import look
from prompttuner.controller.observe.reports import Facts, JobFacts
from prompttuner.controller.observe.results import promote
from prompttuner.controller.plan.expectations import outlook_of, remember
from prompttuner.controller.plan.snapshot import SnapshotInputs, build_snapshot
from prompttuner.controller.upkeep.deadlines import tell_of_deadlines
from prompttuner.controller.upkeep.harvest import enter_result
from prompttuner.controller.upkeep.retention import clean_up, purge_asked
from prompttuner.db.queries import allocations as allocation_rows
from prompttuner.db.queries import jobs as job_rows
from prompttuner.db.queries import leases as lease_rows
from prompttuner.db.queries.bulk import chunks
from prompttuner.db.tables.models import Allocation, Job
from prompttuner.db.tables.recorded import lookup_of
from prompttuner.errors import BackendError, SpoolError
from prompttuner.policy.budget import within_budget
from prompttuner.policy.contract.plan import Assign, Plan
from prompttuner.protocol.jobs import Done
from prompttuner.states import JOB_ENDED, AllocationState, JobState
from prompttuner.words import Counted
from prompttuner.worker.membership import member_dir

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from prompttuner.controller.context import Context

__all__ = ["TickReport", "tick"]

NOTES_EVERY_S = 5.0
KILL_AFTER_S = 60.0
"""An allocation that was told to end and has not after this long is ended through the resource manager."""

CANCEL_AGAIN_S = 30.0
"""What Slurm was told to end is not named to it again sooner: it may take its time, and does not want to be asked."""

OBSERVE_S = 5.0
"""Facts that have not changed are looked at again after this long, for what time alone brings about (suspicion)."""

UNEXPLAINED_S = 30.0
"""A job whose member leaves by itself is not given another for so long, unless Slurm has said why before."""

SEEMS_WARM_S = 10.0
"""The same where the agent has not said that it ends."""

_ACTIVE_JOBS = (
    select(Job)
    .where(Job.state.in_(job_rows.ACTIVE_STATES))
    .order_by(Job.submitted_at, Job.id)
    .options(defer(Job.spec), defer(Job.history), defer(Job.error))
)
_WITH_STATUSES = (
    select(Allocation)
    .where(Allocation.state.in_(allocation_rows.LIVE_STATES))
    .order_by(Allocation.created_at, Allocation.uuid)
    .options(defer(Allocation.place))
)
_LIVE_ALLOCATIONS = _WITH_STATUSES.options(defer(Allocation.status))
_BEHIND = select(Job).where(Job.plan_generation < Job.generation).options(defer(Job.spec), defer(Job.history))
"""Jobs whose membership is newer than the plan in the spool."""
_UNHEARD = frozenset({AllocationState.INTENT, AllocationState.PENDING, AllocationState.STARTING})
"""States in which an agent cannot hear that it shall end."""


@dataclass(slots=True)
class TickReport:
    """What one tick saw and did, for logs and tests."""

    requests: int = 0
    jobs: int = 0
    """Active jobs after the tick."""
    allocations: int = 0
    submitted: int = 0
    actions: list[str] = field(default_factory=list)
    wake_at: float = float("inf")
    seconds: float = 0.0


@dataclass(slots=True)
class Rows:
    """Active jobs and live allocations as they are in the database now, detached."""

    jobs: list[Job]
    allocations: list[Allocation]

    def still_live(self) -> Rows:
        """Without what has ended since they were loaded."""
        return Rows(
            [job for job in self.jobs if job.state in job_rows.ACTIVE_STATES],
            [a for a in self.allocations if a.state in allocation_rows.LIVE_STATES],
        )


def tick(ctx: Context) -> TickReport:
    """Do one pass; idempotent.

    Raises:
        NotOwner: another controller has taken over; nothing was written since.
        DatabaseError, SpoolError: state or spool cannot be used now.
    """
    with _collector_paused():
        return _tick(ctx)


@contextmanager
def _collector_paused() -> Iterator[None]:
    """What a tick loads lives until its end, so Python would walk thousands of rows again and again in vain."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _tick(ctx: Context) -> TickReport:
    started = time.monotonic()
    ctx.store.keep(ctx.ownership)
    report = TickReport(requests=apply_inbox(ctx))
    rows = ctx.store.query(live_rows)
    rows = _observe(ctx, rows)
    acted, plan, rows = _plan_and_act(ctx, rows)
    report.actions = [f"{type(action).__name__}: {action.reason}" for action in plan.actions]
    report.wake_at = plan.wake_at
    report.submitted = submitting.submit_intents(ctx, acted.intents)
    _cancel(ctx, acted, rows)
    rows = _project(ctx, rows)
    purge_asked(ctx, report.requests > 0)
    tell_of_deadlines(ctx, rows.jobs)
    clean_up(ctx)
    ctx.indexer.follow(ctx)
    report.jobs, report.allocations = len(rows.jobs), len(rows.allocations)
    report.seconds = time.monotonic() - started
    _count(ctx, report, rows)
    return report


def _count(ctx: Context, report: TickReport, rows: Rows) -> None:
    if ctx.metrics is not None:
        late = sum(1 for job in rows.jobs if job.deadline_at is not None and ctx.now() > job.deadline_at)
        ctx.metrics.update(ctx, report, sum(a.gpus for a in rows.allocations), late)


def live_rows(session: Session, statuses: bool = False) -> Rows:
    """Active jobs by submission, and allocations that have not ended by creation: two statements, however many.

    Specs and histories are not loaded: they are large, and a spec never changes (see ``Context.specs_of``).
    ``statuses``: with what each agent last said, for those who look at all of them.
    """
    allocations = _WITH_STATUSES if statuses else _LIVE_ALLOCATIONS
    return Rows(list(session.scalars(_ACTIVE_JOBS)), list(session.scalars(allocations)))


# -- observe ------------------------------------------------------------------------------------------------------


def _observe(ctx: Context, rows: Rows) -> Rows:
    """Read spool and resource manager, then update the rows in one transaction if there is anything to look at."""
    due = ctx.facts is None or not 0 <= ctx.now() - ctx.all_looked_at < OBSERVE_S
    facts = look(ctx, rows.jobs, rows.allocations, thorough=due)
    news = facts if due or ctx.facts is None else facts.since(ctx.facts)
    if not news:
        return rows

    def work(session: Session) -> Rows:
        tx = Tx(session, ctx.now())
        present = live_rows(session, statuses=True)
        apply_agents(tx, present.allocations, news.agents, news.seen, ctx.settings.suspect_s)
        touched = {name: facts.jobs[name] for name in facts.jobs.keys() & _concerned(news, present.jobs)}
        apply_jobs(tx, present.jobs, touched, {a.uuid: a for a in present.allocations})
        remember(tx)
        return present.still_live()

    rows = ctx.store.transact(ctx.ownership, work)
    ctx.facts = facts
    if due:
        ctx.all_looked_at = ctx.now()
    ended = [job for job in rows.jobs if job.id in facts.jobs and _finish(ctx, job, facts.jobs[job.id])]
    return ctx.store.query(live_rows) if ended else rows


def _concerned(news: Facts, jobs: Sequence[Job]) -> set[str]:
    """Jobs of which there is news, of their own or of a member's."""
    return {job.id for job in jobs if job.id in news.jobs or not news.agents.keys().isdisjoint(job.members)}


# -- finish -------------------------------------------------------------------------------------------------------


def _finish(ctx: Context, job: Job, facts: JobFacts) -> bool:
    """Promote the result of a job whose accepted member says it is done; True if it has ended now."""
    if facts.done is None or facts.plan is None or facts.plan.generation != job.generation:
        return False
    member, done = facts.done
    folder = ctx.spool.job(job.id)
    try:
        promote(folder, member_dir(folder, job.generation, member))
    except SpoolError as error:
        ctx.warn(f"{job.id}: {error}")
        return False
    ctx.bank.forget()
    ctx.indexer.look_soon()
    if trouble := enter_result(ctx.settings.bank_dir, folder, job.id, facts.lookup or lookup_of(job)):
        ctx.warn(trouble)
    outcome = done.outcome
    state = JobState.DONE if outcome == "reached" else JobState.EXHAUSTED

    def work(session: Session) -> None:
        tx = Tx(session, ctx.now())
        row = session.get_one(Job, job.id)
        for name in ("step", "loss", "metric"):
            if getattr(done, name) is not None:
                setattr(row, name, getattr(done, name))
        row.outcome, row.ita = outcome, done.ita
        row.lookup_done = True
        tx.end_job(row, state, _ending(done))

    ctx.store.transact(ctx.ownership, work)
    return True


def _ending(done: Done) -> str:
    """In words, why a job has ended with its own consent."""
    if done.outcome == "reached":
        return f"target reached after {Counted(done.ita or 0, 'iteration')}"
    so_far = "" if done.metric is None else f"; its best evaluation, {done.metric:.4g}, is the result"
    if done.outcome == "exhausted":
        return f"max_iterations are used up and the target was not reached{so_far}"
    return f"{done.outcome}{so_far}"


# -- plan and act -------------------------------------------------------------------------------------------------


def _plan_and_act(ctx: Context, rows: Rows) -> tuple[Acted, Plan, Rows]:
    nothing = not rows.jobs and not rows.allocations
    if nothing and ctx.now() < ctx.plan_at:
        return Acted([], []), Plan(wake_at=ctx.plan_at), rows
    specs = ctx.specs_of(rows.jobs)
    outlook = outlook_of(ctx, rows.jobs, specs, rows.allocations)
    if not outlook.pools:
        ctx.plan_at = float("inf")
        return Acted([], []), Plan(), rows
    given = SnapshotInputs(
        now=ctx.now(),
        tick_s=ctx.settings.tick_s,
        limits=submitting.limits_now(ctx, rows.allocations),
        pools=outlook.pools,
        profiles=outlook.profiles,
        remaining=outlook.remaining,
        bank=outlook.bank,
        arrivals=outlook.arrivals,
        step_s=outlook.step_s,
        next_plan_s=ctx.next_plan_s,
        kept=_with_unexplained_loss(ctx, rows.allocations),
    )
    snapshot = build_snapshot(rows.jobs, rows.allocations, given)
    plan = within_budget(snapshot, ctx.policy.plan(snapshot), submitting.gpus_per_agent(ctx))
    ctx.plan_at = plan.wake_at
    if not plan.actions and not (_notes_due(ctx) and new_notes(plan, rows.jobs)):
        return Acted([], []), plan, rows

    def work(session: Session) -> tuple[Acted, Rows]:
        tx = Tx(session, ctx.now())
        present = live_rows(session)
        by_id, by_uuid = {job.id: job for job in present.jobs}, {a.uuid: a for a in present.allocations}
        tx.recall(action.job for action in plan.actions if isinstance(action, Assign))
        acted = apply_plan(tx, plan, by_id, by_uuid, outlook.pools, submitting.gpus_per_agent(ctx))
        for name in acted.explained:
            by_id[name].iters_mid, by_id[name].iters_hi = outlook.remaining[name].mid, outlook.remaining[name].hi
        session.flush()
        return acted, live_rows(session)

    acted, rows = ctx.store.transact(ctx.ownership, work)
    return acted, plan, rows


def _with_unexplained_loss(ctx: Context, allocations: Sequence[Allocation]) -> frozenset[str]:
    """Jobs that a member has left by itself a moment ago.

    Only Slurm knows why, and what a user cancels there is not made good. A worker may be signalled, and leave, before
    its agent says that it ends; so an agent that seems to be warm after that counts for a moment too.
    """
    now = ctx.now()
    limits = {AllocationState.DRAINING: UNEXPLAINED_S, AllocationState.WARM: SEEMS_WARM_S}
    leaving = [
        a.uuid
        for a in allocations
        if not a.drain and 0 <= now - a.state_since < limits.get(AllocationState(a.state), 0.0)
    ]
    if not leaving:
        return frozenset()
    return frozenset(ctx.store.query(lambda session: lease_rows.jobs_of_latest(session, leaving, WENT_ON)))


def _notes_due(ctx: Context) -> bool:
    """Why jobs wait is put into words now and then only: with thousands of jobs that is work."""
    now = ctx.steady()
    due = now - ctx.last_noted >= NOTES_EVERY_S
    if due:
        ctx.last_noted = now
    return due


def _cancel(ctx: Context, acted: Acted, rows: Rows) -> None:
    """Tell the resource manager to end what no agent can hear of, or what did not listen."""
    now, steady = ctx.now(), ctx.steady()
    doomed = {
        a.native_id
        for a in rows.allocations
        if a.drain
        and a.native_id is not None
        and a.job_id is None
        and (a.uuid in acted.cancels or a.state in _UNHEARD or now - a.state_since > KILL_AFTER_S)
    }
    told = {name: at for name, at in ctx.cancelled.items() if name in doomed and steady - at < CANCEL_AGAIN_S}
    ctx.cancelled = told
    if not doomed - told.keys():
        return
    ctx.store.confirm(ctx.ownership)
    try:
        ctx.backend.cancel(sorted(doomed - told.keys()))
    except BackendError as error:
        ctx.warn(str(error))
    else:
        ctx.cancelled = dict.fromkeys(doomed, steady) | told


# -- the spool ----------------------------------------------------------------------------------------------------


def _project(ctx: Context, rows: Rows) -> Rows:
    """Write plans, then orders, that differ from what was last written or is obeyed; remember what was written."""
    behind = ctx.store.query(lambda session: list(session.scalars(_BEHIND)))
    by_id = {job.id: job for job in rows.jobs}
    wanted = {a.uuid: order_for(a, by_id.get(a.job_id or ""), ctx.ownership.generation) for a in rows.allocations}
    stale = [
        a for a in rows.allocations if changed(a, wanted[a.uuid]) or obeys_another(a, ctx.heard.get(a.uuid), ctx.now())
    ]
    if not behind and not stale:
        return rows
    ctx.store.confirm(ctx.ownership)
    addresses = {a.uuid: a.address for a in rows.allocations if a.address}
    plans = {job.id: write_plan(ctx.spool, job, addresses) for job in behind}
    orders = {a.uuid: write_order(ctx.spool, a, wanted[a.uuid], ctx.now()) for a in stale}

    def work(session: Session) -> Rows:
        tx = Tx(session, ctx.now())
        present = live_rows(session)
        for part in chunks(plans):
            for job in session.scalars(select(Job).where(Job.id.in_(part)).options(defer(Job.spec))):
                _plan_written(tx, job, plans[job.id])
        for allocation in present.allocations:
            if allocation.uuid in orders:
                allocation.order = orders[allocation.uuid].to_json()
        return present.still_live()

    return ctx.store.transact(ctx.ownership, work)


def _plan_written(tx: Tx, job: Job, generation: int | None) -> None:
    if generation is not None:
        job.plan_generation = generation
    elif job.state in JOB_ENDED or not job.members:
        job.generation += 1  # survivors took that number: end them under the next one
    else:
        tx.new_members(job, list(job.members), "the members had planned for themselves meanwhile")
