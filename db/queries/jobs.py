"""Jobs in the store: adding, listing, changing state, updating what a tick learns."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import Row, func, select, union_all
from sqlalchemy.orm import Session, defer

from prompttuner.db.queries import events
from prompttuner.db.queries.bulk import check_columns, chunks, insert_rows, table_of
from prompttuner.db.queries.changes import Change, apply_changes
from prompttuner.db.tables.models import Job
from prompttuner.errors import NotFound
from prompttuner.states import JOB_ENDED, JobState, check_job

__all__ = [
    "ACTIVE_STATES",
    "HISTORY_LIMIT",
    "active_ids",
    "active_specs",
    "add",
    "arrivals",
    "change",
    "count_by_state",
    "ended_before",
    "ends",
    "get",
    "ids",
    "latest_reached",
    "load_active",
    "missed_since",
    "most_urgent",
    "newest",
    "purged_ids",
    "resolve",
    "with_workers",
]

ACTIVE_STATES = tuple(state.value for state in JobState if state not in JOB_ENDED)
HISTORY_LIMIT = 500
"""Entries of "workers over time" kept of one job."""

_TABLE = table_of(Job)
_RESERVED = frozenset({"id", "state", "state_since", "updated_at"})
_LIGHT = tuple(
    column for column in _TABLE.c if column.name not in {"spec", "lookup", "history", "initial_prompt", "error"}
)


def add(session: Session, rows: Sequence[Mapping[str, Any]], at: float, cause: str) -> None:
    """Add jobs, queued unless ``state`` says held; records ``job.submitted`` for each.

    Args:
        rows: columns of each job; id, spec, pool and model at least.
    """
    full: list[dict[str, Any]] = []
    for row in rows:
        check_columns(_TABLE, row, frozenset({"state_since", "updated_at"}))
        state = JobState(row.get("state", JobState.QUEUED))
        if state not in {JobState.QUEUED, JobState.HELD}:
            raise ValueError(f"a new job cannot be {state}")
        full.append({"submitted_at": at} | dict(row) | {"state": state.value, "state_since": at, "updated_at": at})
    insert_rows(session, _TABLE, full)
    events.append(
        session,
        [events.NewEvent("job.submitted", cause, job=row["id"], data={"state": row["state"]}) for row in full],
        at,
    )


def existing(session: Session, ids: Sequence[str]) -> set[str]:
    """Those of ``ids`` that jobs have, ended ones included."""
    return {name for part in chunks(ids) for name in session.scalars(select(_TABLE.c.id).where(_TABLE.c.id.in_(part)))}


def load_active(session: Session) -> Sequence[Row[Any]]:
    """All jobs that have not ended, oldest first, as light rows.

    Every column but spec, lookup, history, initial_prompt and error. One statement, whatever their number.
    """
    query = select(*_LIGHT).where(_TABLE.c.state.in_(ACTIVE_STATES)).order_by(_TABLE.c.submitted_at, _TABLE.c.id)
    return session.execute(query).all()


def active_specs(session: Session) -> dict[str, dict[str, Any]]:
    """Resolved specs of all jobs that have not ended, by id. One statement."""
    query = select(_TABLE.c.id, _TABLE.c.spec).where(_TABLE.c.state.in_(ACTIVE_STATES))
    return {row[0]: row[1] for row in session.execute(query)}


def active_ids(session: Session) -> set[str]:
    """Jobs that have not ended."""
    return set(session.scalars(select(_TABLE.c.id).where(_TABLE.c.state.in_(ACTIVE_STATES))))


def ids(session: Session) -> set[str]:
    """All jobs that have a row."""
    return set(session.scalars(select(_TABLE.c.id)))


def purged_ids(session: Session) -> list[str]:
    """Jobs whose folders are to be removed."""
    return list(session.scalars(select(Job.id).where(Job.purged)))


def ended_before(session: Session, before: float) -> list[str]:
    """Jobs that have ended before a time, the oldest end first."""
    query = select(_TABLE.c.id).where(_TABLE.c.state.not_in(ACTIVE_STATES), _TABLE.c.finished_at < before)
    return list(session.scalars(query.order_by(_TABLE.c.finished_at)))


def ends(session: Session) -> dict[str, float]:
    """When each ended job ended, by id."""
    query = select(_TABLE.c.id, _TABLE.c.finished_at).where(_TABLE.c.finished_at.is_not(None))
    return {row[0]: row[1] for row in session.execute(query)}


def missed_since(session: Session, since: float) -> list[Job]:
    """Jobs that ended after ``since`` without having met their deadline (and were not cancelled).

    Whole rows but spec, history and evaluations. Only jobs that have ended have an end, so the index of ends is all
    that is read.
    """
    missed = (Job.state != JobState.DONE) | (Job.finished_at > Job.deadline_at)
    query = select(Job).where(
        Job.finished_at > since, Job.deadline_at.is_not(None), Job.state != JobState.CANCELLED, missed
    )
    return list(session.scalars(query.options(defer(Job.spec), defer(Job.history), defer(Job.evaluations))))


def most_urgent(session: Session, limit: int) -> list[Job]:
    """Whole rows of active jobs, the earliest deadline first, best effort last."""
    urgency = Job.deadline_at.is_(None), Job.deadline_at, Job.submitted_at
    return list(session.scalars(select(Job).where(Job.state.in_(ACTIVE_STATES)).order_by(*urgency).limit(limit)))


def newest(session: Session, limit: int, states: Iterable[str], ended_since: float | None = None) -> Sequence[Job]:
    """The ``limit`` jobs that were submitted last, newest first; whole rows, detached at the end.

    Each part follows an index from its end and stops there: a long history is not read through.

    Args:
        states: of jobs in these states.
        ended_since: of jobs that ended later, too (Unix seconds).
    """
    order = Job.submitted_at.desc(), Job.id.desc()
    wanted = [Job.state == state for state in states] + ([] if ended_since is None else [Job.finished_at > ended_since])
    parts = [select(Job.id).where(condition).order_by(*order).limit(limit).subquery() for condition in wanted]
    ids = union_all(*(select(part.c.id) for part in parts))
    return session.scalars(select(Job).where(Job.id.in_(ids)).order_by(*order).limit(limit)).all()


def arrivals(session: Session, pools: Iterable[str], since: float, limit: int) -> list[Row[Any]]:
    """(pool, submitted_at, deadline_at, gpu_seconds, state) of the latest submissions to pools, the oldest first."""
    columns = (_TABLE.c.pool, _TABLE.c.submitted_at, _TABLE.c.deadline_at, _TABLE.c.gpu_seconds, _TABLE.c.state)
    query = select(*columns).where(_TABLE.c.pool.in_(list(pools)), _TABLE.c.submitted_at > since)
    return list(reversed(session.execute(query.order_by(_TABLE.c.submitted_at.desc()).limit(limit)).all()))


def latest_reached(session: Session, pools: Sequence[str], each: int) -> Sequence[Row[Any]]:
    """(pool, spec, iterations) of each pool's ``each`` latest jobs that reached their target, in one statement.

    Each part follows the index of its pool from its end, and stops: years of old jobs cost nothing.
    """
    if not pools:
        return []
    columns = select(_TABLE.c.pool, _TABLE.c.spec, _TABLE.c.ita).where(_TABLE.c.ita.is_not(None))
    newest_first = _TABLE.c.submitted_at.desc()
    parts = [columns.where(_TABLE.c.pool == key).order_by(newest_first).limit(each).subquery() for key in pools]
    return session.execute(union_all(*(select(part) for part in parts))).all()


def get(session: Session, job_id: str) -> Job:
    """One whole job, detached from the session when that ends. Its attributes are read, never assigned.

    Raises:
        NotFound: there is no such job.
    """
    job = session.get(Job, job_id)
    if job is None:
        raise NotFound(f"there is no job {job_id}: `prompttuner status` lists them")
    return job


def resolve(session: Session, text: str) -> str:
    """The id of the job that ``text`` means: its id, the beginning of its id, or its name, if only one fits.

    Raises:
        NotFound: none fits, or several do (the message lists them).
    """
    if session.scalar(select(_TABLE.c.id).where(_TABLE.c.id == text)):
        return text
    fits = list(
        session.scalars(
            select(_TABLE.c.id)
            .where(_TABLE.c.id.startswith(text, autoescape=True) | (_TABLE.c.name == text))
            .order_by(_TABLE.c.submitted_at.desc(), _TABLE.c.id.desc())
            .limit(6)
        )
    )
    if not text or not fits:
        raise NotFound(f"there is no job {text!r}: `prompttuner status` lists them")
    if len(fits) > 1:
        more = ", ..." if len(fits) > 5 else ""
        raise NotFound(f"{text!r} fits several jobs: {', '.join(fits[:5])}{more}")
    return str(fits[0])


def change(
    session: Session, changes: Sequence[Change], at: float, known: Mapping[str, str] | None = None
) -> dict[str, dict[str, Any]]:
    """Change states, each with its cause, which becomes an event. Ended jobs get ``finished_at`` and lose members.

    Args:
        known: present states by id, where this transaction has read them before.

    Returns:
        The columns written, by id.

    Raises:
        StateError: a change that states.py does not allow; nothing is written.
        NotFound: no such job.
    """
    return apply_changes(
        session,
        _TABLE,
        "id",
        changes,
        at,
        check=lambda old, new: check_job(JobState(old), JobState(new)),
        derive=lambda new: {"finished_at": at, "members": []} if JobState(new) in JOB_ENDED else {},
        reserved=_RESERVED,
        known=known,
    )


def with_workers(history: Sequence[Sequence[float]], at: float, members: int) -> list[list[float]]:
    """Workers over time with one more entry; the oldest entries are dropped beyond the limit, the first is kept."""
    kept = [list(entry) for entry in history]
    if kept and kept[-1][1] == members:
        return kept
    kept.append([at, members])
    return kept if len(kept) <= HISTORY_LIMIT else [kept[0], *kept[-(HISTORY_LIMIT - 1) :]]


def count_by_state(session: Session) -> dict[str, int]:
    """Number of jobs in each state that any job is in."""
    rows = session.execute(select(_TABLE.c.state, func.count()).group_by(_TABLE.c.state))
    return {row[0]: row[1] for row in rows}
