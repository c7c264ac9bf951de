"""A bank folder: immutable entries by content hash, one shelf for each LLM, readable while it is written."""

from __future__ import annotations

import contextlib
import getpass
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prompttuner.bank.folder.entry import (
    BadEntry,
    Entry,
    check_prompt,
    check_text,
    content_id,
    encode,
    read_entry,
    read_prompt,
)
from prompttuner.bank.folder.layout import BANK_FORMAT, ID_PATTERN, Modes, Sharing, model_key
from prompttuner.bank.folder.reading import read_lines, read_object
from prompttuner.errors import DataError, NotFound, SpecError
from prompttuner.files import make_private_dir, write_bytes, write_json

__all__ = ["Bank", "Shelf", "outcomes_in"]


class Bank:
    """A folder of prompts. Anyone who may read it can look prompts up; see ``Sharing`` for who may add."""

    def __init__(self, root: Path, sharing: Sharing) -> None:
        self.root = root
        self.sharing = sharing
        self.modes = Modes.of(sharing)

    @classmethod
    def open(cls, root: Path) -> Bank:
        """An existing bank.

        Raises:
            NotFound: there is none.
            DataError: its format is unknown.
        """
        value = read_object(root / "bank.json")
        if value is None:
            raise NotFound(f"{root} is not a prompt bank (no bank.json); 'prompttuner bank add' makes one")
        if value.get("format") != BANK_FORMAT:
            raise DataError(f"{root}/bank.json has an unknown format; it may come from a newer version of prompttuner")
        sharing = value.get("sharing")
        if sharing not in list(Sharing):
            raise DataError(f"{root}/bank.json: sharing must be one of {', '.join(Sharing)}")
        return cls(root, Sharing(sharing))

    @classmethod
    def create(cls, root: Path, sharing: Sharing = Sharing.PRIVATE) -> Bank:
        """Open the bank at ``root``, making it where there is none (private, mode 0700, unless told otherwise)."""
        if (root / "bank.json").exists():
            return cls.open(root)
        bank = cls(root, sharing)
        if sharing is Sharing.PRIVATE:  # a first prompt may make the home folder, too
            make_private_dir(root.parent)
        else:
            root.parent.mkdir(parents=True, exist_ok=True)
        bank.make_folder(root, bank.modes.folder)
        bank.make_folder(root / "models", bank.modes.folder)
        write_json(root / "bank.json", {"format": BANK_FORMAT, "sharing": str(sharing)}, bank.modes.file)
        return bank

    def shelf(self, model: str) -> Shelf:
        """The shelf of an LLM (hub id or folder); it comes into being with its first entry."""
        return Shelf(self, model_key(model), model)

    def shelf_like(self, other: Shelf) -> Shelf:
        """This bank's shelf for the same LLM as another bank's shelf."""
        return Shelf(self, other.key, other.model)

    def shelves(self) -> list[Shelf]:
        """All shelves, by name; a folder that is none (no readable ``model.json``) is passed over."""
        found = []
        for folder in sorted((self.root / "models").glob("*")):
            with contextlib.suppress(BadEntry):
                about = read_object(folder / "model.json")
                if about is None or folder.is_symlink():
                    continue
                found.append(Shelf(self, folder.name, str(about.get("model", folder.name))))
        return found

    @staticmethod
    def make_folder(path: Path, mode: int) -> None:
        """Create a folder with exactly this mode (whatever the umask); an existing one is left as it is."""
        with contextlib.suppress(FileExistsError):
            path.mkdir(mode=0o700)
            path.chmod(mode)


