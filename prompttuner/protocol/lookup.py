"""What came of a job's Prompt Bank lookup."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from prompttuner.protocol.wire import Message

__all__ = ["Expected", "LookupCandidate", "LookupReport", "RaceRound", "ScoringRound"]


@dataclass(frozen=True, slots=True)
class LookupCandidate(Message):
    """A candidate of a lookup, with its losses (nats a target token; None: not scored)."""

    SPARSE: ClassVar[bool] = True

    name: str = ""
    score: float | None = None
    after_steps: float | None = None
    """After the race's tuning steps."""
    kind: str | None = None
    task: str | None = None
    source: str | None = None
    version: str | None = None


@dataclass(frozen=True, slots=True)
class ScoringRound(Message):
    """A round of scoring: so many candidates were scored on so many samples."""

    round: str = ""
    candidates: int = 0
    samples: int = 0


@dataclass(frozen=True, slots=True)
class RaceRound(Message):
    """A round of the race: so many candidates were tuned for so many steps."""

    candidates: int = 0
    steps: int = 0


@dataclass(frozen=True, slots=True)
class Expected(Message):
    """What the lookup should save."""

    factor: float = 1.0
    """Iterations to the target, as a share of those from a vocabulary start."""
    origin: str = "assumed"


@dataclass(frozen=True, slots=True)
class LookupReport(Message):
    """What a lookup found and why, and what it cost."""

    FILE: ClassVar[str] = "lookup.json"

    source: str | None = None
    """Where the prompt came from: ``bank:<entry>``, ``own text`` or ``vocab``."""
    chosen: str | None = None
    why: str | None = None
    strategy: str | None = None
    granted_s: float | None = None
    """Seconds that the plan granted."""
    budget_s: float | None = None
    """Seconds that the lookup took for its budget; in a job's row before the lookup: those that are granted."""
    evaluation_s: float | None = None
    """Measured seconds of one candidate on one sample."""
    expected_iterations: float | None = None
    """From the vocabulary; what a lookup may cost follows from it."""
    expected_by: str | None = None
    allowed_evaluations: int | None = None
    seconds: float | None = None
    scoring_s: float | None = None
    entries: int | None = None
    clusters: int | None = None
    samples: int | None = None
    rounds: tuple[ScoringRound, ...] | None = None
    evaluations: int | None = None
    brute_force_evaluations: int | None = None
    shortened: bool | None = None
    score: float | None = None
    vocab_score: float | None = None
    candidates: tuple[LookupCandidate, ...] | None = None
    race: str | tuple[RaceRound, ...] | None = None
    expected: Expected | None = None
    notes: tuple[str, ...] | None = None
