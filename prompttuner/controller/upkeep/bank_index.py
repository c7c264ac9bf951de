"""The database's index of the Prompt Banks in reach, kept in step with their folders; the folders are what counts."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from prompttuner.bank import Bank, Shelf
from prompttuner.bank.folder.shelf import outcomes_in
from prompttuner.controller.resources import Resources
from prompttuner.db.queries import bank_index
from prompttuner.errors import NotFound, PromptTunerError

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

__all__ = ["BankIndexer", "index_row"]

Scalar: TypeAlias = str | int | float | bool | None
Outcome: TypeAlias = Mapping[str, Scalar]
"""How a job fared that started from an entry: ``job``, ``reached``, ``ita``, ... as its bank notes it."""
Outcomes: TypeAlias = Mapping[tuple[str, str], Sequence[Outcome]]

EVERY_S = 30.0
"""Least time between two looks at the folders: one ``stat`` a file that tells of changes, no database."""
SETTLED_S = 5.0
"""A folder that changed within these seconds may change again without its time stamp telling: looked at once more."""
PIECE = 200
"""Entries read in one tick; the others wait for the next, so that an import of thousands holds up nobody."""
MAX_WORDS = 500
MAX_OUTCOMES = 50
"""Latest outcomes of an entry that are indexed."""
MAX_ITA = 1 << 31


IndexRow: TypeAlias = dict[str, Scalar | list[list[Scalar]]]
"""Columns of an entry's row."""


@dataclass(slots=True)
class _Changes:
    """What one look at a bank found that the rows lack."""

    rows: list[IndexRow] = field(default_factory=list)
    gone: dict[str, list[str]] = field(default_factory=dict)
    complete: bool = True


class BankIndexer:
    """Follows the banks' folders. All it remembers can be found out again: a new process compares once."""

    def __init__(self, resources: Resources, folders: Sequence[Path]) -> None:
        self._res = resources
        self._folders = tuple(folders)
        self._stamps: dict[Path, object] = {}
        self._refused: set[tuple[str, str, str]] = set()
        """Entries that could not be read: tried once, entries never change."""
        self._looked = float("-inf")
        self._strangers_gone = False

    def look_soon(self) -> None:
        """Look again in the next tick: an own job has just left something in the bank."""
        self._looked = float("-inf")

    def follow(self) -> int:
        """Bring the rows in line with folders that have changed; number of rows written or removed.

        A bank that cannot be read now keeps its rows: nobody uses them without its folder.
        """
        now = time.monotonic()
        if now - self._looked < EVERY_S:
            return 0
        self._looked = now
        self._forget_strangers()
        banks = {folder: shelves for folder in self._folders if (shelves := _shelves(folder)) is not None}
        every = [shelf for shelves in banks.values() for shelf in shelves]
        try:
            noted = [_noted(shelf) for shelf in every]
            stamps = {folder: ([_entries(shelf) for shelf in shelves], noted) for folder, shelves in banks.items()}
            changed = [folder for folder in banks if self._stamps.get(folder) != stamps[folder]]
            outcomes = outcomes_in(every) if changed else {}
            return sum(self._follow(folder, banks[folder], outcomes, stamps[folder]) for folder in changed)
        except OSError:  # a folder that went away under us: the next look sees it
            return 0

    def _forget_strangers(self) -> None:
        """Rows of banks that the settings no longer name, once a process."""
        if self._strangers_gone:
            return
        known = {_name(folder) for folder in self._folders}
        strangers = self._res.state.query(bank_index.banks) - known
        if strangers:

            def work(session: Session) -> None:
                for bank in strangers:
                    bank_index.forget_bank(session, bank)

            self._res.state.write(work)
        self._strangers_gone = True

    def _follow(self, folder: Path, shelves: Sequence[Shelf], outcomes: Outcomes, stamp: tuple[Any, Any]) -> int:
        name = _name(folder)
        rows = self._res.state.query(lambda session: bank_index.load(session, name))
        changes = _compare(name, shelves, rows, outcomes, self._refused)
        if changes.rows or changes.gone:

            def work(session: Session) -> None:
                for shelf, entries in changes.gone.items():
                    bank_index.remove(session, name, shelf, entries)
                bank_index.save(session, changes.rows, self._res.now())

            self._res.state.write(work)
        if not changes.complete:
            self.look_soon()
        elif _settled(stamp):
            self._stamps[folder] = stamp
        return len(changes.rows) + sum(map(len, changes.gone.values()))


