"""Stores on both databases."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from prompttuner.db import Ownership, Store
from prompttuner.db.queries import jobs as job_table


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty place for a database, once on SQLite and once on Postgres."""
    if request.param == "sqlite":
        return str(tmp_path / "state.db")
    return str(request.getfixturevalue("postgres_url"))


@pytest.fixture
def store(url: str, tmp_path: Path) -> Iterator[Store]:
    with Store.open(url, create=True, notes_dir=tmp_path, busy_s=5.0, retry_s=20.0) as opened:
        yield opened


@pytest.fixture
def mine(store: Store) -> Ownership:
    return store.acquire(ttl_s=60.0)


@pytest.fixture
def add_jobs(store: Store, mine: Ownership) -> Callable[..., None]:
    """Adds queued jobs of the given ids; further columns as keywords."""

    def add(*ids: str, **columns: Any) -> None:
        rows = [{"id": name, "spec": {"n": name}, "pool": "p", "model": "m", **columns} for name in ids]
        store.transact(mine, lambda session: job_table.add(session, rows, 100.0, "submitted by a test"))

    return add
