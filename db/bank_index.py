"""The database's index of the Prompt Bank: entries are in the bank's folder, this can be rebuilt from it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import Row, delete, select
from sqlalchemy.orm import Session

from prompttuner.db.models import BankEntry
from prompttuner.db.tables import check_columns, chunks, table_of, update_rows, upsert_rows

__all__ = ["load", "remove", "save", "update"]

_TABLE = table_of(BankEntry)
_DEFAULTS: dict[str, Any] = {
    "note": "",
    "quality": None,
    "uses": 0,
    "outcomes": [],
    "medoid": False,
    "cluster": None,
}


def load(session: Session, *, model: str | None = None, medoids_only: bool = False) -> Sequence[Row[Any]]:
    """Entries with all columns, by hash."""
    query = select(*_TABLE.c).order_by(_TABLE.c.hash)
    if model is not None:
        query = query.where(_TABLE.c.model == model)
    if medoids_only:
        query = query.where(_TABLE.c.medoid.is_(True))
    return session.execute(query).all()


def save(session: Session, rows: Sequence[Mapping[str, Any]], at: float) -> None:
    """Insert or replace entries: hash, pool, model, path and kind at least."""
    upsert_rows(session, _TABLE, [{"created_at": at, **_DEFAULTS, **row, "updated_at": at} for row in rows])


def update(session: Session, rows: Iterable[Mapping[str, Any]], at: float) -> None:
    """Update columns of entries: ``{"hash": ..., column: value, ...}``."""
    full = []
    for row in rows:
        check_columns(_TABLE, row, frozenset({"updated_at"}))
        full.append({**row, "updated_at": at})
    update_rows(session, _TABLE, "hash", full)


def remove(session: Session, hashes: Iterable[str]) -> None:
    """Forget entries (their files are the bank's affair)."""
    for part in chunks(hashes):
        session.execute(delete(_TABLE).where(_TABLE.c.hash.in_(part)))
