"""The store: short read and write transactions on SQLite or Postgres, and ownership of the state."""

from __future__ import annotations

import socket
import stat
import threading
import time
import uuid
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session
from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_random_exponential

from prompttuner.db.store import schema
from prompttuner.db.store.engine import WRITE, create_file, make_engine, roll_back_journal
from prompttuner.db.store.failures import NoDatabase, explain, is_hot_journal, is_transient
from prompttuner.db.store.ownership import (
    OwnerInfo,
    OwnerRow,
    Ownership,
    Watch,
    boot_clock,
    fence,
    give_up,
    may_take,
    new_owner_id,
    read_owner,
    refuse,
    take,
)
from prompttuner.db.store.place import NETWORK_FILE_SYSTEMS, Place, file_system_of, look_at, parse_place
from prompttuner.errors import DatabaseError, NotOwner
from prompttuner.files import make_private_dir

__all__ = ["NetworkFileSystemWarning", "Store"]

T = TypeVar("T")

BUSY_S = 15.0
"""Longest wait for somebody else's lock before a try counts as failed."""
STATEMENT_S = 60.0
RETRY_S = 45.0
"""Transactions are tried again for this long."""
OPEN_S = 10.0
"""The same for the first look at a database: who gave a wrong address should not wait long."""
POLL_S = 0.5


class NetworkFileSystemWarning(UserWarning):
    """The SQLite file lies on a network file system."""


