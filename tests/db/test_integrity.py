"""``db check`` finds what is wrong, and nothing in a healthy database."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest
from filled_store import fill
from sqlalchemy import text

from prompttuner.db import Store
from prompttuner.db.store.engine import WRITE
from prompttuner.db.upkeep.integrity import check


def spoil(store: Store, *statements: str) -> list[str]:
    """Do what no code of ours does, and check."""
    with store.engine.execution_options(**{WRITE: True}).begin() as raw:
        for statement in statements:
            raw.execute(text(statement))
    return [finding.text for finding in check(store) if finding.serious]


@pytest.fixture
def full(store: Store) -> Store:
    fill(store)
    return store


def test_a_healthy_database_has_no_findings(full: Store) -> None:
    assert check(full) == []


@pytest.mark.parametrize(
    ("statement", "found"),
    [
        ("UPDATE jobs SET state = 'dancing' WHERE id = 'j-run'", "1 job in the unknown state 'dancing'"),
        ("UPDATE allocations SET state = 'lost' WHERE uuid = 'u1'", "unknown state 'lost'"),
        ("UPDATE jobs SET finished_at = NULL WHERE id = 'j-done'", "ended without a time: j-done"),
        ("UPDATE jobs SET finished_at = 3 WHERE id = 'j-run'", "active but have an end time: j-run"),
        ("UPDATE jobs SET members = '[]' WHERE id = 'j-run'", "job j-run runs without members"),
        ("UPDATE jobs SET members = '[\"u0\"]' WHERE id = 'j-run'", "no live allocations: u0"),
        ("UPDATE jobs SET members = '[\"u1\"]' WHERE id = 'j-held'", "job j-held is held but has members"),
        ("UPDATE allocations SET job_id = 'j-run' WHERE uuid = 'u0'", "ended allocations hold a job: u0"),
        ("UPDATE allocations SET ended_at = NULL WHERE uuid = 'u0'", "allocations have ended without a time: u0"),
        ("UPDATE leases SET ended_at = NULL WHERE job_id = 'j-done'", "leases outlived their job"),
        ("DELETE FROM ownership", "0 rows instead of 1"),
        ("ALTER TABLE jobs ADD COLUMN surprise TEXT", "surprise"),
        ("DROP INDEX ix_jobs_state_submitted_at", "ix_jobs_state_submitted_at"),
    ],
)
def test_what_makes_no_sense_is_found(full: Store, statement: str, found: str) -> None:
    assert any(found in finding for finding in spoil(full, statement))


def test_missing_triggers_are_found(full: Store) -> None:
    on = "" if full.place.is_sqlite else " ON events"
    names = ["events_no_update", "events_no_delete"] if full.place.is_sqlite else ["events_append_only"]
    found = spoil(full, *(f"DROP TRIGGER {name}{on}" for name in names))
    assert len(found) == len(names)
    assert all("events could be changed" in finding for finding in found)


def test_a_readable_file_and_broken_references_are_found(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    with Store.open(path, create=True) as store:
        fill(store)
        path.chmod(0o644)
        (advice,) = check(store)
        assert not advice.serious
        assert "chmod 600" in advice.text
    with sqlite3.connect(path) as raw:  # without foreign keys
        raw.execute("DELETE FROM jobs WHERE id = 'j-run'")
    raw.close()
    with Store.open(path) as store:
        found: list[Any] = [finding.text for finding in check(store) if finding.serious]
    assert any("references to rows that do not exist" in text for text in found)


@pytest.mark.postgres
def test_tables_of_others_in_the_same_postgres_are_no_finding(postgres_url: str, tmp_path: Path) -> None:
    with Store.open(postgres_url, create=True, notes_dir=tmp_path) as store:
        assert spoil(store, "CREATE TABLE theirs (id integer)") == []
