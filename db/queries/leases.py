"""Leases in the store: which allocation worked for which job, in which generation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import Row, bindparam, func, select, update
from sqlalchemy.orm import Session

from prompttuner.db.queries import events
from prompttuner.db.queries.bulk import chunks, insert_rows, table_of
from prompttuner.db.tables.models import Lease

__all__ = ["end", "end_of_job", "grant", "jobs_of_latest", "load_open", "of_job", "start"]

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


def load_open(session: Session) -> Sequence[Row[Any]]:
    """All leases that have not ended, by job, generation and rank. One statement."""
    query = select(*_TABLE.c).where(_TABLE.c.ended_at.is_(None))
    return session.execute(query.order_by(_TABLE.c.job_id, _TABLE.c.generation, _TABLE.c.rank)).all()


def of_job(session: Session, job: str) -> Sequence[Row[Any]]:
    """All leases of a job, by generation and rank."""
    query = select(*_TABLE.c).where(_TABLE.c.job_id == job)
    return session.execute(query.order_by(_TABLE.c.generation, _TABLE.c.rank)).all()


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


def start(session: Session, ids: Iterable[int], at: float) -> None:
    """Note that members have begun to work."""
    values = [{"key": item, "at": at} for item in ids]
    if values:
        statement = update(_TABLE).where(_TABLE.c.id == bindparam("key"), _TABLE.c.started_at.is_(None))
        session.connection().execute(statement.values(started_at=bindparam("at")), values)


def end(session: Session, ends: Iterable[Mapping[str, Any]], at: float) -> None:
    """End leases that are open: ``{"id": ..., "reason": ..., "steps": 0}`` each."""
    values = [{"key": item["id"], "why": item["reason"], "done": item.get("steps", 0), "at": at} for item in ends]
    if values:
        statement = update(_TABLE).where(_TABLE.c.id == bindparam("key"), _TABLE.c.ended_at.is_(None))
        statement = statement.values(ended_at=bindparam("at"), end_reason=bindparam("why"), steps=bindparam("done"))
        session.connection().execute(statement, values)


def end_of_job(session: Session, job: str, below: int, reason: str, at: float) -> None:
    """End a job's open leases of generations below ``below``."""
    session.execute(
        update(_TABLE)
        .where(_TABLE.c.job_id == job, _TABLE.c.generation < below, _TABLE.c.ended_at.is_(None))
        .values(ended_at=at, end_reason=reason)
    )
