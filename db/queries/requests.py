"""Requests from the inbox that were applied: each is applied once, and answered the same afterwards."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from sqlalchemy import Row, select
from sqlalchemy.orm import Session

from prompttuner.db.queries.bulk import chunks, insert_rows, table_of
from prompttuner.db.tables.models import Request

__all__ = ["applied", "record"]

_TABLE = table_of(Request)


def applied(session: Session, ids: Iterable[str]) -> dict[str, Row[Any]]:
    """Which of these requests have been applied, with their answers (columns of ``requests``), by id."""
    found: dict[str, Row[Any]] = {}
    for part in chunks(ids):
        rows = session.execute(select(*_TABLE.c).where(_TABLE.c.id.in_(part)))
        found.update((row.id, row) for row in rows)
    return found


def record(
    session: Session,
    request_id: str,
    kind: str,
    *,
    requested_at: float,
    by: str,
    at: float,
    ok: bool,
    message: str,
    data: Mapping[str, Any] | None = None,
) -> None:
    """Note that a request was applied (or refused), in the same transaction as its effect."""
    row = {
        "id": request_id,
        "kind": kind,
        "at": requested_at,
        "by": by,
        "applied_at": at,
        "ok": ok,
        "message": message,
        "data": None if data is None else dict(data),
    }
    insert_rows(session, _TABLE, [row])
