"""Which task an entry of a private bank was tuned for: where its job's data lies, never what is in it. No torch."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prompttuner.bank.folder.layout import ID_PATTERN, Sharing
from prompttuner.bank.folder.reading import BadEntry, read_object
from prompttuner.bank.folder.shelf import Shelf
from prompttuner.files import write_json

__all__ = ["Task", "note_task", "read_tasks"]

NEEDED_KEYS = ("model", "train", "train_sha256", "template", "prompt_length", "batch_size", "learning_rate", "seed")
SPEC_KEYS = (*NEEDED_KEYS, "learning_rate_auto")
"""What is noted of a spec; builds before noted no ``learning_rate_auto``, which then does not hold."""


@dataclass(frozen=True, slots=True)
class Task:
    """What a trial needs of the job that an entry comes from."""

    entry: str
    job: str
    spec: Mapping[str, Any]
    """Those of ``SPEC_KEYS`` that the resolved spec has."""
    size: int
    """Of the training data's file, in bytes; with its time it tells whether the data is still the same."""
    mtime_ns: int

    @property
    def unchanged(self) -> bool:
        """Whether the training data is where it was and as it was."""
        try:
            info = Path(str(self.spec["train"])).stat()
        except OSError:
            return False
        return (info.st_size, info.st_mtime_ns) == (self.size, self.mtime_ns)


def note_task(shelf: Shelf, entry_id: str, spec: Mapping[str, Any], job: str) -> None:
    """Note beside an entry which task it was tuned for; in a bank that others may read, nothing is noted."""
    if shelf.bank.sharing is not Sharing.PRIVATE or any(key not in spec for key in NEEDED_KEYS):
        return
    try:
        info = Path(str(spec["train"])).stat()
    except OSError:
        return
    folder = shelf.root / "tasks"
    shelf.bank.make_folder(folder, shelf.bank.modes.folder)
    about = {"entry": entry_id, "job": job, "spec": {key: spec[key] for key in SPEC_KEYS if key in spec}}
    write_json(folder / f"{entry_id}.json", {**about, "size": info.st_size, "mtime_ns": info.st_mtime_ns})


def read_tasks(shelf: Shelf) -> dict[str, Task]:
    """Noted tasks by entry; those of entries that have gone are forgotten for good, whether tried or not."""
    if shelf.bank.sharing is not Sharing.PRIVATE:
        return {}
    entries = set(shelf.ids())
    found = {}
    for path in sorted((shelf.root / "tasks").glob("*.json")):
        with contextlib.suppress(BadEntry, KeyError, TypeError):
            if path.stem not in entries:
                path.unlink(missing_ok=True)
                continue
            about = read_object(path) or {}
            spec = about["spec"]
            if isinstance(spec, dict) and all(key in spec for key in NEEDED_KEYS) and ID_PATTERN.fullmatch(path.stem):
                found[path.stem] = Task(path.stem, str(about["job"]), spec, int(about["size"]), int(about["mtime_ns"]))
    return found
