"""The store's contract, on SQLite and on Postgres."""

from __future__ import annotations

import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from row_tools import assign, end_leases, open_leases
from sqlalchemy import Select, delete, event, select, update
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from prompttuner.db import Change, NoDatabase, Ownership, Store
from prompttuner.db.queries import allocations, bank_index, events, jobs, leases
from prompttuner.db.queries import profiles as profile_table
from prompttuner.db.queries import requests as request_table
from prompttuner.db.store.engine import WRITE
from prompttuner.db.tables.models import Allocation, Event, Job, Lease
from prompttuner.errors import DatabaseError, NotFound

Add = Callable[..., None]


def test_nothing_is_made_unless_asked(url: str) -> None:
    with pytest.raises(NoDatabase, match="prompttuner submit"):
        Store.open(url)
    with pytest.raises(NoDatabase):
        Store.open(url, read_only=True)


def test_state_outlives_the_store(url: str, store: Store, add_jobs: Add) -> None:
    add_jobs("a")
    with Store.open(url, read_only=True) as again, again.read() as session:
        assert [row.id for row in jobs.load_active(session)] == ["a"]
        assert jobs.get(session, "a").spec == {"n": "a"}


def test_a_read_only_store_refuses_to_write(url: str, store: Store, mine: Ownership) -> None:
    with Store.open(url, read_only=True) as reader:
        with pytest.raises(DatabaseError, match="read-only"):
            reader.transact(mine, lambda session: None)
        with pytest.raises(DatabaseError, match="read-only"):
            reader.acquire()
        with pytest.raises(DatabaseError), reader.read() as session:
            session.execute(update(Event).values(cause="x"))


def test_sqlite_files_are_private(tmp_path: Path) -> None:
    path = tmp_path / "home" / "state.db"
    with Store.open(path, create=True) as store:
        mine = store.acquire()
        with store.write(mine) as session:
            jobs.add(session, [{"id": "a", "spec": {}, "pool": "p", "model": "m"}], 1.0, "x")
            session.flush()
            modes = {item.name: stat.S_IMODE(item.stat().st_mode) for item in path.parent.iterdir()}
    assert modes == {"state.db": 0o600, "state.db-journal": 0o600}
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_a_failing_transaction_leaves_nothing(store: Store, mine: Ownership, add_jobs: Add) -> None:
    add_jobs("a")

    def half(session: object) -> None:
        assign(session, Job, "a", step=7)  # type: ignore[arg-type]
        raise KeyError("boom")

    with pytest.raises(KeyError):
        store.transact(mine, half)
    with pytest.raises(KeyError), store.write(mine) as session:
        half(session)
    with store.read() as session:
        assert jobs.get(session, "a").step == 0


@pytest.mark.postgres
def test_a_read_session_sees_one_state_throughout(postgres_url: str, tmp_path: Path) -> None:
    """On SQLite the writer has to wait instead: test_a_reader_makes_the_writer_wait."""
    with Store.open(postgres_url, create=True, notes_dir=tmp_path) as reader, Store.open(postgres_url) as writer:
        mine = writer.acquire()
        with reader.read() as session:
            before = events.last_seq(session)
            writer.transact(mine, lambda other: events.append(other, [events.NewEvent("test.note", "new")], 1.0))
            assert events.last_seq(session) == before
        with reader.read() as session:
            assert events.last_seq(session) > before


def test_events_cannot_be_changed_or_deleted(store: Store, mine: Ownership, add_jobs: Add) -> None:
    add_jobs("a")
    for statement in (update(Event).values(cause="other"), delete(Event)):
        with (
            pytest.raises(DBAPIError, match="append-only"),
            store.engine.execution_options(**{WRITE: True}).begin() as raw,
        ):
            raw.execute(statement)
        with pytest.raises(DatabaseError, match="append-only"), store.write(mine) as session:
            session.execute(statement)
    with store.read() as session:
        assert [row.cause for row in events.latest(session)] == ["submitted by a test"]


