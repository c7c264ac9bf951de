"""What the controller knows of paced jobs: iterations, step time and speed-up, as a simulation knows them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from prompttuner.controller.plan.iterations import Remaining

if TYPE_CHECKING:
    from prompttuner.db.tables.models import Job

__all__ = ["stated_bank", "stated_remaining", "stated_speedup", "stated_step_s"]

SOURCE = "stated by its paced spec"


def stated_remaining(job: Job, spec: Mapping[str, Any]) -> Remaining | None:
    """Iterations left of a paced job, exactly; None for a job that tunes."""
    paced = spec.get("paced")
    if paced is None:
        return None
    looked_up = job.lookup_done and (job.lookup_budget_s or 0.0) > 0
    needed = paced.get("looked_up", paced["iterations"]) if looked_up else paced["iterations"]
    left = max(float(needed) - job.step, 0.0)
    return Remaining(left, left, SOURCE)


def stated_bank(spec: Mapping[str, Any]) -> bool:
    """Whether a lookup shortens this paced job, as if a Prompt Bank held prompts for its LLM."""
    paced = spec.get("paced") or {}
    return bool(paced) and paced.get("looked_up", paced["iterations"]) < paced["iterations"]


def stated_step_s(specs: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Seconds that a step takes one member, by job id, of the paced jobs among these."""
    return {job: float(spec["paced"]["step_s"]) for job, spec in specs.items() if spec.get("paced") is not None}


def stated_speedup(spec: Mapping[str, Any]) -> tuple[tuple[int, float], ...] | None:
    """(members, speed-up) of a paced job; None for a job that tunes."""
    paced = spec.get("paced")
    return None if paced is None else tuple((n, float(gain)) for n, gain in enumerate(paced["speedup"], start=1))
