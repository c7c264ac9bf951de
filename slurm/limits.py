"""Manners towards the site: how many allocations may be asked for now. Pure objects with an explicit clock.

Their state is plain JSON, so that cron ticks on different hosts share it through the database.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from prompttuner.slurm.refusals import what_to_set
from prompttuner.spec.when import iso

__all__ = ["Allowance", "Breaker", "HardCaps", "TokenBucket", "allowance"]


@dataclass(slots=True)
class TokenBucket:
    """At most ``rate_per_minute`` submissions a minute, in bursts of at most ``burst``."""

    rate_per_minute: float
    burst: float
    tokens: float | None = None
    at: float | None = None

    def available(self, now: float) -> int:
        """Whole submissions allowed at ``now`` (seconds). A clock that jumps back gives nothing away."""
        if self.tokens is None:
            self.tokens = self.burst
        elapsed = 0.0 if self.at is None else max(0.0, now - self.at)
        self.tokens = min(self.burst, self.tokens + elapsed * self.rate_per_minute / 60.0)
        self.at = now
        return math.floor(self.tokens + 1e-9)

    def take(self, now: float, count: int = 1) -> None:
        """Account for submissions that were made (refused ones too: the site saw them)."""
        self.available(now)
        assert self.tokens is not None
        self.tokens = max(0.0, self.tokens - count)

    def to_json(self) -> dict[str, Any]:
        """The state as JSON values."""
        return {"tokens": self.tokens, "at": self.at}

    def restore(self, state: Mapping[str, Any] | None) -> None:
        """Take over a stored state; nonsense counts as an empty bucket, never as a full one."""
        if state is None:
            return
        tokens, at = _number(state.get("tokens")), _number(state.get("at"))
        self.tokens, self.at = (0.0, at) if tokens is None else (min(max(tokens, 0.0), self.burst), at)


@dataclass(slots=True)
class Breaker:
    """Pauses after ``threshold`` failures in a row: first for ``pause_s``, doubled each time up to ``max_pause_s``.

    When a pause is over one attempt is allowed; its success closes the breaker, its failure opens it again.
    """

    threshold: int = 5
    pause_s: float = 60.0
    max_pause_s: float = 1800.0
    failures: int = 0
    open_until: float = 0.0
    last_error: str = ""
    failed_at: float = 0.0
    """When the last failure was (Unix seconds)."""

    def allows(self, now: float) -> bool:
        """Whether a call may be made now."""
        return self.failures < self.threshold or self._is_over(now)

    def probing(self, now: float) -> bool:
        """True when only one attempt is allowed, to see whether it works again."""
        return self.failures >= self.threshold and self._is_over(now)

    def _is_over(self, now: float) -> bool:
        # An end further away than any pause was written by a clock that has since been put right.
        return not now < self.open_until <= now + self.max_pause_s

    def success(self) -> None:
        """A call went well: the count of failures starts again."""
        self.failures, self.open_until, self.last_error, self.failed_at = 0, 0.0, "", 0.0

    def failure(self, now: float, error: str, at_once: bool = False) -> None:
        """A call failed; ``at_once``: pause after this one already, as each try costs much."""
        self.failures = max(self.failures + 1, self.threshold if at_once else 0)
        self.last_error, self.failed_at = error[:500], now
        if self.failures >= self.threshold:
            doublings = min(self.failures - self.threshold, 30)
            self.open_until = now + min(self.max_pause_s, self.pause_s * 2**doublings)

    def refusal(self) -> str | None:
        """The last failure of a submission in words, with its time and what to set; None after a success."""
        if self.failures == 0:
            return None
        when = f" at {iso(self.failed_at)}" if self.failed_at else ""
        return f"Slurm took no allocation{when}: {self.last_error}; {what_to_set(self.last_error)}"

    def describe(self, now: float) -> str | None:
        """What ``doctor`` and ``pool`` say while it is open; None when all is well."""
        if self.failures < self.threshold:
            return None
        wait = max(0.0, self.open_until - now)
        return f"paused for {wait:.0f} s more after {self.failures} failures in a row; the last: {self.last_error}"

    def to_json(self) -> dict[str, Any]:
        """The state as JSON values."""
        return {
            "failures": self.failures,
            "open_until": self.open_until,
            "last_error": self.last_error,
            "failed_at": self.failed_at,
        }

    def restore(self, state: Mapping[str, Any] | None) -> None:
        """Take over a state that ``to_json`` gave."""
        if state is None:
            return
        self.failures = int(_number(state.get("failures")) or 0)
        self.open_until = _number(state.get("open_until")) or 0.0
        self.last_error = str(state.get("last_error", ""))[:500]
        self.failed_at = _number(state.get("failed_at")) or 0.0


@dataclass(frozen=True, slots=True)
class HardCaps:
    """Never exceeded, whatever a policy wants; inf where there is none."""

    gpus: float = float("inf")
    jobs: float = float("inf")
    """Allocations, queued ones included."""


@dataclass(frozen=True, slots=True)
class Allowance:
    """How many allocations may be asked for in this tick, and what keeps it from being more."""

    requests_now: int
    reason: str = field(default="")


def allowance(
    now: float,
    bucket: TokenBucket,
    breaker: Breaker,
    caps: HardCaps,
    *,
    held_gpus: int,
    held_jobs: int,
    gpus_each: int = 1,
) -> Allowance:
    """The tightest of all limits, for ``SiteLimits.requests_now``.

    ``held_*`` count every allocation that has not ended, intents included (an intent may yet turn out to run).
    """
    if not breaker.allows(now):
        return Allowance(0, breaker.describe(now) or "")
    room = [
        (float(bucket.available(now)), f"at most {bucket.rate_per_minute:g} submissions a minute"),
        (
            _whole((caps.gpus - held_gpus) / gpus_each),
            f"GPUs held or asked for: {held_gpus} of {caps.gpus:g} at most",
        ),
        (caps.jobs - held_jobs, f"allocations there: {held_jobs} of {caps.jobs:g} at most"),
    ]
    if breaker.probing(now):
        room.append((1.0, "one attempt, to see whether Slurm takes submissions again"))
    number, reason = min(room, key=lambda pair: pair[0])
    return Allowance(max(0, int(number)), reason)


def _whole(value: float) -> float:
    return value if math.isinf(value) else float(math.floor(value))


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)
