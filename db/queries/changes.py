"""A change of state, of a job or an allocation, with its cause: the only way a state changes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from sqlalchemy import Table, select
from sqlalchemy.orm import Session

from prompttuner.db.queries import events
from prompttuner.db.queries.bulk import check_columns, chunks, update_rows
from prompttuner.errors import NotFound, StateError

__all__ = ["Change", "apply_changes", "present_states"]

S = TypeVar("S")


@dataclass(frozen=True, slots=True)
class Change:
    """One job or allocation enters a state."""

    id: str
    """Job id or allocation uuid."""
    state: str
    cause: str
    fields: Mapping[str, Any] = field(default_factory=dict)
    """Other columns that change with it."""
    data: Mapping[str, Any] = field(default_factory=dict)
    """Details for the event; it always gets ``from``."""


def present_states(session: Session, table: Table, key: str, ids: Sequence[str]) -> dict[str, str]:
    """States by id.

    Raises:
        NotFound: an id does not exist.
    """
    found: dict[str, str] = {}
    for part in chunks(ids):
        query = select(table.c[key], table.c.state).where(table.c[key].in_(part))
        found.update((row[0], row[1]) for row in session.execute(query))
    missing = [item for item in ids if item not in found]
    if missing:
        raise NotFound(f"there is no {_noun(table)} {missing[0]}")
    return found


def apply_changes(
    session: Session,
    table: Table,
    key: str,
    changes: Sequence[Change],
    at: float,
    *,
    check: Callable[[str, str], None],
    derive: Callable[[str], Mapping[str, Any]],
    reserved: frozenset[str],
    known: Mapping[str, str] | None = None,
) -> dict[str, dict[str, Any]]:
    """Check each change against the state machine, update the rows, and record one event a change.

    Args:
        check: raises StateError unless (old, new) is allowed.
        derive: further columns that follow from the new state.
        reserved: columns that ``fields`` may not name.
        known: present states by id, where this transaction has read them before: they are not asked for again.

    Returns:
        The columns written, by id.

    Raises:
        StateError, NotFound: nothing is written.
    """
    if not changes:
        return {}
    ids = [change.id for change in changes]
    states = present_states(session, table, key, ids) if known is None else dict(known)
    rows: dict[str, dict[str, Any]] = {}
    record: list[events.NewEvent] = []
    noun = _noun(table)
    for change in changes:
        old, new = states[change.id], str(change.state)
        check_columns(table, change.fields, reserved)
        try:
            check(old, new)
        except StateError as error:
            raise StateError(f"{noun} {change.id}: {error}") from None
        states[change.id] = new
        row = rows.setdefault(change.id, {key: change.id})
        row.update(derive(new), state=new, state_since=at, updated_at=at)
        row.update(change.fields)
        data = {"from": old} | dict(change.data)
        subject = {noun: change.id}
        if noun == "allocation" and change.fields.get("job_id") is not None:
            subject["job"] = change.fields["job_id"]
        record.append(events.NewEvent(f"{noun}.{new}", change.cause, data=data, **subject))
    update_rows(session, table, key, rows.values())
    events.append(session, record, at)
    return rows


def _noun(table: Table) -> str:
    return "job" if table.name == "jobs" else "allocation"
