"""The database's index follows the bank's folder, costs an idle tick nothing, and is never believed over the folder."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from lab import Lab
from sqlalchemy import Row, event

from prompttuner.bank import Bank, Entry, Shelf
from prompttuner.bank.folder.layout import Sharing
from prompttuner.controller.upkeep import bank_index as indexing
from prompttuner.controller.upkeep.bank_index import BankIndexer
from prompttuner.db.queries import bank_index


@pytest.fixture(autouse=True)
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that was changed just now counts as settled, and every tick looks."""
    monkeypatch.setattr(indexing, "SETTLED_S", -60.0)
    monkeypatch.setattr(indexing, "EVERY_S", 0.0)


@pytest.fixture
def shelf(lab: Lab) -> Shelf:
    return Bank.create(lab.settings.bank_dir).shelf("org/tiny")


def add(shelf: Shelf, text: str, **about: Any) -> str:
    entry_id = shelf.add(Entry("text", "org/tiny", text=text, **about))
    later(shelf)
    return entry_id


def later(shelf: Shelf) -> None:
    """Time stamps of file systems are coarse: two changes within one of their ticks look like one."""
    seen = shelf.entries.stat().st_mtime_ns
    os.utime(shelf.entries, ns=(seen, seen + 10**7))


def rows(lab: Lab) -> dict[str, Row[Any]]:
    with lab.store.read() as session:
        return {row.entry: row for bank in bank_index.banks(session) for row in bank_index.load(session, bank)}


def statements(lab: Lab) -> int:
    """SQL statements of one more tick."""
    count = 0

    def note(*_: Any) -> None:
        nonlocal count
        count += 1

    event.listen(lab.store.engine, "before_cursor_execute", note)
    lab.tick()
    event.remove(lab.store.engine, "before_cursor_execute", note)
    return count


def test_entries_and_outcomes_come_in_and_go(lab: Lab, shelf: Shelf) -> None:
    one, two = add(shelf, "sort the letters", task="sorting"), add(shelf, "reverse")
    lab.tick()
    assert rows(lab)[one].task == "sorting" and rows(lab)[one].shelf == "org--tiny" and rows(lab).keys() == {one, two}
    shelf.add_outcome({"entry": one, "job": "j1", "reached": True, "ita": 12, "at": "2026-01-01"})
    shelf.add_outcome({"entry": one, "job": "j2", "reached": False, "ita": None, "at": "2026-01-02"})
    shelf.remove(two)
    later(shelf)
    lab.tick()
    assert {entry: row.outcomes for entry, row in rows(lab).items()} == {one: [["j1", True, 12], ["j2", False, None]]}


def test_the_same_text_for_two_llms_is_two_rows(lab: Lab, shelf: Shelf) -> None:
    add(shelf, "sort")
    shelf.bank.shelf("org/other").add(Entry("text", "org/other", text="sort"))
    lab.tick()
    with lab.store.read() as session:
        found = bank_index.load(session, str(shelf.bank.root.resolve()))
    assert [(row.shelf, row.model) for row in found] == [("org--other", "org/other"), ("org--tiny", "org/tiny")]


def test_what_an_own_job_did_with_a_shared_entry_is_known(lab: Lab, shelf: Shelf, tmp_path: Path) -> None:
    """It is noted in the own bank: the shared one may not be ours to write."""
    shared = Bank.create(tmp_path / "shared", Sharing.GROUP_READ).shelf("org/tiny")
    entry = shared.add(Entry("text", "org/tiny", text="sort"))
    shelf.ensure()
    indexer = BankIndexer(lab.controller.resources, [shelf.bank.root, shared.bank.root])
    assert indexer.follow() == 1
    shelf.add_outcome({"entry": entry, "job": "j1", "reached": True, "ita": 3})
    assert indexer.follow() == 1
    assert rows(lab)[entry].outcomes == [["j1", True, 3]] and rows(lab)[entry].bank == str(shared.bank.root)


