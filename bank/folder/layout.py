"""Where things lie in a bank folder, with which modes, and how an LLM gets its shelf's name."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

__all__ = ["BANK_FORMAT", "ENTRY_FILES", "ID_PATTERN", "Modes", "Sharing", "model_key"]

BANK_FORMAT = 1
ENTRY_FILES = frozenset({"entry.json", "prompt.safetensors"})
ID_PATTERN = re.compile(r"[0-9a-f]{40}")
_WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth")
_PROBE_BYTES = 1 << 16


class Sharing(StrEnum):
    """Who may read a bank folder, and who may add to it."""

    PRIVATE = "private"
    GROUP_READ = "group-read"
    GROUP_WRITE = "group-write"
    """Members of the folder's group may publish; nobody can remove or replace what another wrote (sticky folders)."""


@dataclass(frozen=True, slots=True)
class Modes:
    """File and folder modes of one way of sharing."""

    folder: int
    """Of every folder but those below."""
    entry: int
    """Of one entry's folder: written once, then never changed."""
    cache: int
    """Of the folder whose files any writer of the bank may replace."""
    file: int
    lock: int

    @classmethod
    def of(cls, sharing: Sharing) -> Modes:
        """The modes of folders and files for this kind of sharing."""
        if sharing is Sharing.PRIVATE:
            return cls(0o700, 0o700, 0o700, 0o600, 0o600)
        if sharing is Sharing.GROUP_READ:
            return cls(0o2750, 0o2750, 0o2750, 0o640, 0o640)
        return cls(0o3770, 0o2750, 0o2770, 0o640, 0o660)


def model_key(model: str) -> str:
    """Name of an LLM's shelf: the hub id, or a local folder's name with a fingerprint of its content.

    Soft prompts only mean something to the very weights they were tuned on. A folder is known by its configuration,
    and the sizes and both ends of its weight files (64 KiB each), so that copies share a shelf, fine-tunes do not, and
    no 13 GB are read.
    """
    folder = Path(model).expanduser()
    if not folder.is_dir():
        return _slug(model)
    digest = hashlib.sha256()
    files = sorted(p for p in folder.iterdir() if p.name == "config.json" or p.suffix in _WEIGHT_SUFFIXES)
    for path in files:
        size = path.stat().st_size
        digest.update(f"{path.name}:{size}:".encode())
        with path.open("rb") as handle:
            digest.update(handle.read(_PROBE_BYTES))
            handle.seek(max(0, size - _PROBE_BYTES))
            digest.update(handle.read(_PROBE_BYTES))
    return f"{_slug(folder.resolve().name)}-{digest.hexdigest()[:12]}"


def _slug(name: str) -> str:
    slug = re.sub(r"[^A-Za-z0-9._-]+", "-", name.replace("/", "--")).strip(".-")[:100]
    return slug or hashlib.sha256(name.encode()).hexdigest()[:16]
