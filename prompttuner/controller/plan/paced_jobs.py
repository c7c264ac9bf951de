"""What the controller knows of paced jobs: iterations, step time and speed-up, as a simulation knows them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from prompttuner.controller.plan.iterations import Remaining
from prompttuner.protocol.spec import ResolvedSpec

if TYPE_CHECKING:
    from prompttuner.db.tables.models import Job

__all__ = ["stated_bank", "stated_remaining", "stated_speedup", "stated_step_s"]

SOURCE = "stated by its paced spec"


def stated_remaining(job: Job, spec: ResolvedSpec) -> Remaining | None:
    """Iterations left of a paced job, exactly; None for a job that tunes."""
    if spec.paced is None:
        return None
    looked_up = job.lookup_done and (job.lookup_budget_s or 0.0) > 0
    left = max(float(spec.paced.needed(looked_up)) - job.step, 0.0)
    return Remaining(left, left, SOURCE)


def stated_bank(spec: ResolvedSpec) -> bool:
    """Whether a lookup shortens this paced job, as if a Prompt Bank held prompts for its LLM."""
    return spec.paced is not None and spec.paced.needed(looked_up=True) < spec.paced.iterations


def stated_step_s(specs: Mapping[str, ResolvedSpec]) -> dict[str, float]:
    """Seconds that a step takes one member, by job id, of the paced jobs among these."""
    return {job: spec.paced.step_s for job, spec in specs.items() if spec.paced is not None}


def stated_speedup(spec: ResolvedSpec) -> tuple[tuple[int, float], ...] | None:
    """(members, speed-up) of a paced job; None for a job that tunes."""
    return None if spec.paced is None else tuple(enumerate(spec.paced.speedup, start=1))
