"""Engines: SQLite with explicit transactions and a rollback journal, Postgres with bounded waits."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sqlalchemy import Connection, Engine, QueuePool, create_engine, event
from sqlalchemy.exc import DisconnectionError
from sqlalchemy.pool import ConnectionPoolEntry

from prompttuner.db.store.failures import NoDatabase
from prompttuner.db.store.place import Place, look_at
from prompttuner.db.tables.types import dump_json
from prompttuner.errors import DatabaseError

__all__ = ["WRITE", "create_file", "make_engine", "roll_back_journal"]

WRITE = "prompttuner_write"
"""Execution option of connections that will write: they take the lock when they begin, not in the middle."""

PRIVATE = 0o600
FILE = "prompttuner_file"
"""Where a pooled connection's record keeps which file it has open."""


def make_engine(place: Place, *, read_only: bool, busy_s: float, statement_s: float) -> Engine:
    """An engine for the place; no connection is made yet.

    Args:
        read_only: SQLite opens the file with ``mode=ro``; on Postgres every transaction is read-only.
        busy_s: longest wait for a lock, and for a connection to Postgres.
        statement_s: longest run of one Postgres statement.
    """
    if place.path is not None:
        return _sqlite(place.path, read_only, busy_s)
    return _postgres(place, read_only, busy_s, statement_s)


def create_file(path: Path) -> None:
    """Create the SQLite file with mode 0600 (its journal gets the same mode); its folder must exist.

    Raises:
        DatabaseError: it cannot be made.
    """
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, PRIVATE))
    except FileExistsError:
        pass
    except OSError as error:
        raise DatabaseError(f"the database {path} cannot be made: {error.strerror}") from error


def roll_back_journal(path: Path, busy_s: float) -> None:
    """Let SQLite undo the half-written transaction of a killed writer, which a read-only connection may not do."""
    with contextlib.closing(sqlite3.connect(_uri(path, "rw"), uri=True, timeout=busy_s)) as connection:
        connection.execute("SELECT count(*) FROM sqlite_master").fetchone()


def _identity(path: Path) -> tuple[int, int] | None:
    status = look_at(path)
    return None if status is None else (status.st_dev, status.st_ino)


def _uri(path: Path, mode: str) -> str:
    return f"file:{quote(str(path))}?mode={mode}"


def _sqlite(path: Path, read_only: bool, busy_s: float) -> Engine:
    def connect() -> sqlite3.Connection:
        if look_at(path) is None:
            raise NoDatabase(f"there is no database at {path} yet: it is made by the first `prompttuner submit`")
        connection = sqlite3.connect(
            _uri(path, "ro" if read_only else "rw"),
            uri=True,
            timeout=busy_s,
            isolation_level=None,  # we say BEGIN ourselves: the driver's own habits would start transactions late
            check_same_thread=False,  # a pooled connection serves one thread at a time
        )
        connection.execute("PRAGMA foreign_keys=ON")
        if not read_only:
            # The rollback journal everywhere: WAL needs shared memory, which no network file system has.
            connection.execute("PRAGMA journal_mode=DELETE")
            connection.execute("PRAGMA synchronous=FULL")
        return connection

    engine = create_engine(
        "sqlite://", creator=connect, poolclass=QueuePool, json_serializer=dump_json, hide_parameters=True
    )

    @event.listens_for(engine, "checkout")
    def still_there(_connection: sqlite3.Connection, record: ConnectionPoolEntry, _proxy: object) -> None:
        # A file that was removed or replaced (a restored backup) lives on for who has it open: writes would be lost.
        present = _identity(path)
        if record.info.setdefault(FILE, present) != present:
            raise DisconnectionError(f"{path} is another file by now")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        if connection.get_execution_options().get(WRITE):
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        else:
            connection.exec_driver_sql("BEGIN")
            connection.exec_driver_sql("PRAGMA schema_version")  # takes the read lock: one view from here on

    @event.listens_for(engine, "checkin")
    def end_transaction(connection: sqlite3.Connection | None, _record: object) -> None:
        # A COMMIT that found the file locked leaves its transaction open, and SQLAlchemy thinks that it has ended.
        if connection is not None and connection.in_transaction:
            connection.rollback()

    return engine


def _postgres(place: Place, read_only: bool, busy_s: float, statement_s: float) -> Engine:
    arguments: dict[str, Any] = {
        "connect_timeout": max(2, round(busy_s)),
        "application_name": "prompttuner",
        "keepalives_idle": 10,
        "keepalives_interval": 5,
        "keepalives_count": 3,
        "tcp_user_timeout": round(1000 * statement_s),
        "prepare_threshold": None,  # connection poolers in transaction mode lose prepared statements
    }
    engine = create_engine(
        place.url,
        connect_args={key: value for key, value in arguments.items() if key not in place.url.query},
        pool_pre_ping=True,
        pool_size=3,
        max_overflow=2,
        json_serializer=dump_json,
        hide_parameters=True,
    )
    lock_ms, statement_ms = round(1000 * busy_s), round(1000 * statement_s)

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        # Local to the transaction, so that it also holds behind a connection pooler.
        if connection.get_execution_options().get(WRITE):
            mode = "READ WRITE" if not read_only else "READ ONLY"
            level = "READ COMMITTED"
        else:
            mode, level = "READ ONLY", "REPEATABLE READ"
        connection.exec_driver_sql(
            f"SET TRANSACTION ISOLATION LEVEL {level}, {mode}; "
            f"SET LOCAL lock_timeout = {lock_ms}; SET LOCAL statement_timeout = {statement_ms}; "
            f"SET LOCAL idle_in_transaction_session_timeout = {4 * statement_ms}"
        )

    return engine
