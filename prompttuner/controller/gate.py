"""How many submissions are allowed now: a token bucket, and a breaker after failures in a row. Kept in a file."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from prompttuner.files import read_json, write_json

__all__ = ["Gate"]

FAILURES_TO_OPEN = 3
FIRST_PAUSE_S = 60.0
LONGEST_PAUSE_S = 3600.0


class Gate:
    """Remembers its state between cron ticks in a small JSON file; Unix seconds of the caller's clock."""

    def __init__(self, file: Path, per_minute: int) -> None:
        self._file = file
        self._per_minute = per_minute
        value: dict[str, Any] = read_json(file) or {}
        self._tokens = float(value.get("tokens", per_minute))
        self._at = float(value.get("at", 0.0))
        self._failures = int(value.get("failures", 0))
        self._paused_until = float(value.get("paused_until", 0.0))
        self.reason = str(value.get("reason", ""))
        """Why submissions pause, for `doctor` and `pool`."""

    def allowance(self, now: float) -> int:
        """Submissions allowed at once; 0 while paused."""
        if now < self._paused_until:
            return 0
        self._refill(now)
        return int(self._tokens)

    @property
    def paused_until(self) -> float:
        return self._paused_until

    def submitted(self, now: float) -> None:
        """One submission was taken."""
        self._refill(now)
        self._tokens = max(0.0, self._tokens - 1)
        self._failures, self.reason = 0, ""
        self._save()

    def failed(self, now: float, reason: str) -> None:
        """One submission failed: after a few in a row all pause, each time for longer."""
        self._refill(now)
        self._tokens = max(0.0, self._tokens - 1)
        self._failures += 1
        self.reason = reason
        if self._failures >= FAILURES_TO_OPEN:
            pause = FIRST_PAUSE_S * 2 ** (self._failures - FAILURES_TO_OPEN)
            self._paused_until = now + min(pause, LONGEST_PAUSE_S)
        self._save()

    def _refill(self, now: float) -> None:
        passed = max(0.0, now - self._at) if self._at else 60.0
        self._tokens = min(float(self._per_minute), self._tokens + passed * self._per_minute / 60.0)
        self._at = now

    def _save(self) -> None:
        value = {
            "tokens": self._tokens,
            "at": self._at,
            "failures": self._failures,
            "paused_until": self._paused_until,
            "reason": self.reason,
        }
        with contextlib.suppress(OSError):  # a lost count makes us slower or quicker by a few submissions, no more
            write_json(self._file, value)
