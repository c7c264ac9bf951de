"""Forgetting: old events, ended jobs and allocations, answered requests; the only place that deletes rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import CursorResult, Delete, Select, case, delete, exists, func, select, update
from sqlalchemy.orm import Session

from prompttuner.db.queries import events
from prompttuner.db.queries.bulk import chunks, table_of, upsert_rows
from prompttuner.db.queries.jobs import ACTIVE_STATES
from prompttuner.db.tables.models import Allocation, Event, Job, Lease, Meta, Request
from prompttuner.errors import NotFound, StateError
from prompttuner.states import JOB_ENDED, JobState

__all__ = ["Pruned", "forgotten_gpu_seconds", "held_gpu_seconds", "prune", "purge_jobs"]

BATCH = 5000
"""Rows deleted from one table in one call: transactions stay short."""

HORIZON = "events_horizon"
"""Key in ``meta``: the triggers let events up to this number be deleted."""

FORGOTTEN = "gpu_seconds_forgotten"
"""Key in ``meta``: GPU-seconds of allocations whose rows were deleted."""


@dataclass(frozen=True, slots=True)
class Pruned:
    """Rows deleted."""

    events: int
    jobs: int
    allocations: int
    requests: int

    @property
    def total(self) -> int:
        """Rows removed in all."""
        return self.events + self.jobs + self.allocations + self.requests


def prune(session: Session, before: float, at: float, *, events_before: float | None = None) -> Pruned:
    """Delete what ended before a time: jobs with their leases, allocations without any, requests, and old events.

    Events of jobs that have not ended stay. At most ``BATCH`` rows a table go at once: call again (in an own
    transaction) until ``total`` is 0.

    Args:
        before: Unix seconds; jobs, allocations and requests that ended earlier go.
        events_before: the same for events; by default ``before``.
    """
    pruned = Pruned(
        events=_prune_events(session, before if events_before is None else events_before),
        jobs=_delete_jobs(session, _old_jobs(session, before)),
        allocations=_prune_allocations(session, before),
        requests=_prune_requests(session, before),
    )
    if pruned.total:
        data = {"events": pruned.events, "jobs": pruned.jobs, "allocations": pruned.allocations}
        events.append(
            session,
            [
                events.NewEvent(
                    "store.pruned", "retention", data={**data, "requests": pruned.requests, "before": before}
                )
            ],
            at,
        )
    return pruned


def purge_jobs(session: Session, ids: Sequence[str], at: float) -> None:
    """Delete ended jobs whatever their age; their events stay until retention takes them.

    Raises:
        NotFound, StateError: a job that does not exist or has not ended; nothing is deleted.
    """
    states: dict[str, str] = {}
    for part in chunks(ids):
        rows = session.execute(select(Job.id, Job.state).where(Job.id.in_(part)))
        states.update((row[0], row[1]) for row in rows)
    for job in ids:
        if job not in states:
            raise NotFound(f"there is no job {job}: `prompttuner status --all` lists them")
        if JobState(states[job]) not in JOB_ENDED:
            raise StateError(f"job {job} is {states[job]}: cancel it first")
    _delete_jobs(session, ids)
    events.append(session, [events.NewEvent("job.purged", "asked by the user", job=job) for job in ids], at)


def _old_jobs(session: Session, before: float) -> Sequence[str]:
    query = select(Job.id).where(Job.state.not_in(ACTIVE_STATES), Job.finished_at < before)
    return session.scalars(query.order_by(Job.finished_at).limit(BATCH)).all()


def _delete_jobs(session: Session, ids: Sequence[str]) -> int:
    gone = 0
    for part in chunks(ids):
        session.execute(update(Allocation).where(Allocation.job_id.in_(part)).values(job_id=None))
        session.execute(delete(Lease).where(Lease.job_id.in_(part)))
        gone += _rows(session, delete(Job).where(Job.id.in_(part)))
    return gone


def _prune_allocations(session: Session, before: float) -> int:
    unused = ~exists().where(Lease.allocation == Allocation.uuid)
    query = select(Allocation.uuid).where(Allocation.ended_at < before, unused).order_by(Allocation.ended_at)
    ids = session.scalars(query.limit(BATCH)).all()
    gone = 0
    for part in chunks(ids):
        doomed = Allocation.uuid.in_(part)
        _remember_gpu_seconds(session, float(session.scalar(_held(before).where(doomed)) or 0.0))
        gone += _rows(session, delete(Allocation).where(doomed))
    return gone


def held_gpu_seconds(session: Session, now: float) -> float:
    """The sum over all allocations of the GPU-seconds that they were held until their end, or ``now``."""
    return float(session.scalar(_held(now)) or 0.0)


def _held(now: float) -> Select[tuple[float]]:
    held = func.coalesce(Allocation.ended_at, now) - Allocation.started_at
    return select(func.sum(case((held > 0, held * Allocation.gpus), else_=0.0))).where(
        Allocation.started_at.is_not(None)
    )


def forgotten_gpu_seconds(session: Session) -> float:
    """GPU-seconds of the allocations whose rows are gone: a budget does not fill up again as they are forgotten."""
    return float(session.scalar(select(Meta.value).where(Meta.key == FORGOTTEN)) or 0.0)


def _remember_gpu_seconds(session: Session, seconds: float) -> None:
    if seconds > 0:
        value = repr(forgotten_gpu_seconds(session) + seconds)
        upsert_rows(session, table_of(Meta), [{"key": FORGOTTEN, "value": value}])


def _prune_requests(session: Session, before: float) -> int:
    query = select(Request.id).where(Request.applied_at < before).order_by(Request.applied_at).limit(BATCH)
    return sum(
        _rows(session, delete(Request).where(Request.id.in_(part))) for part in chunks(session.scalars(query).all())
    )


def _prune_events(session: Session, before: float) -> int:
    horizon = session.scalar(select(func.max(Event.seq)).where(Event.at < before))
    if horizon is None:
        return 0
    kept = session.scalar(select(Meta.value).where(Meta.key == HORIZON))
    horizon = max(int(horizon), int(kept or 0))
    upsert_rows(session, table_of(Meta), [{"key": HORIZON, "value": str(horizon)}])
    active = select(Job.id).where(Job.state.in_(ACTIVE_STATES))
    query = select(Event.seq).where(
        Event.seq <= horizon, Event.at < before, Event.job_id.is_(None) | Event.job_id.not_in(active)
    )
    ids = session.scalars(query.order_by(Event.seq).limit(BATCH)).all()
    return sum(_rows(session, delete(Event).where(Event.seq.in_(part))) for part in chunks(ids))


def _rows(session: Session, statement: Delete) -> int:
    result = session.execute(statement, execution_options={"synchronize_session": False})
    assert isinstance(result, CursorResult)
    return int(result.rowcount)
