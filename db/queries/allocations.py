"""Allocations in the store: intents first, then what Slurm and the agents say of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import Row, func, select
from sqlalchemy.orm import Session

from prompttuner.db.queries import events
from prompttuner.db.queries.bulk import check_columns, insert_rows, table_of
from prompttuner.db.queries.changes import Change, apply_changes
from prompttuner.db.tables.models import Allocation
from prompttuner.errors import NotFound
from prompttuner.states import ALLOCATION_ENDED, AllocationState, check_allocation

__all__ = [
    "LIVE_STATES",
    "add",
    "change",
    "count_by_state",
    "ends_untold",
    "find",
    "get",
    "live_ids",
    "load_live",
    "memory_of",
    "one_of_each_pool",
    "resolve",
    "settle_end",
]

LIVE_STATES = tuple(state.value for state in AllocationState if state not in ALLOCATION_ENDED)

_TABLE = table_of(Allocation)
_RESERVED = frozenset({"uuid", "state", "state_since", "updated_at"})


def add(session: Session, rows: Sequence[Mapping[str, Any]], at: float, cause: str) -> None:
    """Add intents (commit them before Slurm is asked); records ``allocation.intent`` for each.

    Args:
        rows: columns of each; uuid, pool and model at least.
    """
    full: list[dict[str, Any]] = []
    for row in rows:
        check_columns(_TABLE, row, _RESERVED - {"uuid"})
        fixed = {"state": AllocationState.INTENT.value, "state_since": at, "updated_at": at}
        full.append({"created_at": at} | dict(row) | fixed)
    insert_rows(session, _TABLE, full)
    record = [
        events.NewEvent(
            "allocation.intent",
            cause,
            job=row.get("reserved_for") or row.get("job_id"),
            allocation=row["uuid"],
            data={"pool": row["pool"], "gpus": row.get("gpus", 1)},
        )
        for row in full
    ]
    events.append(session, record, at)


def load_live(session: Session) -> Sequence[Row[Any]]:
    """All allocations that have not ended, oldest first, as rows with every column. One statement."""
    query = select(*_TABLE.c).where(_TABLE.c.state.in_(LIVE_STATES)).order_by(_TABLE.c.created_at, _TABLE.c.uuid)
    return session.execute(query).all()


def live_ids(session: Session) -> set[str]:
    """Allocations that have not ended."""
    return set(session.scalars(select(_TABLE.c.uuid).where(_TABLE.c.state.in_(LIVE_STATES))))


def find(
    session: Session,
    *,
    states: Iterable[str] | None = None,
    job: str | None = None,
    pool: str | None = None,
    limit: int | None = None,
) -> Sequence[Row[Any]]:
    """Rows of allocations, newest first; each filter narrows the choice."""
    query = select(*_TABLE.c).order_by(_TABLE.c.created_at.desc(), _TABLE.c.uuid)
    if states is not None:
        query = query.where(_TABLE.c.state.in_([str(state) for state in states]))
    if job is not None:
        query = query.where(_TABLE.c.job_id == job)
    if pool is not None:
        query = query.where(_TABLE.c.pool == pool)
    return session.execute(query.limit(limit)).all()


def one_of_each_pool(session: Session, pools: Iterable[str]) -> list[tuple[str, str, dict[str, Any] | None]]:
    """(pool, model, place) of one allocation of each of these pools that ever had any."""
    one_each = select(func.max(_TABLE.c.uuid)).where(_TABLE.c.pool.in_(list(pools))).group_by(_TABLE.c.pool)
    query = select(_TABLE.c.pool, _TABLE.c.model, _TABLE.c.place).where(_TABLE.c.uuid.in_(one_each))
    return [(row[0], row[1], row[2]) for row in session.execute(query)]


def get(session: Session, uuid: str) -> Allocation:
    """One allocation. Its attributes are read, never assigned.

    Raises:
        NotFound: there is no such allocation.
    """
    found = session.get(Allocation, uuid)
    if found is None:
        raise NotFound(f"there is no allocation {uuid}")
    return found


def resolve(session: Session, text: str) -> str | None:
    """The allocation that ``text`` means: the beginning of its id, or Slurm's id; None unless just one fits."""
    if not text:
        return None
    fits = _TABLE.c.uuid.startswith(text, autoescape=True) | (_TABLE.c.native_id == text)
    found = list(session.scalars(select(_TABLE.c.uuid).where(fits).limit(2)))
    return found[0] if len(found) == 1 else None


def change(
    session: Session, changes: Sequence[Change], at: float, known: Mapping[str, str] | None = None
) -> dict[str, dict[str, Any]]:
    """Change states, each with its cause, which becomes an event. Ended ones get ``ended_at`` and lose their job.

    Args:
        known: present states by id, where this transaction has read them before.

    Returns:
        The columns written, by id.

    Raises:
        StateError: a change that states.py does not allow; nothing is written.
        NotFound: no such allocation.
    """
    return apply_changes(
        session,
        _TABLE,
        "uuid",
        changes,
        at,
        check=lambda old, new: check_allocation(AllocationState(old), AllocationState(new)),
        derive=lambda new: {"ended_at": at, "job_id": None} if AllocationState(new) in ALLOCATION_ENDED else {},
        reserved=_RESERVED,
        known=known,
    )


def memory_of(session: Session, uuids: Sequence[str]) -> dict[str, int]:
    """MB that allocations are held to, of those where that is known."""
    rows = session.execute(select(_TABLE.c.uuid, _TABLE.c.place).where(_TABLE.c.uuid.in_(uuids)))
    given = {row[0]: (row[1] or {}).get("mem_mb") for row in rows}
    return {uuid: mb for uuid, mb in given.items() if isinstance(mb, int)}


def ends_untold(session: Session, since: float, limit: int) -> list[tuple[str, str | None]]:
    """(uuid, native id) of allocations that ended after ``since`` and whose end is not by the manager's word."""
    untold = _TABLE.c.end_source.is_(None) | (_TABLE.c.end_source != "manager")
    query = (
        select(_TABLE.c.uuid, _TABLE.c.native_id)
        .where(_TABLE.c.ended_at > since, _TABLE.c.native_id.is_not(None), untold)
        .order_by(_TABLE.c.ended_at.desc())
        .limit(limit)
    )
    return [(row[0], row[1]) for row in session.execute(query)]


def settle_end(session: Session, uuid: str, started_at: float | None, ended_at: float, source: str) -> None:
    """Put the times of an ended allocation right, once they are known better."""
    values: dict[str, Any] = {"ended_at": ended_at, "end_source": source}
    if started_at is not None:
        values["started_at"] = started_at
    session.execute(_TABLE.update().where(_TABLE.c.uuid == uuid, _TABLE.c.ended_at.is_not(None)).values(**values))


def count_by_state(session: Session) -> dict[str, int]:
    """Number of allocations in each state that any is in."""
    rows = session.execute(select(_TABLE.c.state, func.count()).group_by(_TABLE.c.state))
    return {row[0]: row[1] for row in rows}
