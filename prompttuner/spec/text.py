"""Text and paths that a user typed: what is no text, what is no path, what is too long to repeat in a message."""

from __future__ import annotations

import os
from pathlib import Path

from prompttuner.errors import SpecError

__all__ = ["expand", "is_file", "is_folder", "is_text", "shorten"]

SHOWN = 200


def is_text(text: str) -> bool:
    """Whether ``text`` can be written as UTF-8: half a surrogate pair cannot, and no tokenizer or database takes it."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def shorten(text: object) -> str:
    """As much of ``text`` as a message may repeat."""
    full = str(text)
    return full if len(full) <= SHOWN else f"{full[:SHOWN]}... ({len(full)} characters)"


def expand(text: str | Path) -> Path:
    """The path with a leading ``~`` replaced.

    Raises:
        SpecError: a NUL or no UTF-8 in it, or the home folder of a user who does not exist.
    """
    if "\0" in str(text):
        raise SpecError(f"path {shorten(text)!r} holds a NUL character")
    if not is_text(str(text)):
        raise SpecError(f"path {shorten(text)!r} is no UTF-8 text: give the file another name")
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise SpecError(f"path {shorten(text)!r}: there is no such user, or HOME is not set") from None


def is_folder(path: Path) -> bool:
    """``path.is_dir()`` that never raises: what cannot be looked at (a name too long, a loop of links) is none."""
    return os.path.isdir(path)  # noqa: PTH112


def is_file(path: Path) -> bool:
    """``path.is_file()`` that never raises."""
    return os.path.isfile(path)  # noqa: PTH113
