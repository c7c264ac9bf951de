"""The append-only record of what happened and why."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Row, func, or_, select
from sqlalchemy.orm import Session

from prompttuner.db.queries.bulk import insert_rows, table_of
from prompttuner.db.tables.models import Event, Job
from prompttuner.states import JOB_ENDED, JobState

__all__ = ["NewEvent", "append", "last_seq", "latest", "of_current_jobs", "read_after"]

EventRow = Row[Any]
"""seq, at, kind, job_id, allocation, cause, data."""

_TABLE = table_of(Event)


@dataclass(frozen=True, slots=True)
class NewEvent:
    """An event to be recorded."""

    kind: str
    """Dotted, what happened to what: ``job.running``, ``lease.granted``, ``slurm.refused``."""
    cause: str
    """Why, for a person."""
    job: str | None = None
    allocation: str | None = None
    data: Mapping[str, Any] | None = None


def append(session: Session, events: Iterable[NewEvent], at: float) -> None:
    """Record events in order, with one statement."""
    rows = [
        {
            "at": at,
            "kind": event.kind,
            "job_id": event.job,
            "allocation": event.allocation,
            "cause": event.cause,
            "data": None if event.data is None else dict(event.data),
        }
        for event in events
    ]
    if rows:
        insert_rows(session, _TABLE, rows)


def read_after(
    session: Session,
    seq: int = 0,
    *,
    job: str | None = None,
    allocation: str | None = None,
    kinds: Sequence[str] = (),
    limit: int = 1000,
) -> Sequence[EventRow]:
    """Up to ``limit`` events after ``seq``, oldest first. A kind ending in ``.`` means all that begin so."""
    query = select(*_TABLE.c).where(_TABLE.c.seq > seq, *_filters(job, allocation, kinds)).order_by(_TABLE.c.seq)
    return session.execute(query.limit(limit)).all()


def latest(
    session: Session,
    limit: int = 100,
    *,
    job: str | None = None,
    allocation: str | None = None,
    kinds: Sequence[str] = (),
) -> Sequence[EventRow]:
    """The newest ``limit`` events, oldest first."""
    query = select(*_TABLE.c).where(*_filters(job, allocation, kinds)).order_by(_TABLE.c.seq.desc())
    return session.execute(query.limit(limit)).all()[::-1]


def last_seq(session: Session) -> int:
    """The number of the newest event; 0 without any."""
    return session.scalar(select(func.max(_TABLE.c.seq))) or 0


def of_current_jobs(
    session: Session, kinds: Sequence[str], since: float
) -> list[tuple[str | None, str, float, dict[str, Any] | None]]:
    """(job_id, kind, at, data) of events of these kinds, oldest first.

    Those after ``since`` and, whatever their age, those of jobs that had not ended before.
    """
    active = [state.value for state in JobState if state not in JOB_ENDED]
    present = select(Job.id).where(or_(Job.state.in_(active), Job.finished_at > since))
    columns = (_TABLE.c.job_id, _TABLE.c.kind, _TABLE.c.at, _TABLE.c.data)
    recent = or_(_TABLE.c.at > since, _TABLE.c.job_id.in_(present))
    query = select(*columns).where(_TABLE.c.kind.in_(list(kinds)), recent)
    return [(row[0], row[1], row[2], row[3]) for row in session.execute(query.order_by(_TABLE.c.seq))]


def _filters(job: str | None, allocation: str | None, kinds: Sequence[str]) -> list[Any]:
    found: list[Any] = []
    if job is not None:
        found.append(_TABLE.c.job_id == job)
    if allocation is not None:
        found.append(_TABLE.c.allocation == allocation)
    if kinds:
        choices: list[ColumnElement[bool]] = [_TABLE.c.kind.in_([kind for kind in kinds if not kind.endswith(".")])]
        choices += [_TABLE.c.kind.startswith(kind, autoescape=True) for kind in kinds if kind.endswith(".")]
        found.append(or_(*choices))
    return found