def test_events_are_read_in_order_and_filtered(store: Store, mine: Ownership, add_jobs: Add) -> None:
    add_jobs("a", "b")
    more = [
        events.NewEvent("slurm.refused", "quota", allocation="u1", data={"code": 3}),
        events.NewEvent("slurm.silent", "time-out"),
        events.NewEvent("job_100%", "odd name", job="a"),
    ]
    store.transact(mine, lambda session: events.append(session, more, 5.0))
    with store.read() as session:
        rows = events.read_after(session)
        assert [row.seq for row in rows] == sorted(row.seq for row in rows)
        assert [row.kind for row in rows[2:]] == ["slurm.refused", "slurm.silent", "job_100%"]
        assert events.last_seq(session) == rows[-1].seq
        assert [row.seq for row in events.read_after(session, rows[2].seq)] == [row.seq for row in rows[3:]]
        assert [row.kind for row in events.read_after(session, kinds=["slurm."])] == ["slurm.refused", "slurm.silent"]
        assert [row.job_id for row in events.latest(session, job="a")] == ["a", "a"]
        assert [row.data for row in events.latest(session, allocation="u1")] == [{"code": 3}]
        assert [row.kind for row in events.latest(session, 1)] == ["job_100%"]
        assert len(events.read_after(session, limit=2)) == 2


def test_an_idle_tick_needs_as_many_statements_for_many_jobs_as_for_few(
    store: Store, mine: Ownership, add_jobs: Add
) -> None:
    counts = []
    for first, last in ((0, 20), (20, 700)):
        add_jobs(*(f"j{number}" for number in range(first, last)))
        intents = [{"uuid": f"u{number}", "pool": "p", "model": "m"} for number in range(first, last)]
        store.transact(mine, lambda session, rows=intents: allocations.add(session, rows, 1.0, "need"))
        with counted(store) as statements:
            with store.read() as session:
                assert len(jobs.load_active(session)) == last
                assert len(allocations.load_live(session)) == last
                assert not open_leases(session)
            store.renew(mine)
        counts.append(len(statements))
    assert counts[0] == counts[1]


@pytest.mark.parametrize(
    "query",
    [
        select(Job.id).where(Job.purged),
        select(Job).where(Job.plan_generation < Job.generation),
        select(Job.pool).where(Job.pool == "p").order_by(Job.submitted_at.desc()),
        select(Event).where(Event.kind == "job.missed"),
        select(Allocation).where(Allocation.state == "warm"),
        select(Lease).where(Lease.ended_at.is_(None)),
    ],
)
def test_what_ticks_look_for_is_found_by_index(tmp_path: Path, query: Select[Any]) -> None:
    with Store.open(tmp_path / "state.db", create=True) as store, store.read() as session:
        statement = query.compile(store.engine, compile_kwargs={"literal_binds": True})
        plan = session.connection().exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}").all()
    assert all("INDEX ix_" in row[3] for row in plan), plan


def test_values_are_the_same_on_both_databases(store: Store, mine: Ownership, add_jobs: Add) -> None:
    add_jobs("a")
    row = {
        "step": np.int64(7),
        "train_loss": float("nan"),
        "metric": np.float32(0.5),
        "best_effort": np.bool_(True),
        "note": "nul \0 and half a pair \ud800, ünï",
        "lookup": {"scores": np.array([1.0, 2.0]), "bad": float("inf"), "s": "\0"},
        "history": [[1.5, 2], (2.5, np.int32(3))],
        "gpu_seconds": 1e300,
    }
    store.transact(mine, lambda session: assign(session, Job, "a", **row))
    with store.read() as session:
        job = jobs.get(session, "a")
    assert (job.step, job.train_loss, job.metric, job.best_effort) == (7, None, 0.5, True)
    assert job.note == "nul \ufffd and half a pair ?, ünï"
    assert job.lookup == {"scores": [1.0, 2.0], "bad": None, "s": "\0"}
    assert job.history == [[1.5, 2], [2.5, 3]]
    assert job.gpu_seconds == 1e300


def test_unknown_and_protected_columns_are_refused(store: Store, mine: Ownership, add_jobs: Add) -> None:
    add_jobs("a")
    for columns in ({"stepp": 1}, {"state": "done"}, {"updated_at": 1.0}):
        changes = [Change("a", "held", "test", fields=columns)]
        with pytest.raises(ValueError, match=next(iter(columns))):
            store.transact(mine, lambda session, changes=changes: jobs.change(session, changes, 2.0))


