"""What tests do to rows directly, and how they look at them: the product changes rows through what it has loaded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Row, select, update
from sqlalchemy.orm import Session

from prompttuner.db.queries.bulk import table_of
from prompttuner.db.tables.models import Allocation, Job, Lease

__all__ = ["all_jobs", "assign", "end_leases", "open_leases"]


def assign(session: Session, row: type[Job] | type[Allocation], key: str, **values: Any) -> None:
    """Assign columns of one loaded row, as a tick does."""
    found = session.get_one(row, key)
    for name, value in values.items():
        setattr(found, name, value)
    session.flush()


def all_jobs(session: Session) -> Sequence[Row[Any]]:
    """Every job, newest first."""
    table = table_of(Job)
    return session.execute(select(*table.c).order_by(table.c.submitted_at.desc(), table.c.id.desc())).all()


def open_leases(session: Session) -> Sequence[Row[Any]]:
    """Leases that have not ended, by job, generation and rank."""
    table = table_of(Lease)
    query = select(*table.c).where(table.c.ended_at.is_(None))
    return session.execute(query.order_by(table.c.job_id, table.c.generation, table.c.rank)).all()


def end_leases(session: Session, job: str, reason: str, at: float) -> None:
    """End all leases of a job."""
    table = table_of(Lease)
    ending = update(table).where(table.c.job_id == job, table.c.ended_at.is_(None))
    session.execute(ending.values(ended_at=at, end_reason=reason))
