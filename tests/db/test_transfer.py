"""A state moves between databases whole or not at all; backups are consistent while somebody writes."""

from __future__ import annotations

import stat
import threading
from pathlib import Path

import pytest
from filled_store import everything, fill

from prompttuner.db import NoDatabase, OwnerInfo, Store
from prompttuner.db.queries import events
from prompttuner.db.upkeep.integrity import check
from prompttuner.db.upkeep.transfer import backup, copy
from prompttuner.errors import DatabaseError, NotOwner

DIRECTIONS = [
    ("sqlite", "sqlite"),
    pytest.param("sqlite", "postgres", marks=pytest.mark.postgres),
    pytest.param("postgres", "sqlite", marks=pytest.mark.postgres),
]


@pytest.fixture
def places(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, str]:
    class Lazy(dict[str, str]):
        def __missing__(self, kind: str) -> str:
            self[kind] = str(request.getfixturevalue("postgres_url") if kind == "postgres" else tmp_path / "a.db")
            return self[kind]

    return Lazy()


@pytest.mark.parametrize(("source", "target"), DIRECTIONS)
def test_a_copy_holds_everything_and_goes_on_from_there(
    places: dict[str, str], tmp_path: Path, source: str, target: str
) -> None:
    old = places[source]
    new = str(tmp_path / "b.db") if target == "sqlite" else places[target]
    with Store.open(old, create=True, notes_dir=tmp_path) as store:
        fill(store)
        before = everything(store)
        generation = store.owner().generation
    counts = copy(old, new)
    with Store.open(new, notes_dir=tmp_path) as store:
        assert everything(store) == before
        assert counts["jobs"] == 4
        assert counts["events"] == len(before["events"])
        assert not [finding for finding in check(store) if finding.serious]
        mine = store.acquire()
        assert mine.generation > generation
        store.transact(mine, lambda session: events.append(session, [events.NewEvent("test.note", "on")], 1.0))
        with store.read() as session:
            assert events.last_seq(session) == before["events"][-1]["seq"] + 1
    with Store.open(old) as store:
        assert everything(store) == before
        assert store.owner().owner is None


def test_a_running_controller_forbids_copying_its_state(places: dict[str, str], tmp_path: Path) -> None:
    with Store.open(places["sqlite"], create=True) as store:
        store.acquire()
        with pytest.raises(NotOwner, match="another controller"):
            copy(places["sqlite"], tmp_path / "b.db")


def test_only_an_empty_database_is_copied_into(url: str, tmp_path: Path) -> None:
    with Store.open(url, create=True, notes_dir=tmp_path) as store:
        fill(store)
        before = everything(store)
    other = tmp_path / "other.db"
    with Store.open(other, create=True) as small:
        mine = small.acquire()
        small.transact(mine, lambda session: events.append(session, [events.NewEvent("test.note", "x")], 1.0))
        small.release(mine)
    with pytest.raises(DatabaseError, match="not empty"):
        copy(other, url)
    with Store.open(url) as store:
        assert everything(store) == before
        assert store.owner().owner is None
    with pytest.raises(DatabaseError, match="the same"):
        copy(url, url)
    with pytest.raises(NoDatabase):
        copy(tmp_path / "nothing.db", other)


def test_a_backup_taken_while_somebody_writes_is_whole(url: str, tmp_path: Path) -> None:
    stop = threading.Event()
    with Store.open(url, create=True, notes_dir=tmp_path) as store:
        fill(store)
        mine = store.acquire(OwnerInfo("here", 1, "controller", "m", "1"), ttl_s=600.0)

        def write_pairs() -> None:
            pair = [events.NewEvent("test.pair", "first"), events.NewEvent("test.pair", "second")]
            while not stop.is_set():
                store.transact(mine, lambda session: events.append(session, pair, 1.0))
                stop.wait(0.01)

        writer = threading.Thread(target=write_pairs)
        writer.start()
        try:
            copies = [tmp_path / f"backup{number}.db" for number in range(3)]
            for path in copies:
                backup(url, path)
        finally:
            stop.set()
            writer.join()
        store.renew(mine)
    for path in copies:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        with Store.open(path, read_only=True) as saved:
            assert not check(saved)
            content = everything(saved)
        assert len(content["jobs"]) == 4
        assert [row["kind"] for row in content["events"]].count("test.pair") % 2 == 0
    assert sorted(item.name for item in tmp_path.glob(".backup*")) == []


def test_a_backup_never_replaces_a_file_and_leaves_no_scrap(url: str, tmp_path: Path) -> None:
    with Store.open(url, create=True, notes_dir=tmp_path) as store:
        fill(store)
    (tmp_path / "taken").write_text("precious")
    with pytest.raises(DatabaseError, match="exists already"):
        backup(url, tmp_path / "taken")
    assert (tmp_path / "taken").read_text() == "precious"
    with pytest.raises(DatabaseError, match="no folder"):
        backup(url, tmp_path / "no" / "folder" / "x.db")
    with pytest.raises(DatabaseError, match="no database"):
        backup(tmp_path / "nothing.db", tmp_path / "x.db")
    assert not (tmp_path / "x.db").exists()


def test_who_takes_a_restored_backup_outranks_all_that_came_after_it(tmp_path: Path) -> None:
    with Store.open(tmp_path / "a.db", create=True) as store:
        store.release(store.acquire())
        backup(tmp_path / "a.db", tmp_path / "saved.db")
        latest = store.acquire()
        store.release(latest)
    with Store.open(tmp_path / "saved.db") as restored:
        assert restored.acquire().generation >= latest.generation