def test_every_change_is_dated(store: Store, mine: Ownership, add_jobs: Add) -> None:
    add_jobs("a", "b")
    with store.write(mine) as session:
        jobs.get(session, "a").note = "assigned"
        jobs.change(session, [Change("b", "held", "test")], 200.0)
    with store.read() as session:
        assert jobs.get(session, "a").updated_at > 1e9
        assert jobs.get(session, "b").updated_at == 200.0


def test_jobs_are_found_by_id_beginning_or_name(store: Store, mine: Ownership, add_jobs: Add) -> None:
    add_jobs("abc1", name="sweep")
    add_jobs("abc2", name="sweep")
    add_jobs("x_1", name="only%")
    with store.read() as session:
        assert jobs.resolve(session, "abc1") == "abc1"
        assert jobs.resolve(session, "x") == "x_1"
        assert jobs.resolve(session, "only%") == "x_1"
        with pytest.raises(NotFound, match="several jobs: abc2, abc1"):
            jobs.resolve(session, "sweep")
        for nothing in ("", "zzz", "%"):
            with pytest.raises(NotFound, match="status"):
                jobs.resolve(session, nothing)
        with pytest.raises(NotFound):
            jobs.get(session, "zzz")


def test_the_newest_jobs_are_those_submitted_last_in_the_states_or_ended_since(
    store: Store, mine: Ownership, add_jobs: Add
) -> None:
    for number, name in enumerate(("a", "b", "c", "d")):
        add_jobs(name, submitted_at=float(number), state="held" if name == "b" else "queued")
    store.transact(mine, lambda session: jobs.change(session, [Change("a", "cancelled", "old")], 50.0))
    store.transact(mine, lambda session: jobs.change(session, [Change("c", "cancelled", "new")], 90.0))

    def ids(limit: int, states: list[str], since: float | None = None) -> list[str]:
        return store.query(lambda session: [job.id for job in jobs.newest(session, limit, states, since)])

    every = ["queued", "held", "cancelled"]
    assert ids(9, every) == ["d", "c", "b", "a"] and ids(2, every) == ["d", "c"]
    assert ids(9, ["cancelled"]) == ["c", "a"]
    assert ids(9, ["queued", "held"], 60.0) == ["d", "c", "b"] and ids(1, ["held"], 60.0) == ["c"]


def test_leases_are_granted_by_rank_and_their_seconds_add_up(store: Store, mine: Ownership, add_jobs: Add) -> None:
    add_jobs("a")

    def begin(session: Session) -> None:
        allocations.add(
            session, [{"uuid": name, "pool": "p", "model": "m"} for name in ("u1", "u2", "u3")], 1.0, "need"
        )
        leases.grant(session, "a", 1, ["u1", "u2"], at=2.0, cause="deadline near")

    store.transact(mine, begin)
    with store.read() as session:
        first, second = open_leases(session)
    assert [(first.allocation, first.rank), (second.allocation, second.rank)] == [("u1", 0), ("u2", 1)]
    store.transact(mine, lambda session: end_leases(session, "a", "finished", 5.0))
    store.transact(mine, lambda session: leases.grant(session, "a", 2, ["u1"], at=6.0, cause="goes on"))
    store.transact(mine, lambda session: leases.grant(session, "a", 3, [], at=7.0, cause="held"))
    with store.read() as session:
        assert leases.held_seconds(session, ["u1", "u2", "u3"], 10.0) == {"u1": 7.0, "u2": 3.0}
        kinds = session.scalars(select(Event.kind).where(Event.job_id == "a", Event.kind.like("lease.%")))
        assert list(kinds) == ["lease.granted", "lease.granted", "lease.revoked"]


def test_jobs_are_found_by_how_the_latest_lease_of_their_allocations_ended(
    store: Store, mine: Ownership, add_jobs: Add
) -> None:
    add_jobs("a", "b")

    def work(session: Session) -> None:
        allocations.add(session, [{"uuid": f"u{n}", "pool": "p", "model": "m"} for n in range(3)], 1.0, "test")
        leases.grant(session, "a", 1, ["u0", "u1"], at=2.0, cause="test")
        end_leases(session, "a", "members went on (u1)", 3.0)
        leases.grant(session, "b", 1, ["u1", "u2"], at=4.0, cause="test")

    store.transact(mine, work)
    with store.read() as session, counted(store) as statements:
        assert leases.jobs_of_latest(session, ["u0", "u1", "u2", "u9"], "members went on") == {"a"}
        assert leases.jobs_of_latest(session, ["u1", "u2"], "members went on") == set(), "u1 has had another since"
        assert leases.jobs_of_latest(session, ["u0"], "members_went") == set()
    assert len(statements) == 3


