"""Moving a state between SQLite and Postgres, and backups while the controller runs."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import uuid
from pathlib import Path

from sqlalchemy import BigInteger, Table, cast, func, insert, select, update
from sqlalchemy.orm import Session

from prompttuner.db.store.engine import create_file
from prompttuner.db.store.failures import OldSchema, explain
from prompttuner.db.store.place import parse_place
from prompttuner.db.store.store import Store
from prompttuner.db.tables.models import Base, Meta, OwnershipRow
from prompttuner.errors import DatabaseError

__all__ = ["backup", "copy"]

BATCH = 1000
_OWN_META = "schema_made_by"
"""The one fact of ``meta`` that belongs to the database, not to the state in it."""


def copy(source: str | Path, target: str | Path) -> dict[str, int]:
    """Copy the whole state into an empty database; either may be SQLite or Postgres.

    The source is owned meanwhile, so that no controller writes it; it is left as it was. The copy is one transaction:
    all of it arrives, or nothing.

    Returns:
        Rows copied, by table.

    Raises:
        NotOwner: a controller runs on the source: stop it first.
        DatabaseError: the target is not empty, is the source, or one of them cannot be used.
    """
    if str(parse_place(source)) == str(parse_place(target)):
        raise DatabaseError("source and target are the same database")
    with Store.open(source) as old, Store.open(target, create=True) as new:
        mine = old.acquire(ttl_s=600.0)
        ours = None
        try:
            ours = new.acquire(ttl_s=600.0)
            with old.read() as reading, new.write(ours) as writing:
                _need_empty(writing, new)
                counts = _copy_rows(reading, writing)
                _release_as(writing, max(mine.generation + 1, ours.generation))
        finally:
            if ours is not None:
                new.release(ours)
            old.release(mine)
    return counts


def backup(source: str | Path, path: Path) -> None:
    """Write a consistent copy of the state to a new SQLite file (0600) while a controller may run.

    Raises:
        DatabaseError: ``path`` exists, or source or target cannot be used; no half-written file is left.
    """
    if path.exists():
        raise DatabaseError(f"{path} exists already: give a new name")
    if not path.parent.is_dir():
        raise DatabaseError(f"the backup {path} cannot be written: there is no folder {path.parent}")
    scratch = path.with_name(f".{path.name}.{os.getpid()}.{uuid.uuid4().hex[:8]}")
    try:
        place = parse_place(source)
        if place.path is not None:
            with contextlib.suppress(OldSchema):  # to be saved before it is upgraded
                Store.open(source, read_only=True).close()
            _backup_file(place.path, scratch)
        else:
            with Store.open(source, read_only=True) as old:
                _backup_rows(old, scratch)
        os.link(scratch, path)  # unlike a rename, never replaces what appeared meanwhile
    except OSError as error:
        raise DatabaseError(f"the backup {path} cannot be written: {error.strerror}") from error
    finally:
        for left in (scratch, scratch.with_name(f"{scratch.name}-journal")):
            left.unlink(missing_ok=True)


def _backup_file(source: Path, scratch: Path) -> None:
    create_file(scratch)
    try:
        # Opened for writing so that the journal of a killed writer, if any, is rolled back first.
        with (
            contextlib.closing(sqlite3.connect(source, timeout=60.0)) as old,
            contextlib.closing(sqlite3.connect(scratch)) as new,
        ):
            old.backup(new)
            found = new.execute("PRAGMA quick_check").fetchone()[0]
            if found != "ok":
                raise DatabaseError(f"database {source} is damaged: {found}")
    except sqlite3.Error as error:
        raise explain(error, str(source)) from error


def _backup_rows(old: Store, scratch: Path) -> None:
    with Store.open(scratch, create=True) as new:
        ours = new.acquire()
        with old.read() as reading, new.write(ours) as writing:
            _copy_rows(reading, writing)
            generation = reading.scalars(select(OwnershipRow.generation)).one()
            _release_as(writing, max(generation, ours.generation))


def _release_as(session: Session, generation: int) -> None:
    """Nobody owns the copy; who takes it next has a higher generation than anybody before."""
    session.execute(update(OwnershipRow).values(owner=None, generation=generation))


def _need_empty(session: Session, store: Store) -> None:
    for table in Base.metadata.sorted_tables:
        if table.name in {"ownership", "meta"}:
            continue
        if session.execute(select(table).limit(1)).first() is not None:
            raise DatabaseError(f"database {store.place} is not empty (table {table.name}): give a new one")


def _copy_rows(reading: Session, writing: Session) -> dict[str, int]:
    counts: dict[str, int] = {}
    for table in Base.metadata.sorted_tables:  # parents before children
        if table.name == "ownership":
            continue
        query = select(table)
        if table.name == "meta":
            query = query.where(Meta.key != _OWN_META)
            writing.execute(table.delete().where(Meta.key != _OWN_META))
        counts[table.name] = 0
        for part in reading.execute(query.execution_options(yield_per=BATCH)).partitions():
            writing.execute(insert(table), [row._asdict() for row in part])
            counts[table.name] += len(part)
        _set_sequence(writing, table)
    return counts


def _set_sequence(session: Session, table: Table) -> None:
    """Postgres numbers new rows from a sequence, which rows that bring their own number do not move."""
    key = table.autoincrement_column
    if key is None or session.connection().dialect.name != "postgresql":
        return
    highest = session.scalar(select(func.max(key)))
    if highest is not None:
        sequence = func.pg_get_serial_sequence(table.name, key.name)
        session.execute(select(func.setval(sequence, cast(highest, BigInteger))))
