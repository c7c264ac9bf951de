"""One job of a trace: what was asked for, and the truth that only a simulator may know."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from prompttuner.errors import DataError

__all__ = ["TraceJob"]

LATEST_S = 1e10
"""Some 300 years, Unix times included: what lies later is a broken number, not a job."""
MOST_WORK_S = 1e12
MOST_GPUS = 1_000_000
MOST_PRIORITY = 1_000_000_000


@dataclass(frozen=True, slots=True)
class TraceJob:
    """A job as it was (or is to be) submitted. Times are seconds since the start of the trace.

    Raises:
        DataError: a field that cannot be right; the message names job and field.
    """

    id: str
    submit_s: float
    llm: str
    """Name of the pool (LLM, and batch where the speed-up depends on it), that is of the profile to use."""
    iters: float
    """True iterations to the target from the default (vocabulary) prompt."""
    step_s: float
    """Seconds an iteration takes on one GPU, global batch included."""
    deadline_s: float = math.inf
    """Absolute; inf for best effort."""
    min_gpus: int = 1
    max_gpus: int = 8
    bank_factor: float = 1.0
    """True factor on ``iters`` once a Prompt Bank lookup was done (1: the bank has nothing for this job)."""
    task: str = ""
    """Task class (jobs of one class are similar to the bank)."""
    requested_gpus: int = 0
    """GPUs the user asked for, for schedulers with fixed sizes; 0 when the trace does not say."""
    priority: int = 0
    stop_on_miss: bool = False
    """The user wants the job ended at its deadline rather than late."""
    user: str = ""

    def __post_init__(self) -> None:
        for wrong, what in (
            (not self.id or self.id.startswith("#"), "id must not be empty, nor begin with #"),
            (not self.llm, "llm must not be empty"),
            (
                not _clean(self.id, self.llm, self.task, self.user),
                "texts must be printable, without blanks around them",
            ),
            (not 0 <= self.submit_s <= LATEST_S, f"submit_s must be a time from 0 to {LATEST_S:g} s"),
            (not (math.isfinite(self.iters) and self.iters > 0), "iters must be above 0"),
            (not (math.isfinite(self.step_s) and self.step_s > 0), "step_s must be above 0"),
            (not self.work_s <= MOST_WORK_S, f"iters x step_s must be {MOST_WORK_S:g} s at most"),
            (not self.deadline_s > self.submit_s, "deadline_s must lie after submit_s (inf: best effort)"),
            (MOST_WORK_S < self.deadline_s < math.inf, f"deadline_s must be {MOST_WORK_S:g} at most, or inf"),
            (not 1 <= self.min_gpus <= self.max_gpus, "min_gpus and max_gpus must hold 1 <= min_gpus <= max_gpus"),
            (not self.max_gpus <= MOST_GPUS, f"max_gpus must be {MOST_GPUS} at most"),
            (
                not 0 <= self.requested_gpus <= MOST_GPUS,
                f"requested_gpus: 0 (not known) to {MOST_GPUS}",
            ),
            (not abs(self.priority) <= MOST_PRIORITY, f"priority must lie within {MOST_PRIORITY} of 0"),
            (not 0 < self.bank_factor <= 10, "bank_factor must lie above 0 and be 10 at most"),
        ):
            if wrong:
                raise DataError(f"job {self.id!r}: {what}")

    @property
    def work_s(self) -> float:
        """GPU-seconds on one GPU from the default prompt."""
        return self.iters * self.step_s

    @property
    def best_effort(self) -> bool:
        """Whether the job has no deadline."""
        return math.isinf(self.deadline_s)

    def with_deadline(self, slo_multiple: float) -> TraceJob:
        """The same job with deadline = submit + multiple x its one-GPU time from the default prompt."""
        return replace(self, deadline_s=self.submit_s + slo_multiple * self.work_s)


def _clean(*texts: str) -> bool:
    """Whether a text file of rows can hold these and give them back as they were."""
    return all(text == text.strip() and text.isprintable() for text in texts)
