"""What one tick saw and did."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["TickReport"]


@dataclass(slots=True)
class TickReport:
    """For logs, metrics and tests."""

    requests: int = 0
    jobs: int = 0
    """Active jobs after the tick."""
    allocations: int = 0
    submitted: int = 0
    actions: list[str] = field(default_factory=list)
    wake_at: float = float("inf")
    seconds: float = 0.0
