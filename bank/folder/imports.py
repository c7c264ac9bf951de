"""Bring prompts in from files: JSONL, plain text, PEFT adapters. What is bad is named by line, the rest comes in."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from prompttuner.bank.folder.adapters import read_adapter
from prompttuner.bank.folder.entry import BadEntry, Entry, check_text
from prompttuner.errors import DataError

__all__ = ["Incoming", "read_prompts"]

MAX_LINES = 100_000
FIELDS = ("task", "source", "licence", "owner")


@dataclass(frozen=True, slots=True)
class Incoming:
    """One prompt that may come in, or why not."""

    where: str
    entry: Entry | None
    prompt: NDArray[np.float32] | None = None
    reason: str = ""


def read_prompts(path: Path, about: Entry) -> Iterator[Incoming]:
    """All prompts in a file or folder.

    A folder is a PEFT adapter; ``.jsonl`` has ``{"text": ...}`` a line, with ``task``, ``source``, ``licence`` and
    ``owner`` if known; any other file is plain text, one prompt a line.

    Args:
        about: values for what the file itself does not say.

    Raises:
        DataError: no such file, or not text.
    """
    if path.is_dir():
        yield _adapter(path, about)
        return
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (UnicodeDecodeError, OSError) as error:
        raise DataError(f"{path} cannot be read as text: {error}") from None
    lines = text.split("\n")
    if len(lines) > MAX_LINES:
        raise DataError(f"{path} has {len(lines)} lines; at most {MAX_LINES} at once")
    for number, line in enumerate(lines, start=1):
        if line.strip():
            where = f"{path.name}:{number}"
            try:
                entry = _json_line(line, about) if path.suffix == ".jsonl" else replace(about, text=line.strip())
                check_text(entry.text)
                yield Incoming(where, replace(entry, kind="text", source=entry.source or where))
            except BadEntry as error:
                yield Incoming(where, None, reason=str(error))


def _adapter(folder: Path, about: Entry) -> Incoming:
    try:
        prompt, base = read_adapter(folder)
    except BadEntry as error:
        return Incoming(str(folder), None, reason=str(error))
    source = about.source or f"PEFT adapter {folder.name}" + (f" of {base}" if base else "")
    return Incoming(str(folder), replace(about, kind="soft", source=source), prompt)


def _json_line(line: str, about: Entry) -> Entry:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise BadEntry(f"broken JSON: {error}") from None
    if not isinstance(value, dict) or not isinstance(value.get("text"), str):
        raise BadEntry('must be an object like {"text": "...", "task": "..."}')
    known = {}
    for name in FIELDS:
        if not isinstance(value.get(name, ""), str):
            raise BadEntry(f"{name!r} must be text")
        known[name] = value.get(name) or getattr(about, name)
    return replace(about, text=value["text"].strip(), **known)
