"""What every part of a controller is given: settings, spool, clock, the state it may write, and a place to warn."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from prompttuner.config import Settings
from prompttuner.db import Ownership, Store
from prompttuner.slurm.spool import Spool

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

__all__ = ["Clock", "Resources", "State", "Warnings"]

T = TypeVar("T")

log = logging.getLogger("prompttuner.controller")

SAY_AGAIN_S = 3600.0
MOST_WARNINGS = 1000


@dataclass(frozen=True, slots=True)
class Clock:
    """Two clocks: what time it is, and how much time has passed."""

    now: Callable[[], float] = time.time
    """Unix seconds; may jump."""
    steady: Callable[[], float] = time.monotonic
    """Seconds that never jump, for gaps between ticks."""


@dataclass(frozen=True, slots=True)
class State:
    """The database together with the ownership that fences every write to it."""

    store: Store
    ownership: Ownership

    @property
    def generation(self) -> int:
        """The fencing generation: the number of this owner."""
        return self.ownership.generation

    def query(self, fn: Callable[[Session], T]) -> T:
        """Run ``fn`` in a read session; see ``Store.query``."""
        return self.store.query(fn)

    def write(self, fn: Callable[[Session], T]) -> T:
        """Run ``fn`` in one write transaction; see ``Store.transact``.

        Raises:
            NotOwner: somebody else owns the state by now; nothing was written.
            DatabaseError: the database cannot be used.
        """
        return self.store.transact(self.ownership, fn)

    def keep(self) -> None:
        """Renew the ownership if a third of its time has passed; raises NotOwner if it was lost."""
        self.store.keep(self.ownership)

    def confirm(self) -> None:
        """Look whether we still own the state, before anything outside the database; raises NotOwner if not."""
        self.store.confirm(self.ownership)


@dataclass(slots=True)
class Warnings:
    """What was warned of, so that the same is said again only after an hour."""

    steady: Callable[[], float] = time.monotonic
    _said: dict[str, float] = field(default_factory=dict)

    def say(self, message: str) -> None:
        """Put it into the log unless that was done a while ago."""
        now = self.steady()
        if now - self._said.get(message, float("-inf")) < SAY_AGAIN_S:
            return
        if len(self._said) >= MOST_WARNINGS:
            self._said.clear()
        self._said[message] = now
        log.warning("%s", message)

    def __iter__(self) -> Iterator[str]:
        return iter(self._said)


@dataclass(frozen=True, slots=True)
class Resources:
    """Shared by the parts of one controller; each part keeps what it remembers to itself."""

    settings: Settings
    spool: Spool
    state: State
    clock: Clock
    warnings: Warnings

    def now(self) -> float:
        """Unix seconds."""
        return self.clock.now()

    def steady(self) -> float:
        """Seconds that never jump."""
        return self.clock.steady()

    def warn(self, message: str) -> None:
        """Say something in the log; the same again only after an hour."""
        self.warnings.say(message)
