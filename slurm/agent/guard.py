"""Clocks that end an agent, whoever else is gone: the idle guard and the end of the walltime."""

from __future__ import annotations

import time
from collections.abc import Callable

__all__ = ["IdleGuard", "WalltimeGuard"]

Clock = Callable[[], float]


class IdleGuard:
    """Counts the seconds without a job on the agent's own monotonic clock.

    Only a lease (``busy``) resets it: neither bank work nor a living controller does.
    """

    def __init__(self, limit_s: float, clock: Clock = time.monotonic) -> None:
        self.limit_s = limit_s
        self._clock = clock
        self._since: float | None = None

    def busy(self) -> None:
        """There is a job: the clock stands still."""
        self._since = None

    def idle(self) -> None:
        """There is no job: the clock runs, from now or from before."""
        if self._since is None:
            self._since = self._clock()

    @property
    def idle_s(self) -> float:
        """Seconds without a job."""
        return 0.0 if self._since is None else self._clock() - self._since

    @property
    def expired(self) -> bool:
        """Whether the limit is reached."""
        return self._since is not None and self.idle_s >= self.limit_s


class WalltimeGuard:
    """Knows when the allocation ends; None means it never does."""

    def __init__(self, walltime_s: float | None, margin_s: float, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._margin_s = margin_s if walltime_s is None else min(margin_s, walltime_s / 4)
        self._end = None if walltime_s is None else clock() + walltime_s

    @property
    def left_s(self) -> float | None:
        """Seconds until the walltime; None without one."""
        return None if self._end is None else self._end - self._clock()

    @property
    def near(self) -> bool:
        """True once only the margin for a last checkpoint is left."""
        return self._end is not None and self._end - self._clock() <= self._margin_s
