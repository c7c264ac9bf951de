"""Leases in the store: which allocation worked for which job, in which generation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from prompttuner.db.queries import events
from prompttuner.db.queries.bulk import chunks, insert_rows, table_of
from prompttuner.db.tables.models import Lease

__all__ = ["grant", "held_seconds", "jobs_of_latest"]

_TABLE = table_of(Lease)


def grant(session: Session, job: str, generation: int, members: Sequence[str], *, at: float, cause: str) -> None:
    """Open one lease a member (its index is its rank) and record it once for the generation.

    As ``lease.granted``, or as ``lease.revoked`` where nobody is left to work for the job.
    """
    rows = [
        {"job_id": job, "allocation": uuid, "generation": generation, "rank": rank, "granted_at": at, "steps": 0}
        for rank, uuid in enumerate(members)
    ]
    if rows:
        insert_rows(session, _TABLE, rows)
    kind, data = "lease.granted" if rows else "lease.revoked", {"generation": generation, "members": list(members)}
    events.append(session, [events.NewEvent(kind, cause, job=job, data=data)], at)


def jobs_of_latest(session: Session, allocations: Iterable[str], ended_because: str) -> set[str]:
    """Jobs whose lease was the latest of one of these allocations and has ended for a reason that begins so."""
    found: set[str] = set()
    for part in chunks(allocations):
        latest = select(func.max(_TABLE.c.id)).where(_TABLE.c.allocation.in_(part)).group_by(_TABLE.c.allocation)
        query = select(_TABLE.c.job_id).where(
            _TABLE.c.id.in_(latest), _TABLE.c.end_reason.startswith(ended_because, autoescape=True)
        )
        found.update(session.scalars(query))
    return found


def held_seconds(session: Session, allocations: Iterable[str], now: float) -> dict[str, float]:
    """Seconds that each allocation has spent on leases so far; those that never had one are missing."""
    seconds = func.sum(func.coalesce(_TABLE.c.ended_at, now) - _TABLE.c.granted_at)
    found: dict[str, float] = {}
    for part in chunks(allocations):
        query = select(_TABLE.c.allocation, seconds).where(_TABLE.c.allocation.in_(part))
        found.update((row[0], float(row[1])) for row in session.execute(query.group_by(_TABLE.c.allocation)))
    return found
