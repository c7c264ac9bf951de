"""What leave-one-out trials found: one JSON file a task, replaced as the trial goes on. No torch."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prompttuner.bank.folder.layout import ID_PATTERN, Sharing
from prompttuner.bank.folder.reading import BadEntry, parse_object, read_file
from prompttuner.bank.folder.shelf import Shelf
from prompttuner.files import write_json

__all__ = ["VOCAB", "Trial", "read_trials"]

VOCAB = "vocab"
"""Name of the vocabulary sample among the candidates."""
MAX_FILE = 16 << 20
FORMAT = 1


@dataclass(slots=True)
class Trial:
    """One task's trial, finished or not. Candidates are entry ids, or ``VOCAB``."""

    entry: str
    """The entry that was left out: the prompt that the task's job ended with."""
    job: str = ""
    entries: int = 0
    """How many entries the bank had."""
    losses: dict[str, list[float]] = field(default_factory=dict)
    """By candidate: its losses on the task's first samples, before any tuning."""
    after: dict[str, float] = field(default_factory=dict)
    """By candidate that was tuned: the lowest mean loss that a few steps came to."""
    complete: bool = False
    at: float = 0.0
    """Unix time of the last change."""

    @property
    def best(self) -> str | None:
        """The candidate that a few steps served best; None before any was tuned."""
        return min(self.after, key=lambda name: self.after[name], default=None)

    def save(self, shelf: Shelf) -> None:
        """Replace the task's file."""
        self.at = time.time()
        folder = shelf.root / "trials"
        shelf.bank.make_folder(folder, shelf.bank.modes.folder)
        value = {
            "format": FORMAT,
            "job": self.job,
            "entries": self.entries,
            "losses": {name: [_short(loss) for loss in losses] for name, losses in self.losses.items()},
            "after": {name: _short(loss) for name, loss in self.after.items()},
            "complete": self.complete,
            "at": self.at,
        }
        write_json(folder / f"{self.entry}.json", value, durable=self.complete)


def read_trials(shelf: Shelf) -> dict[str, Trial]:
    """All trials by the entry that was left out; those of entries that have gone are removed."""
    if shelf.bank.sharing is not Sharing.PRIVATE:
        return {}
    entries = set(shelf.ids())
    found = {}
    for path in sorted((shelf.root / "trials").glob("*.json")):
        if path.stem not in entries:
            with contextlib.suppress(OSError):
                path.unlink()
        elif ID_PATTERN.fullmatch(path.stem) and (trial := _read(path)) is not None:
            found[path.stem] = trial
    return found


def _read(path: Path) -> Trial | None:
    try:
        value = parse_object(read_file(path, MAX_FILE))
        if value is None or value.get("format") != FORMAT:
            return None
        return Trial(
            path.stem,
            str(value["job"]),
            int(value["entries"]),
            {str(name): [_loss(loss) for loss in losses] for name, losses in _items(value["losses"])},
            {str(name): _loss(loss) for name, loss in _items(value["after"])},
            bool(value["complete"]),
            float(value["at"]),
        )
    except (BadEntry, KeyError, TypeError, ValueError, AttributeError):
        return None


def _items(value: Mapping[str, Any]) -> list[tuple[str, Any]]:
    return list(value.items())


def _short(loss: float) -> float | None:
    """JSON has no infinity: a refused candidate's loss is null."""
    return float(f"{loss:.6g}") if math.isfinite(loss) else None


def _loss(value: Any) -> float:
    return math.inf if value is None else float(value)
