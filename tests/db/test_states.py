"""States change only as states.py allows, and never without an event."""

from __future__ import annotations

from contextlib import suppress
from itertools import product
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prompttuner.db import Change, Ownership, Store
from prompttuner.db.queries import allocations, events, jobs
from prompttuner.errors import NotFound, StateError
from prompttuner.states import ALLOCATION_ENDED, JOB_ENDED, AllocationState, JobState, check_allocation, check_job

JOB_CHANGES = """
queued:  running held done exhausted failed cancelled stopped rejected
running: queued held done exhausted failed cancelled stopped
held:    queued cancelled stopped
"""
ALLOCATION_CHANGES = """
intent:    pending starting ended abandoned
pending:   starting ended
starting:  warm busy ended
warm:      busy switching draining ended
busy:      warm draining ended
switching: warm busy draining ended
draining:  ended
"""


def table(text: str) -> set[tuple[str, str]]:
    """(old, new) of every change that a table allows."""
    lines = (line.split(":") for line in text.strip().splitlines())
    return {(old.strip(), new) for old, rest in lines for new in rest.split()}


def test_the_allowed_changes_of_a_job_are_these_and_no_others() -> None:
    allowed = set()
    for old, new in product(JobState, JobState):
        with suppress(StateError):
            check_job(old, new)
            allowed.add((str(old), str(new)))
    assert allowed == table(JOB_CHANGES)


def test_the_allowed_changes_of_an_allocation_are_these_and_no_others() -> None:
    allowed = set()
    for old, new in product(AllocationState, AllocationState):
        with suppress(StateError):
            check_allocation(old, new)
            allowed.add((str(old), str(new)))
    assert allowed == table(ALLOCATION_CHANGES)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(walk=st.lists(st.sampled_from(list(JobState)), max_size=12))
def test_any_walk_of_a_job_follows_the_state_machine(store: Store, mine: Ownership, walk: list[JobState]) -> None:
    job = uuid4().hex
    row = {"id": job, "spec": {}, "pool": "p", "model": "m"}
    store.transact(mine, lambda session: jobs.add(session, [row], 1.0, "new"))
    state, taken = JobState.QUEUED, ["job.submitted"]
    for at, new in enumerate(walk, 2):
        allowed = (str(state), str(new)) in table(JOB_CHANGES)
        change = Change(job, new, f"step {at}", {"step": at})
        if allowed:
            store.transact(mine, lambda session, change=change, at=at: jobs.change(session, [change], at))
            state = new
            taken.append(f"job.{new}")
        else:
            with pytest.raises(StateError, match=job):
                store.transact(mine, lambda session, change=change, at=at: jobs.change(session, [change], at))
    with store.read() as session:
        found = jobs.get(session, job)
        assert found.state == state
        assert (found.finished_at is not None) == (state in JOB_ENDED)
        assert [row.kind for row in events.read_after(session, job=job)] == taken


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(walk=st.lists(st.sampled_from(list(AllocationState)), max_size=12))
def test_any_walk_of_an_allocation_follows_the_state_machine(
    store: Store, mine: Ownership, walk: list[AllocationState]
) -> None:
    uuid = uuid4().hex
    row = {"uuid": uuid, "pool": "p", "model": "m"}
    store.transact(mine, lambda session: allocations.add(session, [row], 1.0, "need"))
    state, number = AllocationState.INTENT, 1
    for at, new in enumerate(walk, 2):
        change = Change(uuid, new, "seen")
        if (str(state), str(new)) not in table(ALLOCATION_CHANGES):
            with pytest.raises(StateError, match=uuid):
                store.transact(mine, lambda session, change=change, at=at: allocations.change(session, [change], at))
            continue
        store.transact(mine, lambda session, change=change, at=at: allocations.change(session, [change], at))
        state, number = new, number + 1
    with store.read() as session:
        found = allocations.get(session, uuid)
        assert found.state == state
        assert (found.ended_at is not None) == (state in ALLOCATION_ENDED)
        assert len(events.read_after(session, allocation=uuid)) == number
        live = uuid in {row.uuid for row in allocations.load_live(session)}
    assert live == (state not in ALLOCATION_ENDED)


def test_one_bad_change_among_many_writes_nothing(store: Store, mine: Ownership) -> None:
    rows = [{"id": name, "spec": {}, "pool": "p", "model": "m"} for name in ("a", "b")]
    store.transact(mine, lambda session: jobs.add(session, rows, 1.0, "new"))
    for bad, error in ((Change("b", "nonsense", "x"), ValueError), (Change("c", "running", "x"), NotFound)):
        with pytest.raises(error):
            store.transact(
                mine, lambda session, bad=bad: jobs.change(session, [Change("a", "running", "ok"), bad], 2.0)
            )
    with store.read() as session:
        assert {row.state for row in jobs.load_active(session)} == {"queued"}
        assert len(events.read_after(session)) == 2


def test_a_new_job_is_queued_or_held(store: Store, mine: Ownership) -> None:
    row = {"id": "h", "spec": {}, "pool": "p", "model": "m"}
    with pytest.raises(ValueError, match="running"):
        store.transact(mine, lambda session: jobs.add(session, [{**row, "state": "running"}], 1.0, "new"))
    store.transact(mine, lambda session: jobs.add(session, [{**row, "state": "held"}], 1.0, "new"))
    with store.read() as session:
        assert jobs.get(session, "h").state == "held"


def test_workers_over_time_stay_bounded() -> None:
    history: list[list[float]] = []
    for at in range(2000):
        history = jobs.with_workers(history, float(at), at % 3)
    assert len(history) == jobs.HISTORY_LIMIT
    assert history[0] == [0.0, 0]
    assert history[-1] == [1999.0, 1999 % 3]
    assert jobs.with_workers(history, 2000.0, 1999 % 3) == history


def test_a_state_cannot_be_assigned_past_the_state_machine(store: Store, mine: Ownership) -> None:
    row = {"id": "a", "spec": {}, "pool": "p", "model": "m"}
    store.transact(mine, lambda session: jobs.add(session, [row], 1.0, "new"))
    with pytest.raises(StateError, match="change"), store.write(mine) as session:
        jobs.get(session, "a").state = "done"
    with store.read() as session:
        assert jobs.get(session, "a").state == "queued"
