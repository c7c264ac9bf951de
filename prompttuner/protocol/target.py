"""The target of a job, as it crosses processes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from prompttuner.protocol.wire import Message

__all__ = ["Target"]


@dataclass(frozen=True, slots=True)
class Target(Message):
    """What evaluation must reach.

    ``loss`` is the mean negative log likelihood of a target token (nats); the others are shares between 0 and 1.
    """

    metric: Literal["loss", "exact_match", "rougeL"]
    op: Literal["<=", ">="]
    value: float

    def reached(self, value: float) -> bool:
        """Whether an evaluation result meets the target; NaN never does."""
        return value <= self.value if self.op == "<=" else value >= self.value

    def __str__(self) -> str:
        return f"{self.metric}{self.op}{self.value:g}"
