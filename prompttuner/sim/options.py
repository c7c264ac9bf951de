"""What a simulation is run with, and what it gives back."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from prompttuner.errors import SpecError

__all__ = ["JobOutcome", "SimOptions", "SimResult"]


@dataclass(frozen=True, slots=True)
class SimOptions:
    """The simulated site. Times in seconds of virtual time; all draws come from ``seed``."""

    gpus: int = 32
    tick_s: float = 1.0
    """Period of the control loop: decisions fall on its grid."""
    spool_s: float = 0.5
    """From an order to the agent's acting on it."""
    look_s: float = math.inf
    """A new job is seen after this, if that is sooner than the next tick, as a daemon looks for requests."""
    stale_s: float = 0.0
    """Age of what the controller knows of a running job's steps."""
    release_s: float = 0.0
    """From an agent's hearing that it shall end to its end; it holds its GPU until then."""
    daemon: bool = False
    """As a live daemon: it decides at every tick, not only after something happened, and what happens counts from
    the tick that sees it (starts and ends of agents, ends of jobs)."""
    idle_limit_s: float = 600.0
    """An agent without a job ends itself after this."""
    walltime_s: float = math.inf
    bank: bool = True
    """A Prompt Bank exists."""
    bank_mid: float = 0.5
    """Median factor on the iterations that a policy expects of a lookup."""
    bank_hi: float = 0.78
    """The same at the planning quantile (P90)."""
    predict_sigma: float = 0.0
    """Standard deviation of the natural logarithm of predicted over true iterations; 0: known exactly."""
    predict_bias: float = 1.0
    """Predicted over true iterations in the median: 0.5 tells a policy half of the truth, until it has seen more."""
    start_sigma: float = 0.0
    """The same for the start-up times and queue waits of allocations, around the profile's."""
    losses_per_gpu_hour: float = 0.0
    """How often a GPU that is held is lost with its node, without a word: its job goes back to a checkpoint."""
    gpus_per_node: int = 1
    """GPUs that are lost together; nodes fill up in turn, and a loss is as often per GPU where they are full."""
    preemptions_per_gpu_hour: float = 0.0
    """How often an allocation is preempted: with a warning in time for a checkpoint, so that no work is lost."""
    checkpoint_s: float = 30.0
    """A job that loses all its members goes back by up to this much work."""
    warm_pool: bool = True
    horizon_s: float = math.inf
    """Give up (with an error) if jobs are still there at this time."""
    seed: int = 0

    def __post_init__(self) -> None:
        for wrong, what in (
            (self.gpus < 1, "gpus must be 1 or more"),
            (not self.tick_s > 0, "tick_s must be above 0"),
            (
                min(self.spool_s, self.look_s, self.stale_s, self.release_s) < 0,
                "spool_s, look_s, stale_s and release_s must be 0 or more",
            ),
            (not self.idle_limit_s > 0, "idle_limit_s must be above 0"),
            (not 0 < self.bank_mid <= self.bank_hi <= 1, "0 < bank_mid <= bank_hi <= 1 must hold"),
            (min(self.predict_sigma, self.start_sigma) < 0, "spreads must be 0 or more"),
            (not 0 < self.predict_bias < math.inf, "predict_bias must be above 0"),
            (min(self.losses_per_gpu_hour, self.preemptions_per_gpu_hour) < 0, "rates must be 0 or more"),
            (self.gpus_per_node < 1, "gpus_per_node must be 1 or more"),
        ):
            if wrong:
                raise SpecError(f"simulation: {what}")


@dataclass(slots=True)
class JobOutcome:
    """What became of one job."""

    id: str
    submit_s: float
    deadline_s: float
    start_s: float = math.inf
    end_s: float = math.inf
    """inf where it was rejected or stopped."""
    gpu_s: float = 0.0
    """GPU-seconds its members were busy with it."""
    resizes: int = 0
    pauses: int = 0
    looked_up: bool = False
    demoted: bool = False
    rejected: bool = False
    stopped: bool = False

    @property
    def met(self) -> bool:
        """Ended by its deadline; a best-effort job always meets it."""
        return self.end_s <= self.deadline_s and not self.rejected


@dataclass(slots=True)
class SimResult:
    """Costs are GPU-seconds of allocations held until the last accepted job ended."""

    policy: str
    gpus: int
    jobs: list[JobOutcome]
    busy_s: float = 0.0
    startup_s: float = 0.0
    idle_s: float = 0.0
    end_s: float = 0.0
    """When the last accepted job ended."""
    allocations: int = 0
    plans: int = 0
    actions: int = 0
    usage: list[tuple[float, int, int, int]] = field(default_factory=list)
    """(time, busy, starting, idle GPUs) at each change, one a tick at most."""
    spans: list[tuple[str, float, float, int]] = field(default_factory=list)
    """(job, begin, end, GPUs): who held how many, for reports."""

    @property
    def cost_s(self) -> float:
        """GPU-seconds held in all: busy, starting and idle."""
        return self.busy_s + self.startup_s + self.idle_s

    @property
    def cluster_s(self) -> float:
        """The whole cluster held from start to end: what a scheduler that owns it costs."""
        return self.gpus * self.end_s

    @property
    def violations(self) -> int:
        """Jobs with a deadline that missed it; rejected ones count."""
        return sum(not job.met for job in self.jobs)

    def summary(self) -> dict[str, Any]:
        """Figures for a table or JSON."""
        timed = sum(math.isfinite(job.deadline_s) for job in self.jobs)
        return {
            "policy": self.policy,
            "gpus": self.gpus,
            "jobs": len(self.jobs),
            "with_deadline": timed,
            "violations": self.violations,
            "violations_pct": round(100 * self.violations / max(timed, 1), 2),
            "rejected": sum(job.rejected for job in self.jobs),
            "cost_gpu_s": round(self.cost_s, 1),
            "busy_gpu_s": round(self.busy_s, 1),
            "startup_gpu_s": round(self.startup_s, 1),
            "idle_gpu_s": round(self.idle_s, 1),
            "cluster_gpu_s": round(self.cluster_s, 1),
            "end_s": round(self.end_s, 1),
            "allocations": self.allocations,
            "resizes": sum(job.resizes for job in self.jobs),
            "lookups": sum(job.looked_up for job in self.jobs),
        }

    def outcomes(self) -> list[dict[str, Any]]:
        """One plain record a job."""
        return [{**asdict(job), "met": job.met} for job in self.jobs]