class Store:
    """A database of one user. Cheap to open; no connection outlives a transaction except in the pool.

    One Store may be used by several threads; its writes are made one at a time.
    """

    def __init__(self, place: Place, engine: Engine, *, read_only: bool, retry_s: float, watch: Watch) -> None:
        self.place = place
        self.engine = engine
        self.read_only = read_only
        self._retry_s = retry_s
        self._watch = watch
        self._writing = threading.RLock()
        self._reading = threading.local()
        self._fenced_at = float("-inf")
        self._readers = engine
        self._writers = engine.execution_options(**{WRITE: True})

    @classmethod
    def open(
        cls,
        url: str | Path,
        *,
        create: bool = False,
        read_only: bool = False,
        notes_dir: Path | None = None,
        busy_s: float = BUSY_S,
        retry_s: float = RETRY_S,
        clock: Callable[[], float] = boot_clock,
    ) -> Store:
        """Open a database and check its schema.

        Args:
            url: a path, ``sqlite:///path`` or ``postgresql://user@host/name``.
            create: make the database's tables (and the file) if there is nothing yet.
            read_only: nothing is ever written, the file is opened with ``mode=ro``.
            notes_dir: folder of this user where a taker remembers which beats it saw (see ownership.py); by default the
                SQLite file's own folder.
            busy_s: longest wait for a lock or a connection.
            retry_s: how long a transaction is tried again after connection loss, deadlock or lock time-out.
            clock: seconds since boot, by which the age of other owners' beats is measured.

        Raises:
            NoDatabase: nothing is there, and ``create`` was not asked for.
            DatabaseError: older or newer schema, unreachable, damaged, not permitted...
        """
        place = parse_place(url)
        if place.path is not None:
            _look_at_folder(place.path, create)
        engine = make_engine(place, read_only=read_only, busy_s=busy_s, statement_s=STATEMENT_S)
        folder = notes_dir or (place.path.parent if place.path is not None else None)
        watch = Watch(folder / _notes_name() if folder is not None and not read_only else None, clock)
        store = cls(place, engine, read_only=read_only, retry_s=retry_s, watch=watch)
        try:
            store._check_or_create(create and not read_only)
        except BaseException:
            engine.dispose()
            raise
        return store

    @classmethod
    def upgrade_at(cls, url: str | Path) -> tuple[str | None, str]:
        """Create the database, or bring one of any older revision up to date; returns the revisions before and after.

        Raises:
            DatabaseError: it is of a newer version, or cannot be used.
        """
        place = parse_place(url)
        if place.path is not None:
            _look_at_folder(place.path, create=True)
            create_file(place.path)
        with cls.unchecked(url) as store:
            return store.upgrade()

    @classmethod
    def unchecked(cls, url: str | Path, notes_dir: Path | None = None) -> Store:
        """A database of any revision, for those who upgrade it: only ownership and ``revision`` may be used.

        Raises:
            DatabaseError: the address cannot be.
        """
        place = parse_place(url)
        engine = make_engine(place, read_only=False, busy_s=BUSY_S, statement_s=STATEMENT_S)
        watch = Watch(None if notes_dir is None else notes_dir / _notes_name())
        return cls(place, engine, read_only=False, retry_s=RETRY_S, watch=watch)

    def revision(self) -> str | None:
        """The schema's revision; None for an empty database."""
        return self._retrying(lambda: self._read_once(lambda session: schema.revision(session.connection())))

    def close(self) -> None:
        """Close all connections."""
        self.engine.dispose()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- reading -----------------------------------------------------------------------------------------------------

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A session that sees one state of the database throughout; keep it short.

        Raises:
            DatabaseError: the database cannot be used (getting a connection was tried again within bounds).
        """
        with self._begun(self._readers) as session:
            self._reading.depth = getattr(self._reading, "depth", 0) + 1
            try:
                yield session
            finally:
                self._reading.depth -= 1

    def query(self, fn: Callable[[Session], T]) -> T:
        """Run ``fn`` in a read session; run it again if the connection is lost meanwhile."""
        return self._retrying(lambda: self._read_once(fn))

    # -- writing -----------------------------------------------------------------------------------------------------

    def transact(self, ownership: Ownership, fn: Callable[[Session], T]) -> T:
        """Run ``fn`` in one write transaction that first checks, and renews, our ownership; then commit.

        After connection loss, deadlock or lock time-out ``fn`` is run again within bounds, so it must not do anything
        but database work. A commit whose answer was lost is recognised and not repeated.

        Raises:
            NotOwner: somebody else owns the state by now; nothing was written.
            DatabaseError: the database cannot be used; the message says so if the commit's fate is unknown.
        """
        self._need_writable()
        marker = uuid.uuid4().hex
        sent: list[T] = []  # what fn returned in a try whose commit was sent

        def attempt() -> T:
            with self._writing, Session(self._writers, expire_on_commit=False) as session:
                try:
                    fresh = self._fence(session, ownership, marker)
                except NotOwner as error:
                    if sent:
                        error.add_note("the last write may or may not have been applied")
                    raise
                if not fresh:
                    return sent[-1]
                result = fn(session)
                session.flush()
                sent.append(result)
                session.commit()
                return result

        try:
            return self._retrying(attempt)
        except DatabaseError as error:
            if sent:
                raise DatabaseError(f"{error} (whether the last change was written is not known)") from error
            raise

    @contextmanager
    def write(self, ownership: Ownership) -> Iterator[Session]:
        """Like ``transact`` for a block, which cannot be run again: only its beginning is retried."""
        self._need_writable()
        marker = uuid.uuid4().hex

        def begin(session: Session) -> None:
            self._fence(session, ownership, marker)

        with self._writing, self._begun(self._writers, begin) as session:
            yield session
            session.flush()
            try:
                session.commit()
            except SQLAlchemyError as error:
                if not is_transient(error):
                    raise
                self._settle(marker, error)

    # -- ownership ---------------------------------------------------------------------------------------------------

    def acquire(self, info: OwnerInfo | None = None, ttl_s: float = 60.0, wait_s: float = 0.0) -> Ownership:
        """Become the one writer.

        Args:
            info: who we are; by default this process.
            ttl_s: without a renewal (or write) for this long, others may take over; renew every third of it.
            wait_s: how long to wait for a present owner to let go or be found dead. A dead process of this machine is
                replaced at once; any other owner after its beat stood still for its own ttl, by our clock. Observations
                are remembered between calls and (with a notes folder) between processes.

        Raises:
            NotOwner: somebody else is alive, or not yet provably dead; the message names it.
        """
        self._need_writable()
        who = info or OwnerInfo.of_this_process()
        owner = new_owner_id()
        end = time.monotonic() + wait_s
        while True:
            taken, row = self._retrying(lambda: self._try_take(who, owner, ttl_s))
            if taken is not None:
                self._fenced_at = time.monotonic()
                return taken
            if time.monotonic() >= end:
                raise refuse(row, self._watch.age_s(row.generation, row.beat))
            time.sleep(min(POLL_S, max(0.0, end - time.monotonic())))

    def renew(self, ownership: Ownership) -> None:
        """Beat. Every write does so too; needed only when nothing has been written for a third of the ttl.

        Raises:
            NotOwner: somebody else took over.
        """

        def attempt() -> None:
            with self._writing, Session(self._writers) as session:
                self._fence(session, ownership)
                session.commit()

        self._need_writable()
        self._retrying(attempt)

    def keep(self, ownership: Ownership) -> None:
        """Renew if nothing has been written or renewed for a third of the ttl: call it once a tick.

        Raises:
            NotOwner: somebody else took over.
        """
        if time.monotonic() - self._fenced_at >= ownership.ttl_s / 3:
            self.renew(ownership)

    def confirm(self, ownership: Ownership) -> None:
        """Look whether we still own the state: before anything outside the database, which no transaction fences.

        Raises:
            NotOwner: somebody else took over.
        """
        row = self.owner()
        if row.generation != ownership.generation or row.owner != ownership.owner:
            raise refuse(row)

    def release(self, ownership: Ownership) -> None:
        """Let go, so that anybody can acquire at once; nothing happens if it was taken over."""

        def attempt() -> None:
            with self._writing, Session(self._writers) as session:
                give_up(session, ownership)
                session.commit()

        self._retrying(attempt)

    def owner(self) -> OwnerRow:
        """The ownership row: generation, owner (None: nobody), host, pid, command, renewed_at, ..."""
        return self.query(read_owner)

    # -- inside ------------------------------------------------------------------------------------------------------

    def _fence(self, session: Session, ownership: Ownership, marker: str | None = None) -> bool:
        """``fence``, and remember when: the beat counts from before the commit, which is on the safe side."""
        now = time.monotonic()
        fresh = fence(session, ownership, time.time(), marker)
        self._fenced_at = now
        return fresh

    def _check_or_create(self, create: bool) -> None:
        if create and self.place.path is not None and look_at(self.place.path) is None:
            create_file(self.place.path)
        try:
            self._retrying(lambda: self._read_once(self._check_revision), min(self._retry_s, OPEN_S))
        except NoDatabase:
            if not create:
                raise
            self.upgrade()

    def _check_revision(self, session: Session) -> None:
        schema.check_revision(session.connection(), self.place)

    def upgrade(self) -> tuple[str | None, str]:
        """Bring the schema up to date; returns the revisions before and after. Fences off any present controller."""
        self._need_writable()

        def attempt() -> tuple[str | None, str]:
            with self._writing, self._writers.connect() as connection, connection.begin():
                return schema.upgrade(connection, self.place)

        return self._retrying(attempt)

    def _need_writable(self) -> None:
        if self.read_only:
            raise DatabaseError(f"database {self.place} was opened read-only")
        if getattr(self._reading, "depth", 0):
            raise RuntimeError("a write inside a read session would wait for itself on SQLite: end the reading first")

    def _read_once(self, fn: Callable[[Session], T]) -> T:
        with Session(self._readers, expire_on_commit=False) as session:
            return fn(session)

    def _try_take(self, info: OwnerInfo, owner: str, ttl_s: float) -> tuple[Ownership | None, OwnerRow]:
        row = self._read_once(read_owner)
        if not may_take(row, info, self._watch):
            return None, row  # without having locked anybody out
        with self._writing, Session(self._writers) as session:
            taken = take(session, info, owner, ttl_s=ttl_s, at=time.time(), watch=self._watch)
            row = read_owner(session)
            session.commit()
            return taken, row

    @contextmanager
    def _begun(self, engine: Engine, first: Callable[[Session], Any] | None = None) -> Iterator[Session]:
        """A session whose beginning (connection, lock, ``first``) is retried; errors in the block are explained."""

        def attempt() -> Session:
            session = Session(engine, expire_on_commit=False)
            try:
                session.connection()
                if first is not None:
                    first(session)
            except BaseException:
                session.close()
                raise
            return session

        session = self._retrying(attempt)
        try:
            yield session
        except SQLAlchemyError as error:
            raise explain(error, str(self.place)) from error
        finally:
            session.close()

    def _settle(self, marker: str, error: SQLAlchemyError) -> None:
        """A commit's answer was lost: look whether it was applied."""
        try:
            applied = self.owner().last_write == marker
        except DatabaseError as unknown:
            raise DatabaseError(f"{unknown} (whether the last change was written is not known)") from error
        if not applied:
            raise error

    def _retrying(self, attempt: Callable[[], T], bound_s: float | None = None) -> T:
        """Run until it works, a final error comes, or the bound is reached."""

        def guarded() -> T:
            try:
                return attempt()
            except SQLAlchemyError as error:
                if self.place.path is None or not is_hot_journal(error):
                    raise
                roll_back_journal(self.place.path, BUSY_S)
                return attempt()

        retrying = Retrying(
            stop=stop_after_delay(self._retry_s if bound_s is None else bound_s),
            wait=wait_random_exponential(multiplier=0.1, max=2.0),
            retry=retry_if_exception(is_transient),
            reraise=True,
        )
        try:
            return retrying(guarded)
        except SQLAlchemyError as error:
            raise explain(error, str(self.place)) from error


def _look_at_folder(path: Path, create: bool) -> None:
    status = look_at(path)
    if status is not None and stat.S_ISDIR(status.st_mode):
        raise DatabaseError(f"{path} is a folder: the database is a file, give its path")
    try:
        if create:
            make_private_dir(path.parent)
    except OSError as error:
        raise DatabaseError(f"the folder {path.parent} cannot be made: {error.strerror}") from error
    kind = file_system_of(path.parent)
    if kind in NETWORK_FILE_SYSTEMS:
        warnings.warn(
            f"the database {path} lies on a network file system ({kind}): its locks must work there; for a busy or "
            "shared cluster, Postgres is the better choice (docs/howto/postgres.md)",
            NetworkFileSystemWarning,
            stacklevel=3,
        )


def _notes_name() -> str:
    """One file a host: each measures by its own clock."""
    return f".owner-seen.{socket.gethostname()}.json"
