"""What may be held and asked for: the user's caps, the site's limits, the budget."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from prompttuner.config import Settings
from prompttuner.controller.act.gate import Gate
from prompttuner.controller.resources import Resources
from prompttuner.db.tables.models import Allocation
from prompttuner.db.upkeep import retention
from prompttuner.errors import SpecError
from prompttuner.policy.contract.snapshot import SiteLimits
from prompttuner.slurm.backend import Backend
from prompttuner.slurm.slurm_backend import SlurmBackend

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

__all__ = ["Limits", "check_within_cap", "most_gpus"]

DEFAULT_GPUS_HELD = 8
"""GPUs held at a time where neither the user nor the site says otherwise: unknown means modest."""


def most_gpus(settings: Settings) -> int:
    """GPUs that may be held at a time."""
    gpus = settings.local.slots if settings.backend == "local" else (settings.max_gpus or DEFAULT_GPUS_HELD)
    return gpus if settings.max_gpus is None else min(gpus, settings.max_gpus)


def check_within_cap(settings: Settings, gpus: int) -> None:
    """Refuse a job that could never run.

    Raises:
        SpecError: it needs more GPUs than may be held.
    """
    most = most_gpus(settings)
    if gpus > most:
        key = "local.slots or max_gpus" if settings.backend == "local" else "max_gpus"
        raise SpecError(f"{gpus} GPUs at a time are more than the {most} that may be held here (setting {key})")


class Limits:
    """The limits of one controller, as they are now."""

    def __init__(self, resources: Resources, backend: Backend, gate: Gate) -> None:
        self._res = resources
        self._backend = backend
        self.gate = self._gate = gate

    @property
    def gpus_per_agent(self) -> int:
        """GPUs of one allocation."""
        s = self._res.settings
        return s.slurm.gpus_per_agent if s.backend == "slurm" else 1

    def now(self, allocations: Sequence[Allocation], *, prewarm: bool) -> SiteLimits:
        """What may be held and asked for in this tick, beside these live allocations."""
        s = self._res.settings
        held = sum(a.gpus for a in allocations)
        allowed = self._gate.allowance(self._res.now(), held, len(allocations), self.gpus_per_agent)
        return SiteLimits(
            gpus=most_gpus(s),
            allocations=float("inf") if s.max_jobs is None else s.max_jobs,
            requests_now=allowed.requests_now,
            idle_limit_s=s.idle_limit_s,
            walltime_s=self.walltime_s() or float("inf"),
            gpu_hours_left=self.hours_left(s.max_gpu_hours),
            warm_pool=s.pool == "warm",
            prewarm=prewarm,
        )

    def hours_left(self, budget: float | None) -> float:
        """GPU-hours that all allocations ever made leave of a budget; see policy/budget.py for what that stops."""
        if budget is None:
            return float("inf")

        def spent(session: Session) -> float:
            return retention.held_gpu_seconds(session, self._res.now()) + retention.forgotten_gpu_seconds(session)

        return max(0.0, budget - self._res.state.query(spent) / 3600.0)

    def walltime_s(self) -> float | None:
        """Longest life of an allocation; None where nothing is known."""
        s = self._res.settings
        if s.backend == "local":
            return s.local.walltime_s
        # An agent must know its end, so where the user says nothing the partition is asked.
        if isinstance(self._backend, SlurmBackend):
            return self._backend.walltime_s()
        return s.slurm.walltime_s
