"""Entries in tables: the folder says which there are; what they are, the database's index where it has them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from prompttuner.cli.state.reading import open_store
from prompttuner.errors import DatabaseError

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from prompttuner.bank import Shelf

__all__ = ["entry_rows", "outcomes_by_entry"]

Key = tuple[str, str, str]


def entry_rows(shelves: Sequence[Shelf]) -> tuple[list[dict[str, Any]], int]:
    """(entries as plain data, newest first; number of those that are refused).

    An entry that the index lacks is read from the folder, and a row whose entry has gone is not shown: without a
    database the answer is the same, only slower.
    """
    from prompttuner.bank import BadEntry
    from prompttuner.bank.folder.shelf import outcomes_in

    outcomes = outcomes_in(shelves)
    index = _index({str(shelf.bank.root.resolve()) for shelf in shelves})
    rows: list[dict[str, Any]] = []
    bad = 0
    for shelf in shelves:
        folder = str(shelf.bank.root.resolve())
        for entry_id in shelf.ids():
            try:
                about = index.get((folder, shelf.key, entry_id)) or _read(shelf, entry_id)
            except BadEntry:
                bad += 1
                continue
            told = outcomes.get((shelf.key, entry_id), ())
            used = {"used": len(told), "reached": sum(bool(o.get("reached")) for o in told)}
            rows.append({"id": entry_id, **about, "model": shelf.model, "bank": str(shelf.bank.root), **used})
    rows.sort(key=lambda row: (row["created"], row["id"]), reverse=True)
    return rows, bad


def outcomes_by_entry(session: Session, model: str, entries: Sequence[str]) -> dict[str, list[list[Any]]]:
    """How jobs fared that started from these entries for an LLM, ``[job, reached, iterations]`` each, of all banks."""
    if not entries:
        return {}
    from prompttuner.bank.folder.layout import model_key
    from prompttuner.db.queries import bank_index

    found: dict[str, list[list[Any]]] = {}
    try:
        shelf = model_key(model)
    except OSError:  # a local model that may not be read any more
        return {}
    for row in bank_index.find(session, entries):
        if row.shelf == shelf:
            found.setdefault(row.entry, []).extend(row.outcomes)
    return found


def _index(folders: set[str]) -> dict[Key, dict[str, Any]]:
    """What the index says of entries; nothing where there is no database, or one that cannot be used now."""
    from prompttuner.db.queries import bank_index

    try:
        store = open_store()
        if store is None:
            return {}
        with store, store.read() as session:
            rows = [row for folder in sorted(folders) for row in bank_index.load(session, folder)]
    except DatabaseError:
        return {}
    names = ("kind", "task", "source", "version", "ita", "created")
    return {(row.bank, row.shelf, row.entry): {name: getattr(row, name) for name in names} for row in rows}


def _read(shelf: Shelf, entry_id: str) -> dict[str, Any]:
    entry = shelf.read(entry_id)
    ita = entry.quality.get("ita")
    names = ("kind", "task", "source", "version")
    return {
        **{name: getattr(entry, name) for name in names},
        "ita": ita if type(ita) is int else None,
        "created": entry.created,
    }
