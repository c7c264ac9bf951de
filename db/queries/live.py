"""What a tick works on: active jobs and live allocations as whole rows, in two statements however many there are."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session, defer, load_only

from prompttuner.db.queries.allocations import LIVE_STATES
from prompttuner.db.queries.bulk import chunks
from prompttuner.db.queries.jobs import ACTIVE_STATES
from prompttuner.db.tables.models import Allocation, Job, Lease

__all__ = [
    "Rows",
    "allocations_not_ended",
    "jobs_behind",
    "jobs_named",
    "last_job_of",
    "live_rows",
    "load_histories",
    "open_leases",
]

_ACTIVE_JOBS = (
    select(Job)
    .where(Job.state.in_(ACTIVE_STATES))
    .order_by(Job.submitted_at, Job.id)
    .options(defer(Job.spec), defer(Job.history), defer(Job.error))
)
_WITH_STATUSES = (
    select(Allocation)
    .where(Allocation.state.in_(LIVE_STATES))
    .order_by(Allocation.created_at, Allocation.uuid)
    .options(defer(Allocation.place))
)
_LIVE_ALLOCATIONS = _WITH_STATUSES.options(defer(Allocation.status))
_BEHIND = select(Job).where(Job.plan_generation < Job.generation).options(defer(Job.spec), defer(Job.history))


@dataclass(slots=True)
class Rows:
    """Active jobs and live allocations as they are in the database now, detached."""

    jobs: list[Job]
    allocations: list[Allocation]

    def still_live(self) -> Rows:
        """Without what has ended since they were loaded."""
        return Rows(
            [job for job in self.jobs if job.state in ACTIVE_STATES],
            [a for a in self.allocations if a.state in LIVE_STATES],
        )


def live_rows(session: Session, statuses: bool = False) -> Rows:
    """Active jobs by submission, and allocations that have not ended by creation.

    Specs and histories are not loaded: they are large, and a spec never changes.
    ``statuses``: with what each agent last said, for those who look at all of them.
    """
    allocations = _WITH_STATUSES if statuses else _LIVE_ALLOCATIONS
    return Rows(list(session.scalars(_ACTIVE_JOBS)), list(session.scalars(allocations)))


def jobs_behind(session: Session) -> list[Job]:
    """Jobs whose membership is newer than the plan in the spool, without spec and history."""
    return list(session.scalars(_BEHIND))


def jobs_named(session: Session, ids: Iterable[str]) -> list[Job]:
    """Jobs with these ids, without their specs; those that are not there are left out."""
    return [
        job
        for part in chunks(ids)
        for job in session.scalars(select(Job).where(Job.id.in_(part)).options(defer(Job.spec)))
    ]


def allocations_not_ended(session: Session) -> list[Allocation]:
    """Whole rows of the live allocations, oldest first."""
    query = select(Allocation).where(Allocation.state.in_(LIVE_STATES))
    return list(session.scalars(query.order_by(Allocation.created_at, Allocation.uuid)))


def load_histories(session: Session, ids: Iterable[str]) -> None:
    """Load the histories of jobs that this session holds without them, at once."""
    for part in chunks(ids):
        session.scalars(select(Job).where(Job.id.in_(part)).options(load_only(Job.history))).all()


def open_leases(session: Session, jobs: Iterable[str]) -> dict[str, list[Lease]]:
    """Leases that have not ended, by job; every job given has an entry."""
    found: dict[str, list[Lease]] = {}
    for part in chunks(jobs):
        found.update({name: [] for name in part})
        for lease in session.scalars(select(Lease).where(Lease.job_id.in_(part), Lease.ended_at.is_(None))):
            if lease.ended_at is None:  # this session may have ended it without having written that yet
                found[lease.job_id].append(lease)
    return found


def last_job_of(session: Session, allocation: str) -> str | None:
    """The job that an allocation worked for last; None if it never did."""
    query = select(Lease.job_id).where(Lease.allocation == allocation).order_by(Lease.id.desc()).limit(1)
    return session.scalar(query)
