"""Small helpers on tables: bulk updates in few statements, upserts, chunks, checks of column names."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from sqlalchemy import Table, bindparam, insert, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import DeclarativeBase, Session

__all__ = ["check_columns", "chunks", "insert_rows", "table_of", "update_rows", "upsert_rows"]

CHUNK = 500
"""Values in one IN list; SQLite builds differ in how many parameters they take, 999 is the least."""

V = TypeVar("V")


def table_of(model: type[DeclarativeBase]) -> Table:
    """The table behind a model class."""
    table = model.__table__
    assert isinstance(table, Table)
    return table


def chunks(values: Iterable[V]) -> Iterator[list[V]]:
    """The values in lists short enough for an IN list."""
    items = list(values)
    for start in range(0, len(items), CHUNK):
        yield items[start : start + CHUNK]


def check_columns(table: Table, names: Iterable[str], reserved: frozenset[str]) -> None:
    """Raise ValueError for a name that is no column of the table, or one that has an own function to change it."""
    for name in names:
        if name in reserved:
            raise ValueError(f"{table.name}.{name} cannot be changed this way")
        if name not in table.c:
            raise ValueError(f"{table.name} has no column {name}")


def insert_rows(session: Session, table: Table, rows: Sequence[Mapping[str, Any]]) -> None:
    """Insert rows (any sets of columns) with one statement a set of columns."""
    for group in _by_columns(rows):
        session.execute(insert(table), group)


def update_rows(session: Session, table: Table, key: str, rows: Iterable[Mapping[str, Any]]) -> None:
    """Update rows by primary key; each row holds the key and the columns to change. One statement a set of columns."""
    for group in _by_columns(rows):
        names = [name for name in group[0] if name != key]
        if not names:
            continue
        statement = (
            update(table)
            .where(table.c[key] == bindparam("key_"))
            .values({name: bindparam(f"v_{name}", type_=table.c[name].type) for name in names})
        )
        values = [{"key_": row[key]} | {f"v_{name}": row[name] for name in names} for row in group]
        session.connection().execute(statement, values)


def upsert_rows(session: Session, table: Table, rows: Sequence[Mapping[str, Any]]) -> None:
    """Insert rows, or update those whose primary key exists. All rows have the same columns."""
    if not rows:
        return
    kind = postgresql.insert if session.connection().dialect.name == "postgresql" else sqlite.insert
    statement = kind(table)
    keys = [column.name for column in table.primary_key.columns]
    changed = {name: statement.excluded[name] for name in rows[0] if name not in keys}
    session.connection().execute(
        statement.on_conflict_do_update(index_elements=keys, set_=changed), [dict(row) for row in rows]
    )


def _by_columns(rows: Iterable[Mapping[str, Any]]) -> list[list[dict[str, Any]]]:
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(tuple(sorted(row)), []).append(dict(row))
    return list(groups.values())
