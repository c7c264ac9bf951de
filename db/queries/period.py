"""All that was there during a stretch of time, for reports."""

from __future__ import annotations

from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from prompttuner.db.tables.models import Allocation, Job, Lease

__all__ = ["since"]


def since(session: Session, since_s: float) -> tuple[list[Job], list[Allocation], list[Lease]]:
    """Jobs by submission, allocations that ever started, and leases, of which none had ended before ``since_s``."""
    jobs = select(Job).where(or_(Job.finished_at.is_(None), Job.finished_at >= since_s)).order_by(Job.submitted_at)
    allocations = select(Allocation).where(
        Allocation.started_at.is_not(None), or_(Allocation.ended_at.is_(None), Allocation.ended_at >= since_s)
    )
    leases = select(Lease).where(or_(Lease.ended_at.is_(None), Lease.ended_at >= since_s))
    return list(session.scalars(jobs)), list(session.scalars(allocations)), list(session.scalars(leases))
