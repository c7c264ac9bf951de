"""A live database as a report, and the command that writes it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import insert

from prompttuner.cli.frame import root as frame
from prompttuner.config import layers
from prompttuner.db import Store
from prompttuner.db.tables.models import Allocation, Job, Lease
from prompttuner.report.data import Usage
from prompttuner.report.live import from_database


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "home" / "state.db", create=True) as opened:
        yield opened


def fill(store: Store, base: float) -> None:
    """Two allocations: one starts at 10, is warm at 20, works for two jobs in turn; one joins the second job."""
    common = {"pool": "p", "model": "m", "updated_at": base, "state_since": base}
    jobs = [
        {"id": "first", "name": "one", "state": "done", "deadline_at": 60, "started_at": 20, "finished_at": 50},
        {"id": "second", "state": "running", "deadline_at": 90, "started_at": 60, "pool": "other"},
        {"id": "spent", "state": "exhausted", "deadline_at": 90, "finished_at": 70},
    ]
    allocations = [
        {"uuid": "a", "state": "busy", "started_at": 10, "warm_at": 20},
        {"uuid": "b", "state": "ended", "started_at": 60, "warm_at": 70, "ended_at": 95},
        {"uuid": "queued", "state": "pending"},
    ]
    leases = [
        {"job_id": "first", "allocation": "a", "generation": 1, "rank": 0, "granted_at": 20, "ended_at": 50},
        {"job_id": "second", "allocation": "a", "generation": 1, "rank": 0, "granted_at": 60},
        {"job_id": "second", "allocation": "b", "generation": 2, "rank": 1, "granted_at": 80, "ended_at": 95},
    ]

    def shifted(row: dict[str, object]) -> dict[str, object]:
        return {key: base + value if key.endswith("_at") else value for key, value in row.items()}

    with store.write(store.acquire()) as session:
        for row in jobs:
            session.execute(insert(Job).values(**{**common, "spec": {}, "submitted_at": base, **shifted(row)}))
        for row in allocations:
            session.execute(insert(Allocation).values(created_at=base, **common, **shifted(row)))
        for row in leases:
            session.execute(insert(Lease).values(**shifted(row)))


def test_usage_and_jobs_follow_from_allocations_and_leases(store: Store) -> None:
    fill(store, 1000.0)
    with store.read() as session:
        data = from_database(session, now_s=1100.0, since_s=1000.0, source="db")
    assert data.usage == [
        Usage(10, 0, 1, 0), Usage(20, 1, 0, 0), Usage(50, 0, 0, 1), Usage(60, 1, 1, 0), Usage(70, 1, 0, 1),
        Usage(80, 2, 0, 0), Usage(95, 1, 0, 0), Usage(100, 0, 0, 0),
    ]  # fmt: skip
    assert data.cost() == {"busy": 30 + 40 + 15, "start-up": 20.0, "warm-idle": 20.0}
    bars = {job.id: job for job in data.jobs}
    assert bars["first"].spans == [(20, 50, 1)] and bars["first"].verdict(100) == "met"
    assert bars["second"].spans == [(60, 80, 1), (80, 95, 2), (95, 100, 1)] and bars["second"].verdict(100) == "missed"
    assert data.pool_usage == {
        "other": [Usage(60, 1, 0, 0), Usage(80, 2, 0, 0), Usage(95, 1, 0, 0), Usage(100, 0, 0, 0)],
        "p": [Usage(20, 1, 0, 0), Usage(50, 0, 0, 0)],
    }
    assert bars["spent"].verdict(100) == "missed" and bars["spent"].spans == []
    assert [bars[name].state for name in ("first", "second", "spent")] == ["ended", "running", "exhausted"]


def test_only_what_touches_the_asked_time_is_shown_and_clipped_to_it(store: Store) -> None:
    fill(store, 1000.0)
    with store.read() as session:
        data = from_database(session, now_s=1100.0, since_s=1065.0, source="db")
    assert {job.id for job in data.jobs} == {"second", "spent"}
    assert data.usage[0] == Usage(0, 1, 1, 0)
    assert sum(data.cost().values()) == pytest.approx(35 + 30)


def test_the_clock_begins_with_the_first_event(store: Store) -> None:
    fill(store, 1000.0)
    with store.read() as session:
        data = from_database(session, now_s=1100.0, since_s=0.0, source="db")
    assert (data.epoch_s, data.end_s) == (1000.0, 100.0)


def test_command_writes_the_page(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import time

    fill(store, time.time() - 200)
    store.close()
    monkeypatch.setattr(layers, "SYSTEM_CONFIG", tmp_path / "no-system.toml")
    monkeypatch.setenv("PROMPTTUNER_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    assert frame.run(["report", "--since", "1h", "--out", "r.html"]) == 0
    assert "1 of 3" in capsys.readouterr().out
    assert "first" in Path("r.html").read_text()
    assert frame.run(["report", "--since", "soon"]) == 2
    assert "write a duration" in capsys.readouterr().err
    assert frame.run(["report", "--out", "no/such/folder/r.html"]) == 1
    assert "make the folder no/such/folder first, or name another place with --out" in capsys.readouterr().err
    pytest.importorskip("matplotlib")
    assert frame.run(["report", "--png", "r.html/below"]) == 1
    assert "cannot write r.html/below: Not a directory; name another place with --png" in capsys.readouterr().err


def test_command_without_a_database_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(layers, "SYSTEM_CONFIG", tmp_path / "no-system.toml")
    monkeypatch.setenv("PROMPTTUNER_HOME", str(tmp_path / "empty"))
    assert frame.run(["report"]) == 3
    assert "nothing was ever submitted" in capsys.readouterr().err
