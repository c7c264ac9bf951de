"""Read files that somebody else may have written: no links, pipes or giants, and no JSON that breaks the parser."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prompttuner.errors import DataError

__all__ = ["BadEntry", "parse_object", "read_file", "read_lines", "read_object"]

MAX_OBJECT = 64 << 10
MAX_LINES = 32 << 20
"""Bytes of a file of lines; a million outcomes are less."""


class BadEntry(DataError):
    """An entry that is refused; the message says why."""


def read_file(path: Path, limit: int) -> bytes:
    """The content of a regular file of at most ``limit`` bytes.

    Raises:
        BadEntry: missing, a link, a pipe, too large, not readable.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise BadEntry(f"{path.name} cannot be read (a link, or {error.strerror})") from None
    with os.fdopen(fd, "rb") as handle:
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode):
            raise BadEntry(f"{path.name} is not a regular file")
        if info.st_size > limit:
            raise BadEntry(f"{path.name} has {info.st_size} bytes, more than {limit}")
        return handle.read(limit + 1)


def parse_object(data: bytes) -> dict[str, Any] | None:
    """The JSON object in these bytes; None if that is not what they hold."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def read_object(path: Path) -> dict[str, Any] | None:
    """The object in a small JSON file; None where there is no such file, or it holds something else.

    Raises:
        BadEntry: it may not be read, is a link or a pipe, or is too large.
    """
    return parse_object(read_file(path, MAX_OBJECT)) if os.path.lexists(path) else None


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The JSON objects in a file of lines; other lines, and files that are not to be trusted, are passed over."""
    try:
        data = read_file(path, MAX_LINES)
    except BadEntry:
        return
    for line in data.splitlines():
        if (value := parse_object(line)) is not None:
            yield value
