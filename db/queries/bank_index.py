"""The database's index of the Prompt Banks: entries are in the banks' folders, this can be rebuilt from them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import Row, delete, select
from sqlalchemy.orm import Session

from prompttuner.db.queries.bulk import check_columns, chunks, table_of, upsert_rows
from prompttuner.db.tables.models import BankEntry

__all__ = ["banks", "find", "forget_bank", "load", "remove", "save"]

_TABLE = table_of(BankEntry)
_DEFAULTS: dict[str, Any] = {
    **dict.fromkeys(("task", "source", "owner", "licence", "version", "created"), ""),
    "ita": None,
    "outcomes": [],
}


def banks(session: Session) -> set[str]:
    """The banks that have rows, by path."""
    return set(session.scalars(select(_TABLE.c.bank).distinct()))


def load(session: Session, bank: str) -> Sequence[Row[Any]]:
    """All rows of one bank with all columns, by shelf and id."""
    query = select(*_TABLE.c).where(_TABLE.c.bank == bank)
    return session.execute(query.order_by(_TABLE.c.shelf, _TABLE.c.entry)).all()


def find(session: Session, entries: Iterable[str]) -> Sequence[Row[Any]]:
    """Rows with these ids, whatever bank and shelf they are in."""
    return [
        row
        for part in chunks(entries)
        for row in session.execute(select(*_TABLE.c).where(_TABLE.c.entry.in_(part)).order_by(*_TABLE.primary_key))
    ]


def save(session: Session, rows: Sequence[Mapping[str, Any]], at: float) -> None:
    """Insert or replace rows: bank, shelf, entry, model and kind at least."""
    for row in rows:
        check_columns(_TABLE, row, frozenset({"updated_at"}))
    upsert_rows(session, _TABLE, [{**_DEFAULTS, **row, "updated_at": at} for row in rows])


def remove(session: Session, bank: str, shelf: str, entries: Iterable[str]) -> None:
    """Forget entries of one shelf (their files are the bank's affair)."""
    for part in chunks(entries):
        mine = (_TABLE.c.bank == bank) & (_TABLE.c.shelf == shelf)
        session.execute(delete(_TABLE).where(mine & _TABLE.c.entry.in_(part)))


def forget_bank(session: Session, bank: str) -> None:
    """Forget all rows of a bank."""
    session.execute(delete(_TABLE).where(_TABLE.c.bank == bank))
