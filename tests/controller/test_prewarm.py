"""Agents that are started before their jobs arrive: the live controller, on a fake site, from the history it keeps."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from lab import Lab, scratch_root
from sqlalchemy import event

from prompttuner.controller.act.transaction import Tx
from prompttuner.controller.run import _give_back
from prompttuner.db.queries import events
from prompttuner.db.queries.bulk import insert_rows, table_of
from prompttuner.db.queries.profiles import save_startups
from prompttuner.db.tables.models import Allocation, Job
from prompttuner.states import ALLOCATION_ENDED, JobState

EVERY_S = 3600.0
QUEUE_S, START_S = 60.0, 30.0


@pytest.fixture(autouse=True)
def _nothing_is_learned(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fake site starts agents at once: start-up times stay as the tests state them."""
    monkeypatch.setattr(Tx, "learn", lambda *_: None)


def open_lab(folder: str, **settings: Any) -> Lab:
    """A site whose controller remembers four hourly jobs, each of which was due within a cold start."""
    lab = Lab(Path(folder), "prompttuner", idle_limit_s=600.0, local={"slots": 4}, **settings)
    first = lab.submit(ita=20)
    lab.run(40)
    assert lab.job(first).state == JobState.DONE
    lab.ask("release_agent", idle=True)
    lab.run(20)
    known = lab.job(first)
    now = lab.site.time

    def past(session: Any) -> None:
        session.delete(session.get_one(Job, first))
        session.flush()
        table = table_of(Job)
        row = {column.key: getattr(known, column.key) for column in table.c}
        times = [now - (4 - i) * EVERY_S + 600.0 for i in range(4)]
        rows = [
            {**row, "id": f"j-past-{i}", "submitted_at": at, "deadline_at": at + 60.0, "gpu_seconds": 30.0}
            for i, at in enumerate(times)
        ]
        insert_rows(session, table, rows)
        startups = {"queue": QUEUE_S, "start": START_S}
        pool = {"pool": known.pool, "model": known.model, "samples": 1, "origin": "test"}
        save_startups(session, [{**pool, "kind": kind, "seconds": s} for kind, s in startups.items()], now)

    lab.store.transact(lab.ownership, past)
    lab.crash()  # the next controller knows only what is in the database
    return lab


@pytest.fixture
def hourly(tmp_path: Path) -> Iterator[Lab]:
    with tempfile.TemporaryDirectory(dir=scratch_root(tmp_path)) as folder, open_lab(folder) as lab:
        yield lab


def held(lab: Lab) -> list[Allocation]:
    rows = lab.store.query(lambda session: list(session.query(Allocation)))
    return [row for row in rows if row.state not in ALLOCATION_ENDED]


def go_to(lab: Lab, at: float) -> None:
    lab.site.time = at
    lab.tick()


def test_an_agent_is_warm_when_its_job_comes_and_says_why(hourly: Lab) -> None:
    report = hourly.tick()
    due = report.wake_at
    assert (report.jobs, report.allocations) == (0, 0)
    assert 600.0 - QUEUE_S - START_S - 5.0 < due - hourly.site.time < 600.0
    go_to(hourly, due - 10.0)
    assert held(hourly) == []
    go_to(hourly, due)
    (asked,) = held(hourly)
    assert asked.reserved_for is None
    causes = [row.cause for row in hourly.store.query(events.latest) if row.allocation == asked.uuid]
    assert any("bursts came every 3600 s" in cause for cause in causes), causes
    hourly.run(20)
    (warm,) = held(hourly)
    assert (warm.uuid, warm.state) == (asked.uuid, "warm")
    job = hourly.submit(ita=20, deadline_s=60.0)
    hourly.run(30)
    assert hourly.job(job).state == JobState.DONE and hourly.job(job).finished_at < hourly.job(job).deadline_at
    assert [row.uuid for row in held(hourly)] in ([], [asked.uuid])


def test_it_is_given_back_once_if_nobody_comes(hourly: Lab) -> None:
    go_to(hourly, hourly.tick().wake_at)
    hourly.run(20)
    assert len(held(hourly)) == 1
    for _ in range(60):
        hourly.site.step(5.0)
        hourly.tick()
    assert held(hourly) == []
    for hour in (1, 2):
        go_to(hourly, hourly.site.time + EVERY_S * hour)
        assert held(hourly) == []


def test_a_run_that_ends_asks_for_none(hourly: Lab) -> None:
    hourly.site.time = hourly.tick().wake_at
    _give_back(hourly.controller, [])
    assert held(hourly) == []


@pytest.mark.parametrize("setting", [{"prewarm": False}, {"pool": "none"}, {"policy": "edf"}])
def test_never_where_it_is_not_wanted(setting: dict[str, Any], tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory(dir=scratch_root(tmp_path)) as folder, open_lab(folder) as lab:
        lab.settings = lab.settings.model_copy(update=setting)
        lab.crash()
        if "policy" in setting:
            lab.policy = setting["policy"]
            lab.crash()
        for after in range(0, 800, 20):
            go_to(lab, lab.site.time + 20.0)
            assert held(lab) == [], after


def test_a_tick_without_jobs_asks_nothing_until_it_is_due(hourly: Lab) -> None:
    due = hourly.tick().wake_at
    statements: list[str] = []
    event.listen(hourly.store.engine, "before_cursor_execute", lambda *args: statements.append(args[2]))

    def asked() -> bool:
        """Whether a tick looked at what the policy needs."""
        statements.clear()
        hourly.tick()
        assert statements
        return any("startup_profiles" in text for text in statements)

    hourly.site.time += 30.0
    assert not asked()
    hourly.site.time = due
    assert asked()