def index_row(bank: str, shelf: Shelf, entry_id: str, outcomes: Sequence[Outcome]) -> IndexRow:
    """The row of an entry, with nothing in it that a foreign file may have made too long or too large.

    Raises:
        BadEntry, NotFound: the entry is refused, or has gone.
    """
    entry = shelf.read(entry_id)
    words = ("task", "source", "owner", "licence", "version", "created")
    return {
        "bank": bank,
        "shelf": shelf.key,
        "entry": entry_id,
        "model": _word(shelf.model),
        "kind": entry.kind,
        "ita": _iterations(entry.quality.get("ita")),
        "outcomes": _outcomes(outcomes),
        **{name: _word(getattr(entry, name)) for name in words},
    }


def _shelves(folder: Path) -> list[Shelf] | None:
    """A bank's shelves; none where there is no bank, None where it cannot be read now."""
    try:
        return Bank.open(folder).shelves()
    except NotFound:
        return []
    except (PromptTunerError, OSError):
        return None


def _compare(
    bank: str, shelves: Sequence[Shelf], rows: Sequence[Any], outcomes: Outcomes, refused: set[tuple[str, str, str]]
) -> _Changes:
    indexed: dict[str, dict[str, Any]] = {}
    for row in rows:
        indexed.setdefault(row.shelf, {})[row.entry] = row
    changes, tried = _Changes(), 0
    for shelf in shelves:
        known = indexed.pop(shelf.key, {})
        ids = shelf.ids()
        if gone := sorted(known.keys() - set(ids)):
            changes.gone[shelf.key] = gone
        for entry_id in ids:
            key, told = (bank, shelf.key, entry_id), outcomes.get((shelf.key, entry_id), ())
            if key in refused or (entry_id in known and known[entry_id].outcomes == _outcomes(told)):
                continue
            if tried == PIECE:
                changes.complete = False
                break
            tried += 1
            try:
                changes.rows.append(index_row(bank, shelf, entry_id, told))
            except PromptTunerError:  # it is no candidate, so it is not indexed; 'bank check' says why
                refused.add(key)
    for shelf_key, known in indexed.items():
        changes.gone[shelf_key] = sorted(known)
    return changes


def _entries(shelf: Shelf) -> tuple[str, int]:
    """What changes whenever entries come or go."""
    try:
        return (shelf.key, shelf.entries.stat().st_mtime_ns)
    except FileNotFoundError:
        return (shelf.key, 0)


def _noted(shelf: Shelf) -> tuple[tuple[str, int, int], ...]:
    """What changes whenever an outcome is noted."""
    files = [(path, path.lstat()) for path in shelf.outcome_files()]
    return tuple((str(path), info.st_mtime_ns, info.st_size) for path, info in files)


def _settled(stamp: tuple[Any, Any]) -> bool:
    entries, noted = stamp
    times = [*(at for _, at in entries), *(at for files in noted for _, at, _ in files)]
    return time.time() - max(times, default=0) / 1e9 > SETTLED_S


def _outcomes(outcomes: Sequence[Outcome]) -> list[list[Scalar]]:
    return [
        [_word(str(o.get("job", ""))), bool(o.get("reached")), _iterations(o.get("ita"))]
        for o in outcomes[-MAX_OUTCOMES:]
    ]


def _iterations(value: Any) -> int | None:
    return value if type(value) is int and 0 <= value < MAX_ITA else None


def _word(text: str) -> str:
    return text[:MAX_WORDS].encode("utf-8", "replace").decode().replace("\0", "?")


def _name(folder: Path) -> str:
    return str(folder.expanduser().resolve())
