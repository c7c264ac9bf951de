"""SIGKILL for tests: a fuse burns down with every side effect of a tick, and then ends the tick as a kill would."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from prompttuner import files
from prompttuner.db import Store
from prompttuner.errors import DatabaseError

__all__ = ["FullDisk", "Fuse", "Killed"]


class Killed(BaseException):
    """Not an Exception: no handler of the code under test may catch it."""


class Fuse:
    """Counts side effects; raises ``Killed`` before the one numbered ``burn_at`` (never when None)."""

    def __init__(self, burn_at: int | None = None) -> None:
        self.burn_at = burn_at
        self.count = 0
        self.names: list[str] = []

    def burn(self, name: str) -> None:
        if self.burn_at is not None and self.count >= self.burn_at:
            self.break_at(name)
        self.count += 1
        self.names.append(name)

    def break_at(self, name: str) -> None:
        raise Killed(name)

    @contextlib.contextmanager
    def lit(self, backend: Any) -> Iterator[Fuse]:
        """While the block runs: every commit, file replaced, linked, renamed or removed, and every call that changes
        something at the resource manager burns the fuse, once before it and, through the next one, once after it."""
        with contextlib.ExitStack() as stack:
            for owner, name in (
                (Store, "transact"),
                (files, "write_bytes"),
                (files.os, "link"),
                (Path, "unlink"),
                (Path, "rename"),
                (backend, "submit"),
                (backend, "cancel"),
            ):
                stack.enter_context(mock.patch.object(owner, name, self._burning(getattr(owner, name), name)))
            yield self

    def _burning(self, real: Callable[..., Any], name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.burn(f"before {name}")
            value = real(*args, **kwargs)
            self.burn(f"after {name}")
            return value

        return call


class FullDisk(Fuse):
    """Instead: from ``burn_at`` on nothing can be written, in the database or in a file, until somebody makes room."""

    def break_at(self, name: str) -> None:
        if name == "before transact":
            raise DatabaseError("the disk is full")
        if name in {"before write_bytes", "before link"}:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.count += 1
