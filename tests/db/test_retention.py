"""Old rows go in small steps; what is active, and its events, stays."""

from __future__ import annotations

import pytest
from filled_store import everything, fill

from prompttuner.db import Store
from prompttuner.db.queries import events
from prompttuner.db.upkeep import retention
from prompttuner.db.upkeep.integrity import check
from prompttuner.db.upkeep.retention import prune, purge_jobs
from prompttuner.errors import DatabaseError, NotFound, StateError


@pytest.fixture
def full(store: Store) -> Store:
    fill(store)
    return store


def test_only_what_ended_before_goes(full: Store) -> None:
    mine = full.acquire()
    assert full.transact(mine, lambda session: prune(session, 900.0, 2000.0)).total == 0
    first = full.transact(mine, lambda session: prune(session, 1150.0, 2000.0, events_before=0.0))
    assert (first.jobs, first.allocations, first.requests, first.events) == (1, 0, 1, 0)
    second = full.transact(mine, lambda session: prune(session, 1250.0, 2000.0, events_before=0.0))
    assert (second.jobs, second.allocations) == (0, 1)
    left = everything(full)
    assert {row["id"] for row in left["jobs"]} == {"j-run", "j-queued", "j-held"}
    assert {row["uuid"] for row in left["allocations"]} == {"u1", "u2"}
    assert [row["job_id"] for row in left["leases"]] == ["j-run"]
    assert left["events"][-1]["kind"] == "store.pruned"
    assert not check(full)


def test_an_ended_allocation_stays_as_long_as_a_job_it_served(full: Store) -> None:
    mine = full.acquire()
    pruned = full.transact(mine, lambda session: prune(session, 1050.0, 2000.0, events_before=0.0))
    assert pruned.allocations == 0
    assert len(everything(full)["leases"]) == 2


def test_old_events_go_except_those_of_active_jobs(full: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "BATCH", 3)
    mine = full.acquire()
    before = everything(full)["events"]
    active = {"j-run", "j-queued", "j-held"}
    steps = 0
    while full.transact(mine, lambda session: prune(session, 0.0, 2000.0, events_before=1500.0)).total:
        steps += 1
    left = everything(full)["events"]
    assert [row for row in left if row["kind"] != "store.pruned"] == [row for row in before if row["job_id"] in active]
    assert steps > 1
    fresh = [events.NewEvent("test.note", "new")]
    full.transact(mine, lambda session: events.append(session, fresh, 2001.0))
    with full.read() as session:
        assert events.last_seq(session) == before[-1]["seq"] + steps + 1


def test_events_above_the_horizon_are_still_protected(full: Store) -> None:
    mine = full.acquire()
    full.transact(mine, lambda session: prune(session, 0.0, 2000.0, events_before=1020.5))
    with pytest.raises(DatabaseError, match="append-only"), full.write(mine) as session:
        session.execute(events._TABLE.delete())


def test_a_job_is_purged_only_when_it_has_ended(full: Store) -> None:
    mine = full.acquire()
    with pytest.raises(StateError, match="j-run is running: cancel it first"):
        full.transact(mine, lambda session: purge_jobs(session, ["j-done", "j-run"], 2000.0))
    with pytest.raises(NotFound, match="j-none"):
        full.transact(mine, lambda session: purge_jobs(session, ["j-none"], 2000.0))
    assert len(everything(full)["jobs"]) == 4
    full.transact(mine, lambda session: purge_jobs(session, ["j-done"], 2000.0))
    left = everything(full)
    assert {row["id"] for row in left["jobs"]} == {"j-run", "j-queued", "j-held"}
    assert left["events"][-1]["kind"] == "job.purged"
    assert not check(full)
