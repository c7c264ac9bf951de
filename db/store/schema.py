"""Which revision a database is at, and bringing it up to date (Alembic is imported only for that)."""

from __future__ import annotations

import uuid
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from prompttuner.db.store.failures import NoDatabase, OldSchema
from prompttuner.db.store.place import Place
from prompttuner.errors import DatabaseError

if TYPE_CHECKING:
    from alembic.config import Config

__all__ = ["HEAD", "REVISIONS", "alembic_config", "check_revision", "made_by", "revision", "upgrade"]

REVISIONS = ("0001", "0002", "0003", "0004")
"""Every revision this version knows, oldest first."""
HEAD = REVISIONS[-1]

_NOBODY = (
    "INSERT INTO ownership (id, generation, host, machine, pid, pid_start, command, beat, ttl_s, last_write) "
    "VALUES (1, 0, '', '', 0, '', '', 0, 0, '')"
)

_LOCK = 0x70726F6D70740001
"""Postgres advisory lock held while the schema changes."""


def revision(connection: Connection) -> str | None:
    """The database's revision; None for an empty database."""
    found = connection.execute(text(_EXISTS[connection.dialect.name]), {"name": "alembic_version"}).scalar()
    if not found:
        return None
    return connection.execute(text("SELECT version_num FROM alembic_version")).scalar()


_EXISTS = {
    "sqlite": "SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name = :name",
    "postgresql": "SELECT count(*) FROM pg_tables "
    "WHERE schemaname = ANY (current_schemas(false)) AND tablename = :name",
}


def check_revision(connection: Connection, place: Place) -> None:
    """Raise unless the schema is the one this version works with.

    Raises:
        NoDatabase: the database is empty.
        OldSchema: an older one; says how to upgrade it.
        DatabaseError: a newer one; says which prompttuner made it.
    """
    found = revision(connection)
    if found == HEAD:
        return
    if found is None:
        raise NoDatabase(f"database {place} is empty: it is filled by the first `prompttuner submit`")
    _refuse_newer(connection, place, found)
    raise OldSchema(
        f"database {place} has the older schema {found}: run `prompttuner db upgrade`, which saves it before "
        "(`prompttuner db backup` saves it elsewhere)"
    )


def _refuse_newer(connection: Connection, place: Place, found: str) -> None:
    if found not in REVISIONS:
        raise DatabaseError(
            f"database {place} has schema {found}, made by prompttuner {made_by(connection)}; this is prompttuner "
            f"{_version()}, which knows schemas up to {HEAD}: upgrade prompttuner"
        )


def made_by(connection: Connection) -> str:
    """The version of prompttuner that last changed the schema."""
    try:
        found = connection.execute(text("SELECT value FROM meta WHERE key = 'schema_made_by'")).scalar()
    except DBAPIError:
        found = None
    return str(found or "of an unknown version")


def upgrade(connection: Connection, place: Place) -> tuple[str | None, str]:
    """Bring the schema to HEAD within the caller's write transaction; returns (revision before, after).

    The present controller, if any, is fenced off: code of an older version must not go on writing.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(text("SET LOCAL statement_timeout = 0"))
        connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
    before = revision(connection)
    if before == HEAD:
        return before, HEAD
    if before is not None:
        _refuse_newer(connection, place, before)
    from alembic import command

    config = alembic_config()
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
    if before is None:
        connection.execute(text(_NOBODY))
        _set_meta(connection, "home_id", uuid.uuid4().hex)
    else:
        connection.execute(text("UPDATE ownership SET generation = generation + 1, owner = NULL, beat = beat + 1"))
    _set_meta(connection, "schema_made_by", _version())
    return before, HEAD


def alembic_config() -> Config:
    """Alembic's configuration for our migrations; there is no ini file."""
    from alembic.config import Config

    config = Config()
    # Alembic reads % in options as interpolation.
    config.set_main_option("script_location", str(Path(__file__).parents[1] / "migrations").replace("%", "%%"))
    return config


def _set_meta(connection: Connection, key: str, value: str) -> None:
    connection.execute(text("DELETE FROM meta WHERE key = :key"), {"key": key})
    connection.execute(text("INSERT INTO meta (key, value) VALUES (:key, :value)"), {"key": key, "value": value})


def _version() -> str:
    try:
        return version("prompttuner")
    except PackageNotFoundError:
        return "unknown"