class Shelf:
    """The entries of one LLM in one bank."""

    def __init__(self, bank: Bank, key: str, model: str) -> None:
        self.bank = bank
        self.key = key
        self.model = model
        self.root = bank.root / "models" / key
        self.entries = self.root / "entries"
        self.cache = self.root / "cache"
        """For what can be made again from the entries."""

    @property
    def width(self) -> int | None:
        """Embedding width of the LLM, as far as known."""
        about = read_object(self.root / "model.json")
        width = about.get("width") if about is not None else None
        return width if type(width) is int else None

    def add(self, entry: Entry, prompt: NDArray[Any] | None = None, *, tuned_here: bool = False) -> str:
        """Store a prompt (a tensor (tokens, width), or ``entry.text``); returns its id.

        Adding a prompt that is already there changes nothing. Safe against other writers and against being cut off.

        Args:
            entry: what is known of it.
            prompt: the tensor of a soft prompt.
            tuned_here: the LLM itself was at work, so its width is known for sure; otherwise the first soft prompt that
                came in decides, and a wrong one would shut out all that are right.

        Raises:
            BadEntry: it is refused, the message says why.
            SpecError: this bank may not be written by this user.
        """
        if prompt is None:
            check_text(entry.text)
            entry = replace(entry, kind="text", shape=None)
            tensor = None
        else:
            tensor = check_prompt(prompt, None if tuned_here else self.width)
            entry = replace(entry, kind="soft", shape=(tensor.shape[0], tensor.shape[1]))
        entry = replace(entry, id=content_id(entry, tensor), owner=entry.owner or getpass.getuser())
        files = encode(entry, tensor)
        try:
            changed = tuned_here and tensor is not None and self.width != tensor.shape[1]
            self.ensure(None if tensor is None else tensor.shape[1], replace_width=changed)
            self._place(entry.id, files)
        except PermissionError as error:
            raise SpecError(f"cannot write to the bank {self.bank.root}: {error.strerror}; ask its owner") from None
        return entry.id

    def ids(self) -> list[str]:
        """All entries' ids, sorted; whether each is sound shows when it is read."""
        try:
            with os.scandir(self.entries) as items:
                return sorted(item.name for item in items if ID_PATTERN.fullmatch(item.name))
        except (FileNotFoundError, NotADirectoryError):
            return []

    def read(self, entry_id: str) -> Entry:
        """An entry's description.

        Raises:
            NotFound, BadEntry
        """
        if not ID_PATTERN.fullmatch(entry_id) or not os.path.lexists(self.entries / entry_id):
            raise NotFound(f"no entry {entry_id[:40]!r} in the bank {self.bank.root} for {self.model}")
        return read_entry(self.entries / entry_id)

    def prompt(self, entry: Entry, width: int | None = None) -> NDArray[np.float32]:
        """A soft entry's tensor (tokens, width).

        Raises:
            BadEntry
        """
        return read_prompt(self.entries / entry.id, entry, width)

    def find(self, prefix: str) -> list[str]:
        """Ids that begin with ``prefix``."""
        return [i for i in self.ids() if i.startswith(prefix.lower())]

    def remove(self, entry_id: str) -> None:
        """Take an entry out, and what is noted of its task; readers that hold the old index skip it.

        Raises:
            NotFound: there is none.
            SpecError: it belongs to another user.
        """
        folder = self.entries / entry_id
        if not ID_PATTERN.fullmatch(entry_id) or not os.path.lexists(folder):
            raise NotFound(f"no entry {entry_id[:40]!r} in the bank {self.bank.root} for {self.model}")
        gone = self.entries / f".gone-{entry_id}-{uuid.uuid4().hex[:8]}"
        try:
            folder.rename(gone)
        except PermissionError:
            raise SpecError(f"entry {entry_id[:12]} belongs to another user: only its owner can remove it") from None
        for kind in ("tasks", "trials"):
            (self.root / kind / f"{entry_id}.json").unlink(missing_ok=True)
        if gone.is_symlink() or gone.is_file():
            gone.unlink()
        else:
            shutil.rmtree(gone, ignore_errors=True)

    def check(self) -> Iterator[tuple[str, str]]:
        """(name, reason) of everything in the shelf that would be refused."""
        width = self.width
        try:
            names = sorted(item.name for item in os.scandir(self.entries))
        except (FileNotFoundError, NotADirectoryError):
            return
        for name in names:
            if name.startswith((".new-", ".gone-")):
                continue
            try:
                if not ID_PATTERN.fullmatch(name):
                    raise BadEntry("its name is not an entry's name (40 hex digits)")
                entry = read_entry(self.entries / name)
                if entry.kind == "soft":
                    self.prompt(entry, width)
            except BadEntry as error:
                yield name, str(error)

    def add_outcome(self, value: dict[str, Any]) -> None:
        """Note how a job fared that started from an entry (``entry``, ``job``, ``ita``, ``reached``, ``at``, ...)."""
        self.ensure()
        line = (json.dumps(value, separators=(",", ":"), sort_keys=True) + "\n").encode()
        path = self.root / f"outcomes-{_user_slug()}.jsonl"
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, self.bank.modes.file)
        try:
            if os.fstat(fd).st_size == 0:
                os.fchmod(fd, self.bank.modes.file)
            os.write(fd, line)
        finally:
            os.close(fd)

    def outcomes(self) -> dict[str, list[dict[str, Any]]]:
        """All outcomes noted in this shelf by entry id, one a job, the latest last; lines that are none are skipped."""
        return {entry_id: told for (_, entry_id), told in outcomes_in([self]).items()}

    def outcome_files(self) -> list[Path]:
        """Where outcomes are noted, a file a user."""
        return sorted(self.root.glob("outcomes-*.jsonl"))

    def ensure(self, width: int | None = None, *, replace_width: bool = False) -> None:
        """Make the shelf's folders, and note the LLM's embedding width once it is known."""
        modes = self.bank.modes
        for folder in (self.root, self.entries):
            self.bank.make_folder(folder, modes.folder)
        self.bank.make_folder(self.cache, modes.cache)
        about = self.root / "model.json"
        if not about.exists() or (width is not None and (replace_width or self.width is None)):
            with contextlib.suppress(PermissionError):  # another user's, in a bank that many may write
                write_json(about, {"model": self.model, "width": width}, modes.file)

    def _place(self, entry_id: str, files: dict[str, bytes]) -> None:
        target = self.entries / entry_id
        if target.is_dir():
            return
        scratch = self.entries / f".new-{uuid.uuid4().hex}"
        scratch.mkdir(mode=0o700)
        try:
            for name, data in files.items():
                write_bytes(scratch / name, data, self.bank.modes.file)
            scratch.chmod(self.bank.modes.entry)
            scratch.rename(target)
        except BaseException as error:
            shutil.rmtree(scratch, ignore_errors=True)
            if isinstance(error, OSError) and target.is_dir():
                return  # another writer was quicker with the same prompt
            raise


def outcomes_in(shelves: Iterable[Shelf]) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """Outcomes noted in these shelves by (shelf key, entry id), one a job, the latest last.

    How a job fared is noted in its user's own bank, wherever the entry is: look into all banks in reach together.
    """
    found: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
    for shelf in shelves:
        for path in shelf.outcome_files():
            for value in read_lines(path):
                if isinstance(value.get("entry"), str):
                    by_job = found.setdefault((shelf.key, value["entry"]), {})
                    by_job[str(value.get("job", len(by_job)))] = value
    return {key: sorted(by_job.values(), key=lambda o: str(o.get("at", ""))) for key, by_job in found.items()}


def _user_slug() -> str:
    return re.sub(r"[^A-Za-z0-9_-]+", "-", getpass.getuser())[:40] or str(os.getuid())
