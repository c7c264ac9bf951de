"""The spec of a submitted job: resolved, frozen, complete. What a user may write is ``prompttuner.spec.JobSpec``."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from typing import ClassVar

from prompttuner.protocol.initial import AUTO, InitialPrompt
from prompttuner.protocol.target import Target
from prompttuner.protocol.wire import Message

__all__ = ["MAX_PRIORITY", "SPEC_VERSION", "PacedSpec", "ResolvedSpec", "check_priority", "check_time"]

SPEC_VERSION = 1
MAX_PRIORITY = 1000
MAX_COUNT = 1 << 31


def check_time(value: float) -> float:
    """Unix seconds that can be shown as a date.

    Raises:
        ValueError: no date is meant by it.
    """
    try:
        datetime.fromtimestamp(value, UTC)
    except (ValueError, OverflowError, OSError):
        raise ValueError(f"{value!r} is no point in time (Unix seconds)") from None
    return value


def check_priority(value: int) -> int:
    """A priority within its bounds.

    Raises:
        ValueError: out of bounds.
    """
    if abs(value) > MAX_PRIORITY:
        raise ValueError(f"priority {value}: between -{MAX_PRIORITY} and {MAX_PRIORITY}, please")
    return value


@dataclass(frozen=True, slots=True, kw_only=True)
class PacedSpec(Message):
    """A paced stand-in for tuning: steps of a stated length until a stated number of them is done."""

    step_s: float
    """Seconds that a step takes one member."""
    speedup: tuple[float, ...]
    """For 1, 2, 3... members; beyond its end the last value holds."""
    iterations: int
    """To the target."""
    looked_up: int | None = None
    """To the target after a Prompt Bank lookup; None: as many."""
    lookup_s: float = 0.0
    """Seconds that the lookup sleeps."""
    accelerated: float | None = None
    """The replay's acceleration."""

    def __post_init__(self) -> None:
        if not 0 <= self.step_s < math.inf or not self.speedup or not min(self.speedup) > 0:
            raise ValueError("step_s must be at least 0 and every speed-up above 0")

    def needed(self, looked_up: bool) -> int:
        """Iterations to the target, with a lookup or without."""
        return self.iterations if self.looked_up is None or not looked_up else self.looked_up


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedSpec(Message):
    """All fields of ``JobSpec``, and what resolving adds. Paths are absolute, times are Unix seconds."""

    FILE: ClassVar[str] = "spec.json"

    model: str
    """Absolute folder, or hub id."""
    target: Target
    max_iterations: int
    batch_size: int
    train: str = ""
    eval: str = ""
    template: str = ""
    deadline: str | None = None
    """As the user wrote it."""
    prompt_length: int | None = None
    """Virtual tokens; None where the prompt sets it."""
    learning_rate: float = 0.01
    """Of AdamW; where ``learning_rate_auto`` holds, what agents of a build that does not know it take."""
    learning_rate_auto: bool = False
    """Whether the rate follows the scale of the model's embeddings."""
    eval_every: int = 1
    eval_samples: int | None = None
    seed: int = 0
    min_gpus: int = 1
    max_gpus: int = 1
    initial_prompt: InitialPrompt = AUTO
    name: str | None = None
    priority: int = 0
    on_miss: str = "continue"
    bucketing: bool = False
    trust_remote_code: tuple[str, ...] = ()
    allow_unused_weights: bool = False
    allow_unknown_tokens: bool = False
    dtype: str = "auto"
    gpu_type: str | None = None
    setup: tuple[str, ...] = ()
    note: str = ""
    spec_version: int = SPEC_VERSION
    model_name: str = ""
    """The model as the user wrote it."""
    train_sha256: str | None = None
    eval_sha256: str | None = None
    train_count: int | None = None
    eval_count: int | None = None
    initial_prompt_sha256: str | None = None
    """None: no file."""
    deadline_at: float | None = None
    """None: best effort."""
    deadline_iso: str | None = None
    submitted_at: float | None = None
    submitted_iso: str | None = None
    paced: PacedSpec | None = None

    def __post_init__(self) -> None:
        counts = {name: getattr(self, name) for name in ("max_iterations", "batch_size", "min_gpus", "eval_every")}
        for name, value in {**counts, "max_gpus": self.max_gpus}.items():
            if not 1 <= value <= MAX_COUNT:
                raise ValueError(f"{name} {value}: between 1 and {MAX_COUNT}, please")
        if self.min_gpus > self.max_gpus:
            raise ValueError(f"min_gpus ({self.min_gpus}) is above max_gpus ({self.max_gpus})")
        if not math.isfinite(self.target.value):
            raise ValueError(f"the target {self.target} is no number")
        check_priority(self.priority)
        for at in (self.deadline_at, self.submitted_at):
            if at is not None:
                check_time(at)

    @classmethod
    def keys(cls) -> tuple[str, ...]:
        """The keys of its JSON object."""
        return tuple(f.name for f in fields(cls))
