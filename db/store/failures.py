"""What a database error means: worth another try, or a message that says what to do. Passwords never appear."""

from __future__ import annotations

import sqlite3

from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from prompttuner.errors import DatabaseError

__all__ = ["NoDatabase", "OldSchema", "explain", "is_hot_journal", "is_transient"]

# Postgres SQLSTATEs after which the same transaction may be run again: serialization failure, deadlock, lock time-out,
# administrator or crash shutdown, starting up, too many connections, statement time-out.
_TRANSIENT_STATES = {"40001", "40P01", "55P03", "57P01", "57P02", "57P03", "53300", "57014", "25P03"}
_REFUSED = ("password authentication failed", "no password supplied", "no pg_hba.conf entry", "does not exist")

_SQLITE = {
    "SQLITE_FULL": "the disk is full: free some space, nothing of the last change was written",
    "SQLITE_CORRUPT": "the file is damaged: restore a backup (`prompttuner db backup` makes them)",
    "SQLITE_NOTADB": "the file is not a SQLite database: move it away, or give another path",
    "SQLITE_CANTOPEN": "the file cannot be opened: see that its folder exists and may be read",
    "SQLITE_READONLY": "the file or its folder may not be written: see its owner and mode, and the disk quota",
    "SQLITE_PERM": "the file may not be opened: see its owner and mode",
    "SQLITE_BUSY": "another process keeps it locked: try again; `prompttuner doctor` shows who uses it",
    "SQLITE_LOCKED": "another process keeps it locked: try again; `prompttuner doctor` shows who uses it",
    "SQLITE_PROTOCOL": "file locking does not work there: keep the database on another file system, or use Postgres",
    "SQLITE_IOERR": "the disk failed to read or write: see the file system (quota, network) and try again",
}
_POSTGRES = {
    "53100": "the server's disk is full: free some space there, nothing of the last change was written",
    "53200": "the server is out of memory",
    "53300": "the server has no connection left: raise max_connections, or close other clients",
    "28P01": "the server refused the password, or got none: see PGPASSWORD and ~/.pgpass (mode 600)",
    "28000": "the server refused the user",
    "3D000": "there is no such database: create it with `createdb`",
    "42501": "the user lacks a right: grant it all on the database's schema",
    "25006": "the server is read-only (a standby?): give the primary's address",
    "57014": "a statement took too long and was cancelled",
    "55P03": "another session keeps a row locked",
    "40P01": "two sessions locked each other out",
    "XX001": "the server reports damaged data: restore a backup",
    "XX002": "the server reports a damaged index: run REINDEX there",
}


class NoDatabase(DatabaseError):
    """There is no database yet at this place (nothing has been submitted)."""


class OldSchema(DatabaseError):
    """The database was made by an earlier version."""


def is_transient(error: BaseException) -> bool:
    """True if the transaction was not applied because of something that may pass (or its commit's answer was lost)."""
    if isinstance(error, sqlite3.Error):
        return _sqlite_name(error).startswith(("SQLITE_BUSY", "SQLITE_LOCKED"))
    if not isinstance(error, DBAPIError):
        return False
    if isinstance(error.orig, sqlite3.Error):
        return is_transient(error.orig)
    state = getattr(error.orig, "sqlstate", None)
    if state is not None:
        return state in _TRANSIENT_STATES or state.startswith("08")
    return error.connection_invalidated or _unreachable(error)


def is_hot_journal(error: BaseException) -> bool:
    """True if a read-only SQLite connection met the journal of a killed writer, which only a writer may roll back."""
    cause = error.orig if isinstance(error, DBAPIError) else error
    return isinstance(cause, sqlite3.Error) and _sqlite_name(cause).startswith(
        ("SQLITE_READONLY_ROLLBACK", "SQLITE_READONLY_RECOVERY", "SQLITE_READONLY_CANTINIT")
    )


def explain(error: BaseException, place: str) -> DatabaseError:
    """The error as a message for the user.

    Args:
        error: what SQLAlchemy or a driver raised.
        place: path, or URL without its password.
    """
    cause = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
    if isinstance(cause, sqlite3.Error):
        name = _sqlite_name(cause)
        for prefix, advice in _SQLITE.items():
            if name.startswith(prefix):
                return DatabaseError(f"database {place}: {advice}")
        return DatabaseError(f"database {place}: {cause}")
    state = getattr(cause, "sqlstate", None)
    if state in _POSTGRES:
        return DatabaseError(f"database {place}: {_POSTGRES[state]}")
    text = " ".join(str(cause).split())
    if state is None and ("password authentication failed" in text or "no password supplied" in text):
        return DatabaseError(f"database {place}: {_POSTGRES['28P01']}")  # what fails to connect carries no SQLSTATE
    if isinstance(error, DBAPIError) and (error.connection_invalidated or (state is None and _unreachable(error))):
        return DatabaseError(f"database {place} cannot be reached: {text}")
    if isinstance(error, SQLAlchemyError) and not isinstance(error, DBAPIError):
        text = f"{type(error).__name__}: {text}"
    return DatabaseError(f"database {place}: {text}")


def _sqlite_name(error: sqlite3.Error) -> str:
    name = getattr(error, "sqlite_errorname", None)
    if name:
        return str(name)
    # Errors that Python raises itself carry no code.
    return "SQLITE_BUSY" if "locked" in str(error) else ""


def _unreachable(error: DBAPIError) -> bool:
    """A connection that never came about carries no SQLSTATE; what the server refused will not pass by waiting."""
    kind = type(error.orig).__name__
    if kind not in {"OperationalError", "InterfaceError", "ConnectionTimeout"}:
        return False
    text = str(error.orig)
    return not any(words in text for words in _REFUSED)