def test_a_tick_without_changes_asks_the_database_nothing_about_banks(lab: Lab, shelf: Shelf) -> None:
    lab.tick()
    idle = statements(lab)
    add(shelf, "sort")
    assert statements(lab) > idle
    assert statements(lab) == idle


def test_a_large_import_is_spread_over_ticks(lab: Lab, shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(indexing, "PIECE", 4)
    ids = {add(shelf, f"prompt {number}") for number in range(10)}
    sizes = []
    for _ in range(4):
        lab.tick()
        sizes.append(len(rows(lab)))
    assert sizes == [4, 8, 10, 10] and rows(lab).keys() == ids


def test_lost_rows_are_made_again_and_wrong_ones_forgotten(lab: Lab, shelf: Shelf) -> None:
    entry = add(shelf, "sort")
    lab.tick()
    name = str(shelf.bank.root.resolve())
    stale = {"shelf": "org--tiny", "entry": "0" * 40, "model": "m", "kind": "text"}

    def spoil(session: Any) -> None:
        bank_index.remove(session, name, "org--tiny", [entry])
        bank_index.save(session, [{"bank": name, **stale}, {"bank": "/elsewhere", **stale}], 1.0)

    lab.store.transact(lab.ownership, spoil)
    assert rows(lab).keys() == {"0" * 40}
    lab.crash()  # a new controller compares once
    lab.tick()
    assert rows(lab).keys() == {entry}


def test_a_bank_that_cannot_be_read_keeps_its_rows_and_stops_no_tick(lab: Lab, shelf: Shelf) -> None:
    entry = add(shelf, "sort")
    lab.tick()
    about = shelf.bank.root / "bank.json"
    about.write_text('{"format": 99}')
    lab.crash()
    lab.tick()
    assert rows(lab).keys() == {entry}
    about.unlink()
    lab.tick()
    assert not rows(lab), "no bank is there any more"


def test_hostile_entries_and_outcomes_spoil_nothing(lab: Lab, shelf: Shelf) -> None:
    entry = add(shelf, "sort", task="x" * 5000)
    bad = add(shelf, "to be spoilt")
    (shelf.entries / bad / "entry.json").write_text('{"format": 1, "text": "\\ud800"}')
    lines = [
        {"entry": entry, "job": "half \ud800 and \0 nul" * 900, "reached": [1], "ita": 10**40},
        {"entry": entry, "job": {"a": 1}, "ita": True},
        {"entry": ["no", "id"]},
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines) + "[" * 100_000 + "\n"
    (shelf.root / "outcomes-eve.jsonl").write_text(text)
    os.mkfifo(shelf.root / "outcomes-pipe.jsonl")
    later(shelf)
    lab.tick()
    (row,) = rows(lab).values()
    assert row.entry == entry and len(row.task) == indexing.MAX_WORDS and len(row.outcomes) == 2
    assert row.outcomes[0][0].startswith("half ? and ? nul") and row.outcomes[0][1:] == [True, None]


def test_a_folder_that_changed_just_now_is_looked_at_again(
    lab: Lab, shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(indexing, "SETTLED_S", 3600.0)
    stamp = [(shelf.add(Entry("text", "org/tiny", text=word)), shelf.entries.stat().st_mtime_ns) for word in ("a", "b")]
    os.utime(shelf.entries, ns=(stamp[0][1], stamp[0][1]))
    lab.tick()
    third = shelf.add(Entry("text", "org/tiny", text="c"))
    os.utime(shelf.entries, ns=(stamp[0][1], stamp[0][1]))  # as if all came within one tick of the file system
    lab.tick()
    assert third in rows(lab)


def test_it_looks_rarely(lab: Lab, shelf: Shelf, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(indexing, "EVERY_S", 3600.0)
    indexer = BankIndexer(lab.controller.resources, [shelf.bank.root, tmp_path / "nowhere"])
    assert indexer.follow() == 0
    add(shelf, "sort")
    assert indexer.follow() == 0
    indexer.look_soon()
    assert indexer.follow() == 1
