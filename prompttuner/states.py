"""The explicit state machines of jobs and allocations: every allowed change, and nothing else."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal, TypeAlias

from prompttuner.errors import StateError

__all__ = [
    "ALLOCATION_ENDED",
    "JOB_ENDED",
    "AllocationState",
    "JobState",
    "Verdict",
    "check_allocation",
    "check_job",
    "verdict_of",
]


class JobState(StrEnum):
    """States of a job."""

    QUEUED = "queued"
    """Has no members: new, or paused at a checkpoint."""
    RUNNING = "running"
    """Has members (starting, looking up or tuning: see the lease)."""
    HELD = "held"
    DONE = "done"
    """Reached its target; the result is promoted."""
    EXHAUSTED = "exhausted"
    """Ran all its iterations without reaching the target; the best prompt is kept as result."""
    FAILED = "failed"
    CANCELLED = "cancelled"
    STOPPED = "stopped"
    """Missed its deadline and was asked to stop then."""
    REJECTED = "rejected"
    """Refused by a policy's admission control."""


class AllocationState(StrEnum):
    """States of an allocation."""

    INTENT = "intent"
    """Row committed, Slurm not asked yet, or its answer not known."""
    PENDING = "pending"
    """Queued in Slurm."""
    STARTING = "starting"
    """Runs; the LLM is not loaded yet."""
    WARM = "warm"
    BUSY = "busy"
    SWITCHING = "switching"
    DRAINING = "draining"
    ENDED = "ended"
    ABANDONED = "abandoned"
    """An intent that Slurm does not know; its UUID is never sent or admitted again."""


JOB_ENDED = frozenset(
    {
        JobState.DONE,
        JobState.EXHAUSTED,
        JobState.FAILED,
        JobState.CANCELLED,
        JobState.STOPPED,
        JobState.REJECTED,
    }
)
ALLOCATION_ENDED = frozenset({AllocationState.ENDED, AllocationState.ABANDONED})

_J = JobState
_JOB: dict[JobState, frozenset[JobState]] = {
    _J.QUEUED: frozenset(
        {_J.RUNNING, _J.HELD, _J.FAILED, _J.CANCELLED, _J.STOPPED, _J.REJECTED, _J.DONE, _J.EXHAUSTED}
    ),
    _J.RUNNING: frozenset({_J.QUEUED, _J.HELD, _J.DONE, _J.EXHAUSTED, _J.FAILED, _J.CANCELLED, _J.STOPPED}),
    _J.HELD: frozenset({_J.QUEUED, _J.CANCELLED, _J.STOPPED}),
}

_A = AllocationState
_ALLOCATION: dict[AllocationState, frozenset[AllocationState]] = {
    # The answer of sbatch may be lost: the agent, or its end, may be the first that is heard of an intent.
    _A.INTENT: frozenset({_A.PENDING, _A.STARTING, _A.ENDED, _A.ABANDONED}),
    _A.PENDING: frozenset({_A.STARTING, _A.ENDED}),
    # A lease may be granted before the LLM is loaded: then the agent is busy at once.
    _A.STARTING: frozenset({_A.WARM, _A.BUSY, _A.ENDED}),
    _A.WARM: frozenset({_A.BUSY, _A.SWITCHING, _A.DRAINING, _A.ENDED}),
    _A.BUSY: frozenset({_A.WARM, _A.DRAINING, _A.ENDED}),
    _A.SWITCHING: frozenset({_A.WARM, _A.BUSY, _A.DRAINING, _A.ENDED}),
    _A.DRAINING: frozenset({_A.ENDED}),
}


def check_job(old: JobState, new: JobState) -> None:
    """Raise StateError unless a job may change from ``old`` to ``new``."""
    if new not in _JOB.get(old, frozenset()):
        raise StateError(f"a {old} job cannot become {new}")


def check_allocation(old: AllocationState, new: AllocationState) -> None:
    """Raise StateError unless an allocation may change from ``old`` to ``new``."""
    if new not in _ALLOCATION.get(old, frozenset()):
        raise StateError(f"an allocation that is {old} cannot become {new}")


Verdict: TypeAlias = Literal["none", "open", "met", "missed", "unreached", "cancelled"]
"""What became of a job's deadline.

It has none; it can still be met; its target was reached in time; the deadline passed before that; the job ended before
it without its target (exhausted, failed, rejected); its user took it back before it."""


def verdict_of(state: JobState, deadline_at: float | None, finished_at: float | None, now: float) -> Verdict:
    """What became of a job's deadline. Times share one clock, in seconds."""
    if deadline_at is None:
        return "none"
    if state not in JOB_ENDED or finished_at is None:
        return "missed" if now > deadline_at else "open"
    if finished_at > deadline_at:
        return "missed"
    if state == JobState.DONE:
        return "met"
    return "cancelled" if state == JobState.CANCELLED else "unreached"
