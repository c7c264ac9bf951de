"""Lost connections, locks, full disks, damaged files, wrong addresses: nothing is lost, and the message helps."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

import psycopg
import pytest
from postgres import PostgresServer
from row_tools import assign
from sqlalchemy import event, text

from prompttuner.db import NoDatabase, Ownership, Store
from prompttuner.db.queries import events, jobs
from prompttuner.db.store import schema
from prompttuner.db.store.engine import WRITE
from prompttuner.db.tables.models import Job
from prompttuner.errors import DatabaseError, NotOwner


def note(number: int) -> list[events.NewEvent]:
    return [events.NewEvent("test.note", str(number))]


def causes(store: Store) -> list[str]:
    return store.query(lambda session: [row.cause for row in events.read_after(session, limit=10_000)])


# -- Postgres ----------------------------------------------------------------------------------------------------------


@pytest.mark.postgres
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGQUIT], ids=["restart", "crash"])
def test_writes_go_on_through_a_restart_of_postgres_each_exactly_once(
    own_postgres: PostgresServer, tmp_path: Path, how: signal.Signals
) -> None:
    with own_postgres.database() as url, Store.open(url, create=True, notes_dir=tmp_path, retry_s=120.0) as store:
        mine = store.acquire(ttl_s=600.0)
        stop = threading.Event()
        written: list[int] = []
        failed: list[BaseException] = []

        def writer() -> None:
            try:
                while not stop.is_set():
                    number = len(written)
                    store.transact(mine, lambda session, number=number: events.append(session, note(number), 1.0))
                    written.append(number)
                    assert store.query(events.last_seq) > 0
            except BaseException as error:
                failed.append(error)

        thread = threading.Thread(target=writer)
        thread.start()
        try:
            for _ in range(2):
                time.sleep(0.5)
                before = len(written)
                own_postgres.restart(how)
                wait_until(lambda before=before: failed or len(written) > before + 3)
        finally:
            stop.set()
            thread.join(150)
        assert not failed, "".join(traceback.format_exception(failed[0]))
        assert Counter(causes(store)) == Counter(str(number) for number in written)


@pytest.mark.postgres
def test_a_transaction_whose_connection_is_killed_is_run_again(postgres_url: str, tmp_path: Path) -> None:
    with Store.open(postgres_url, create=True, notes_dir=tmp_path) as store:
        mine = store.acquire()
        tries = []

        def write(session: Any) -> str:
            tries.append(1)
            events.append(session, note(len(tries)), 1.0)
            if len(tries) == 1:
                kill_backend(store, session)
            return f"try {len(tries)}"

        assert store.transact(mine, write) == "try 2"
        assert causes(store) == ["2"]


@pytest.mark.postgres
def test_a_commit_whose_answer_is_lost_is_not_repeated(postgres_url: str, tmp_path: Path) -> None:
    with Store.open(postgres_url, create=True, notes_dir=tmp_path) as store:
        mine = store.acquire()
        dialect: Any = store.engine.dialect
        real, losses = dialect.do_commit, [1]

        def commit(connection: Any) -> None:
            real(connection)
            if losses:
                losses.pop()
                connection.dbapi_connection.close()
                raise psycopg.OperationalError("server closed the connection unexpectedly")

        dialect.do_commit = commit
        assert store.transact(mine, lambda session: events.append(session, note(1), 1.0) or "result") == "result"
        losses.append(1)
        with store.write(mine) as session:
            events.append(session, note(2), 1.0)
        dialect.do_commit = real
        assert causes(store) == ["1", "2"]


@pytest.mark.postgres
def test_a_block_whose_commit_did_not_happen_says_so(postgres_url: str, tmp_path: Path) -> None:
    with Store.open(postgres_url, create=True, notes_dir=tmp_path) as store:
        mine = store.acquire()
        with pytest.raises(DatabaseError, match="cannot be reached"), store.write(mine) as session:
            events.append(session, note(1), 1.0)
            session.flush()
            kill_backend(store, session)
        assert causes(store) == []
        store.renew(mine)


@pytest.mark.postgres
def test_a_lock_time_out_is_waited_out(postgres_url: str, tmp_path: Path) -> None:
    with Store.open(postgres_url, create=True, notes_dir=tmp_path, busy_s=0.2, retry_s=60.0) as store:
        mine = store.acquire()
        release = threading.Timer(1.5, lambda: blocker.rollback())
        with psycopg.connect(postgres_url) as blocker:
            blocker.execute("SELECT 1 FROM ownership FOR UPDATE")
            release.start()
            store.transact(mine, lambda session: events.append(session, note(1), 1.0))
            release.join()
        assert causes(store) == ["1"]


@pytest.mark.postgres
def test_a_lock_that_stays_is_given_up_within_bounds(postgres_url: str, tmp_path: Path) -> None:
    with Store.open(postgres_url, create=True, notes_dir=tmp_path, busy_s=0.2, retry_s=1.0) as store:
        mine = store.acquire()
        with psycopg.connect(postgres_url) as blocker:
            blocker.execute("SELECT 1 FROM ownership FOR UPDATE")
            with pytest.raises(DatabaseError, match="keeps a row locked"):
                store.transact(mine, lambda session: events.append(session, note(1), 1.0))
        assert causes(store) == []


@pytest.mark.postgres
def test_a_deadlock_is_resolved_by_running_again(postgres_url: str, tmp_path: Path) -> None:
    with Store.open(postgres_url, create=True, notes_dir=tmp_path) as store:
        mine = store.acquire()
        rows = [{"id": name, "spec": {}, "pool": "p", "model": "m"} for name in "ab"]
        store.transact(mine, lambda session: jobs.add(session, rows, 1.0, "new"))
        tries = []
        with psycopg.connect(postgres_url) as other:
            other.execute("SET deadlock_timeout = '60s'")  # so that it is ours that is cancelled
            other.execute("UPDATE jobs SET step = 1 WHERE id = 'b'")

            def write(session: Any) -> None:
                tries.append(1)
                assign(session, Job, "a", step=2)
                if len(tries) == 1:
                    thread.start()
                    wait_until(lambda: "Lock" in waits(store))
                assign(session, Job, "b", step=2)

            def cross() -> None:
                other.execute("UPDATE jobs SET step = 1 WHERE id = 'a'")
                other.commit()

            thread = threading.Thread(target=cross)
            store.transact(mine, write)
            thread.join(60)
        assert len(tries) == 2
        with store.read() as session:
            assert [row.step for row in jobs.load_active(session)] == [2, 2]


@pytest.mark.postgres
def test_passwords_never_appear(
    postgres_server: PostgresServer,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    postgres_server.sql("DROP ROLE IF EXISTS secretive")
    postgres_server.sql("CREATE ROLE secretive LOGIN SUPERUSER PASSWORD 'hunter2hunter2'")
    with postgres_server.database() as url:
        database = url.split("/")[3].split("?")[0]
        caplog.set_level("DEBUG")
        good = postgres_server.url(database, "secretive", "hunter2hunter2")
        with Store.open(good, create=True, notes_dir=tmp_path) as store:
            assert "hunter2" not in f"{store.place} {store.place!r} {store.engine!r}"
            assert "secretive:***@" in str(store.place)
        wrong = [
            postgres_server.url(database, "secretive", "swordfish"),
            postgres_server.url("nowhere", "secretive", "swordfish"),
            postgres_server.url(database, "secretive") + "&password=swordfish",
            "postgresql://u:swordfish@[::1/x",
            "mysql://u:swordfish@h/x",
        ]
        tries: list[int] = []
        connect = psycopg.connect
        monkeypatch.setattr(psycopg, "connect", lambda *args, **options: tries.append(1) or connect(*args, **options))
        with pytest.raises(DatabaseError, match=r"refused the password, or got none: see PGPASSWORD"):
            Store.open(wrong[0])
        assert tries == [1]
        for bad in wrong:
            tries.clear()
            with pytest.raises(DatabaseError) as caught:
                Store.open(bad)
            shown = "".join(traceback.format_exception(caught.value)) + repr(caught.value)
            assert "swordfish" not in shown.replace(bad, "")
            assert "swordfish" not in str(caught.value)
            assert len(tries) <= 1, "what cannot pass was tried again"
    assert "swordfish" not in caplog.text
    assert "hunter2" not in caplog.text


@pytest.mark.postgres
def test_an_absent_database_or_server_is_named(postgres_server: PostgresServer, tmp_path: Path) -> None:
    with pytest.raises(DatabaseError, match="does not exist"):
        Store.open(postgres_server.url("nowhere"))
    with pytest.raises(DatabaseError, match="cannot be reached"):
        Store.open(f"postgresql://x@/x?host={tmp_path}", retry_s=0.5)


# -- SQLite ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state.db"


@pytest.fixture
def lite(path: Path) -> Any:
    with Store.open(path, create=True, busy_s=0.2, retry_s=10.0) as store:
        yield store


def test_a_reader_makes_the_writer_wait(lite: Store) -> None:
    mine = lite.acquire()
    entered, leave = threading.Event(), threading.Event()

    def read() -> None:
        with lite.read() as session:
            events.last_seq(session)
            entered.set()
            leave.wait(30)

    reader = threading.Thread(target=read)
    reader.start()
    entered.wait(30)
    threading.Timer(1.0, leave.set).start()
    lite.transact(mine, lambda session: events.append(session, note(1), 1.0))
    assert leave.is_set()
    reader.join()
    assert causes(lite) == ["1"]


def test_a_write_inside_a_read_is_refused_instead_of_waiting_for_itself(lite: Store) -> None:
    mine = lite.acquire()
    with lite.read(), pytest.raises(RuntimeError, match="read session"):
        lite.transact(mine, lambda session: None)
    lite.transact(mine, lambda session: None)


def test_a_locked_file_is_given_up_within_bounds(path: Path, lite: Store) -> None:
    mine = lite.acquire()
    with Store.open(path, busy_s=0.1, retry_s=0.5) as hasty:
        blocker = sqlite3.connect(path, isolation_level=None)
        blocker.execute("BEGIN IMMEDIATE")
        with pytest.raises(DatabaseError, match="locked"):
            hasty.transact(mine, lambda session: None)
        blocker.close()
        hasty.transact(mine, lambda session: None)


def test_a_full_disk_loses_nothing(lite: Store) -> None:
    mine = lite.acquire()
    lite.transact(mine, lambda session: events.append(session, note(1), 1.0))
    limit: list[int] = [1]

    @event.listens_for(lite.engine, "begin")
    def shrink(connection: Any) -> None:
        connection.exec_driver_sql(f"PRAGMA max_page_count={limit[0]}")  # never below the present size

    big = [events.NewEvent("test.note", "x" * 500_000)]
    with pytest.raises(DatabaseError, match=r"disk is full: .*, nothing"):
        lite.transact(mine, lambda session: events.append(session, big, 1.0))
    assert causes(lite) == ["1"]
    limit[0] = 1_000_000
    lite.transact(mine, lambda session: events.append(session, big, 1.0))
    assert len(causes(lite)) == 2


def test_the_journal_of_a_killed_writer_is_rolled_back_by_a_reader(path: Path, lite: Store) -> None:
    mine = lite.acquire()
    lite.transact(mine, lambda session: events.append(session, note(1), 1.0))
    lite.close()
    program = (
        "import sqlite3, sys, os, signal\n"
        "db = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
        "db.execute('PRAGMA cache_size=2'); db.execute('BEGIN IMMEDIATE')\n"
        "row = \"INSERT INTO events (at, kind, cause) VALUES (1, 'half', ?)\"\n"
        "for n in range(3000): db.execute(row, ('y' * 900,))\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", program, str(path)], check=False, timeout=120)
    journal = path.with_name("state.db-journal")
    assert journal.stat().st_size > 0
    with Store.open(path, read_only=True) as reader:
        assert causes(reader) == ["1"]
    assert not journal.exists()


def test_a_damaged_file_is_named(path: Path, lite: Store) -> None:
    mine = lite.acquire()
    for number in range(50):
        lite.transact(mine, lambda session, number=number: events.append(session, note(number), 1.0))
    lite.close()
    content = bytearray(path.read_bytes())
    content[4096:] = os.urandom(len(content) - 4096)
    path.write_bytes(content)
    with pytest.raises(DatabaseError, match="damaged: restore a backup"), Store.open(path) as store:
        causes(store)
    path.write_bytes(b"these are not the bytes you are looking for" * 100)
    with pytest.raises(DatabaseError, match="not a SQLite database"):
        Store.open(path)


def test_wrong_places_are_refused_with_advice(tmp_path: Path) -> None:
    with pytest.raises(DatabaseError, match="is a folder"):
        Store.open(tmp_path, create=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(DatabaseError, match="cannot be made"):
        Store.open(tmp_path / "file" / "state.db", create=True)
    for wrong, advice in (
        ("mysql://u@h/x", "not supported"),
        ("sqlite://", "needs a file"),
        ("postgresql://u:p@[::1/x", "cannot be read"),
    ):
        with pytest.raises(DatabaseError, match=advice):
            Store.open(wrong)
    with pytest.raises(NoDatabase):
        Store.open(tmp_path / "no" / "such.db")


def test_a_home_that_may_not_be_entered_hints_at_tickets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "state.db"
    Store.open(path, create=True).close()
    real = Path.stat

    def forbidden(self: Path, **options: Any) -> os.stat_result:
        if self == path:
            raise PermissionError(13, "Permission denied")
        return real(self, **options)

    monkeypatch.setattr(Path, "stat", forbidden)
    for options in ({"read_only": True}, {"create": True}, {}):
        with pytest.raises(DatabaseError, match=r"Permission denied; .*ticket"):
            Store.open(path, **options)


def test_odd_file_names_work(tmp_path: Path) -> None:
    path = tmp_path / "a b?c#d%20e'f" / "st&te.db"
    with Store.open(path, create=True) as store:
        store.release(store.acquire())
    with Store.open(f"sqlite:///{tmp_path}/plain.db", create=True):
        assert (tmp_path / "plain.db").exists()
    with Store.open(path, read_only=True) as store:
        assert store.owner().owner is None


def test_a_database_of_a_newer_version_says_what_to_do(url: str, tmp_path: Path) -> None:
    with Store.open(url, create=True, notes_dir=tmp_path) as store:
        mine = store.acquire()
        with store.engine.execution_options(**{WRITE: True}).begin() as raw:
            raw.execute(text("UPDATE alembic_version SET version_num = '9999'"))
            raw.execute(text("UPDATE meta SET value = '47.11' WHERE key = 'schema_made_by'"))
        assert isinstance(mine, Ownership)
        with pytest.raises(DatabaseError, match=r"9999, made by prompttuner 47\.11.*upgrade prompttuner"):
            Store.open(url, create=True, notes_dir=tmp_path)
        with pytest.raises(DatabaseError, match="upgrade prompttuner"):
            store.upgrade()
        with store.engine.execution_options(**{WRITE: True}).begin() as raw:
            raw.execute(text(f"UPDATE alembic_version SET version_num = '{schema.HEAD}'"))


def test_a_lost_ownership_is_not_retried(url: str, tmp_path: Path) -> None:
    with Store.open(url, create=True, notes_dir=tmp_path, retry_s=60.0) as store:
        mine = store.acquire()
        store.release(mine)
        calls: list[int] = []
        with pytest.raises(NotOwner):
            store.transact(mine, lambda session: calls.append(1))
        assert not calls


def wait_until(condition: Any, timeout: float = 90.0) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)


def kill_backend(store: Store, session: Any) -> None:
    pid = session.connection().exec_driver_sql("SELECT pg_backend_pid()").scalar()
    with store.engine.execution_options(**{WRITE: True}).begin() as other:
        other.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": pid})

    def gone() -> bool:
        with store.engine.execution_options(**{WRITE: True}).begin() as other:
            query = text("SELECT count(*) FROM pg_stat_activity WHERE pid = :pid")
            return other.execute(query, {"pid": pid}).scalar() == 0

    wait_until(gone)


def waits(store: Store) -> list[str]:
    with store.engine.execution_options(**{WRITE: True}).begin() as other:
        query = "SELECT wait_event_type FROM pg_stat_activity WHERE datname = current_database() AND state = 'active'"
        return [row[0] for row in other.execute(text(query))]