def test_an_applied_request_is_remembered(store: Store, mine: Ownership) -> None:
    def apply(session: object) -> None:
        request_table.record(
            session,  # type: ignore[arg-type]
            "r1",
            "cancel",
            requested_at=1.0,
            by="me",
            at=2.0,
            ok=False,
            message="no such job",
        )

    store.transact(mine, apply)
    with store.read() as session:
        found = request_table.applied(session, ["r1", "r2"])
    assert list(found) == ["r1"]
    assert (found["r1"].ok, found["r1"].message) == (False, "no such job")
    with pytest.raises(DatabaseError):
        store.transact(mine, apply)


def test_profiles_and_bank_entries_are_replaced(store: Store, mine: Ownership) -> None:
    speed = {"pool": "p", "model": "m", "members": 2, "iters_per_s": 3.0, "samples": 1, "origin": "run"}
    start = {"pool": "p", "model": "m", "kind": "warm", "seconds": 2.0, "samples": 1, "origin": "run"}
    entry = {"bank": "/b", "shelf": "m", "entry": "h", "model": "m", "kind": "soft"}
    for value in (1.0, 4.0):
        store.transact(
            mine,
            lambda session, value=value: (
                profile_table.save_speeds(session, [{**speed, "iters_per_s": value}], value),
                profile_table.save_startups(session, [{**start, "seconds": value}], value),
                bank_index.save(session, [{**entry, "ita": int(value)}, {**entry, "shelf": "n", "model": "n"}], value),
            ),
        )
    with store.read() as session:
        assert [row.iters_per_s for row in profile_table.load_speeds(session)] == [4.0]
        assert [(row.kind, row.seconds) for row in profile_table.load_startups(session)] == [("warm", 4.0)]
        kept, other = bank_index.load(session, "/b")
        assert bank_index.banks(session) == {"/b"} and not bank_index.load(session, "/c")
    assert (kept.ita, kept.outcomes, kept.updated_at) == (4, [], 4.0), "one text may be a prompt of two LLMs"
    assert (other.shelf, other.entry, other.ita) == ("n", "h", None)
    store.transact(mine, lambda session: bank_index.remove(session, "/b", "m", ["h"]))
    with store.read() as session:
        assert [row.shelf for row in bank_index.find(session, ["h", "x"])] == ["n"]
    store.transact(mine, lambda session: bank_index.forget_bank(session, "/b"))
    with store.read() as session:
        assert not bank_index.banks(session)
    with pytest.raises(ValueError, match="nap"):
        store.transact(mine, lambda session: profile_table.save_startups(session, [{**start, "kind": "nap"}], 1.0))


def test_state_changes_of_one_transaction_build_on_each_other(store: Store, mine: Ownership, add_jobs: Add) -> None:
    add_jobs("a")
    steps = [Change("a", "running", "granted", {"members": ["u"]}), Change("a", "done", "target reached")]
    store.transact(mine, lambda session: jobs.change(session, steps, 8.0))
    with store.read() as session:
        job = jobs.get(session, "a")
        kinds = [(row.kind, row.data["from"]) for row in events.latest(session, 2)]
    assert (job.state, job.finished_at, job.members) == ("done", 8.0, [])
    assert kinds == [("job.running", "queued"), ("job.done", "running")]


class counted:
    """The statements that a store sends within a block."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.statements: list[str] = []

    def _note(self, _connection: object, _cursor: object, statement: str, *_: object) -> None:
        self.statements.append(statement)

    def __enter__(self) -> list[str]:
        event.listen(self.store.engine, "before_cursor_execute", self._note)
        return self.statements

    def __exit__(self, *_: object) -> None:
        event.remove(self.store.engine, "before_cursor_execute", self._note)
