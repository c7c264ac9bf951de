"""Bring the spool up to the rows: plans of jobs and orders of agents are projections that may be written again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from prompttuner.controller.act.transaction import Tx
from prompttuner.controller.resources import Resources
from prompttuner.db.queries.live import Rows, jobs_behind, jobs_named, live_rows
from prompttuner.db.tables.models import Allocation, Job
from prompttuner.db.tables.recorded import order_of
from prompttuner.files import make_private_dir
from prompttuner.protocol.agents import Order
from prompttuner.protocol.files import read_message, understood, write_message
from prompttuner.protocol.jobs import Membership
from prompttuner.protocol.spec import ResolvedSpec
from prompttuner.slurm.spool import Spool
from prompttuner.states import JOB_ENDED, AllocationState, JobState
from prompttuner.worker.membership import propose, read_membership

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

__all__ = ["Projector", "changed", "obeys_another", "order_for", "prepare_job", "write_order", "write_plan"]

OBEY_S = 30.0
"""An agent that has not taken an order after so long gets it again."""
_STOP_WORDS = {JobState.CANCELLED: "cancelled", JobState.STOPPED: "deadline missed", JobState.HELD: "held"}


class Projector:
    """Brings the spool up to the rows; it remembers nothing, the rows say what was last written."""

    def __init__(self, resources: Resources) -> None:
        self._res = resources

    def project(self, rows: Rows, heard: Mapping[str, tuple[int, int]]) -> Rows:
        """Write plans, then orders, that differ from what was last written or is obeyed; remember what was written.

        Args:
            heard: (owner, seq) of the order that each agent says it obeys.
        """
        res = self._res
        behind = res.state.query(jobs_behind)
        by_id = {job.id: job for job in rows.jobs}
        wanted = {a.uuid: order_for(a, by_id.get(a.job_id or ""), res.state.generation) for a in rows.allocations}
        stale = [
            a for a in rows.allocations if changed(a, wanted[a.uuid]) or obeys_another(a, heard.get(a.uuid), res.now())
        ]
        if not behind and not stale:
            return rows
        res.state.confirm()
        addresses = {a.uuid: a.address for a in rows.allocations if a.address}
        plans = {job.id: write_plan(res.spool, job, addresses) for job in behind}
        orders = {a.uuid: write_order(res.spool, a, wanted[a.uuid], res.now()) for a in stale}

        def work(session: Session) -> Rows:
            tx = Tx(session, res.now())
            present = live_rows(session)
            for job in jobs_named(session, plans):
                _plan_written(tx, job, plans[job.id])
            for allocation in present.allocations:
                if allocation.uuid in orders:
                    allocation.order = orders[allocation.uuid].to_json()
            return present.still_live()

        return res.state.write(work)


def _plan_written(tx: Tx, job: Job, generation: int | None) -> None:
    if generation is not None:
        job.plan_generation = generation
    elif job.state in JOB_ENDED or not job.members:
        job.generation += 1  # survivors took that number: end them under the next one
    else:
        tx.new_members(job, list(job.members), "the members had planned for themselves meanwhile")


def write_plan(spool: Spool, job: Job, addresses: Mapping[str, str]) -> int | None:
    """Publish the job's present generation; None if survivors claimed that number before (their plan is then read).

    Writing the same generation again does nothing.

    Raises:
        OSError: disk full, folder missing.
    """
    folder = make_private_dir(spool.job(job.id))
    present = read_membership(folder)
    budget = 0.0 if job.lookup_done else job.lookup_budget_s or 0.0
    stop = _STOP_WORDS.get(JobState(job.state)) or (str(job.state) if job.state in JOB_ENDED else None)
    if present is not None and present.generation >= job.generation:
        same = present.generation == job.generation and list(present.members) == list(job.members)
        return job.generation if same and present.stop == stop else None
    base = present if present is not None else Membership(0, ())
    plan = base.after(list(job.members), by="controller", addresses=addresses, lookup_s=budget, stop=stop)
    plan = replace(plan, generation=job.generation)
    return job.generation if propose(folder, plan) else None


def order_for(allocation: Allocation, job: Job | None, owner: int) -> Order:
    """What this allocation's agent shall do, but for ``seq`` and ``at``."""
    return Order(
        owner=owner,
        admit=allocation.state != AllocationState.ABANDONED,
        model=allocation.model,
        job=None if job is None else job.id,
        generation=0 if job is None else job.generation,
        drain=bool(allocation.drain),
        stop=bool(allocation.drain) and job is None,
    )


def write_order(spool: Spool, allocation: Allocation, wanted: Order, now: float) -> Order:
    """Write order.json; returns the order with its ``seq``, to be remembered in the row afterwards.

    If we die between file and row, the next owner writes it again under a higher owner generation: harmless. If the
    row could not be written (the database is away) and we live on, the file's number counts: agents take no other order
    under a number that they have seen.
    """
    file = make_private_dir(spool.agent(allocation.uuid)) / Order.FILE
    before = (order_of(allocation), understood(read_message(Order, file)))
    order = replace(wanted, seq=max((one.seq for one in before if one is not None), default=0) + 1, at=now)
    write_message(file, order)
    return order


def changed(allocation: Allocation, wanted: Order) -> bool:
    """Whether the order last written says something else (a new owner alone is no reason to write all again)."""
    present = order_of(allocation)
    return present is None or _content(present) != _content(wanted)


def _content(order: Order) -> Order:
    """What an order orders, without the keys that say when and by whom."""
    return Order(
        admit=order.admit,
        model=order.model,
        job=order.job,
        generation=order.generation,
        drain=order.drain,
        stop=order.stop,
    )


def obeys_another(allocation: Allocation, heard: tuple[int, int] | None, now: float) -> bool:
    """Whether the agent has long been obeying an order other than the one last written.

    A controller that had been asleep since before its successor wrote may have replaced that order's file on waking.
    """
    order = order_of(allocation)
    if heard is None or heard[0] < 0 or order is None or not order.at:
        return False  # it has seen none yet, or comes from a version that does not tell
    return heard != (order.owner, order.seq) and now - order.at > OBEY_S


def prepare_job(spool: Spool, job_id: str, spec: ResolvedSpec) -> Path:
    """Make a job's folder with its frozen spec; done before its row is committed, so a row never lacks its spec."""
    folder = make_private_dir(spool.job(job_id))
    write_message(folder / ResolvedSpec.FILE, spec)
    return folder
