"""A SQLite file that is removed or replaced while a controller has it open."""

from __future__ import annotations

from pathlib import Path

import pytest

from prompttuner.db import Store
from prompttuner.db.queries import events
from prompttuner.db.upkeep.transfer import backup
from prompttuner.errors import DatabaseError, NotOwner

NOTE = [events.NewEvent("test.note", "test")]


def test_a_restored_backup_is_seen_by_who_has_the_old_file_open(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    with Store.open(path, create=True) as store:
        mine = store.acquire()
        backup(path, tmp_path / "saved.db")
        store.transact(mine, lambda session: events.append(session, NOTE, 1.0))
        (tmp_path / "saved.db").replace(path)
        assert store.query(events.latest) == []
        with Store.open(path) as other:
            other.release(mine)
            theirs = other.acquire()
            with pytest.raises(NotOwner):
                store.transact(mine, lambda session: events.append(session, NOTE, 2.0))
            other.release(theirs)


def test_a_database_that_was_removed_takes_no_more_writes(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    with Store.open(path, create=True, retry_s=0.5) as store:
        mine = store.acquire()
        path.unlink()
        with pytest.raises(DatabaseError):
            store.transact(mine, lambda session: events.append(session, NOTE, 1.0))
        with pytest.raises(DatabaseError):
            store.query(events.latest)
