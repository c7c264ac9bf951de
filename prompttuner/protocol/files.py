"""Messages in files: read with a reason where they make no sense, written atomically."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from prompttuner.files import create_json, read_json, write_json
from prompttuner.protocol.wire import Message, Unread

__all__ = ["create_message", "read_message", "understood", "write_message"]

M = TypeVar("M", bound=Message)


def read_message(
    kind: type[M], path: Path | str, check: Callable[[os.stat_result], None] | None = None
) -> M | Unread | None:
    """The message in a file; None where there is none yet (or none that can be read now, on a network file system).

    A placeholder (an empty object), which is there so that those who poll it do not miss it, counts as none.

    Raises:
        OSError: the file cannot be opened.
        SpoolError: ``check`` refuses the file (see :func:`prompttuner.files.read_json`).
    """
    value = read_json(path, check)
    if value is None or value == {}:
        return None
    message = kind.read(value)
    return Unread(f"{path} makes no sense: {message.why}") if isinstance(message, Unread) else message


def understood(message: M | Unread | None) -> M | None:
    """The message; None too where it makes no sense."""
    return None if isinstance(message, Unread) else message


def write_message(path: Path, message: Message, *, durable: bool = True) -> None:
    """Replace a file atomically; ``durable`` as in :func:`prompttuner.files.write_bytes`.

    Raises:
        OSError: disk full, folder missing.
    """
    write_json(path, message.to_json(), durable=durable)


def create_message(path: Path, message: Message) -> bool:
    """Create a file only if it does not exist yet; True if this call made it.

    Raises:
        OSError: disk full, folder missing.
    """
    return create_json(path, message.to_json())
