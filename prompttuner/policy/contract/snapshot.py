"""What a policy may know: plain columns, one row a job or an agent. No I/O, no Slurm, no database, no torch.

The owner of a snapshot (live controller or simulator) keeps it and updates it in place; a policy reads it, never
writes it and remembers nothing between calls. All times are seconds on the owner's clock (Unix time when live,
virtual time when simulated); a missing time is ``inf``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

__all__ = ["AgentPhase", "Agents", "Arrivals", "JobPhase", "Jobs", "Lessons", "PoolProfile", "SiteLimits", "Snapshot"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class JobPhase(IntEnum):
    """Where an active job stands. Ended jobs are not in a snapshot."""

    WAITING = 0
    """Has no agents (new, or paused at a checkpoint)."""
    STARTING = 1
    """Has agents, its first step in this membership is not yet done."""
    LOOKUP = 2
    """Its first agent looks for an initial prompt in the Prompt Bank."""
    RUNNING = 3
    HELD = 4
    """Held by the user: never given agents."""


class AgentPhase(IntEnum):
    """Where an allocation and its agent stand. Ended ones are not in a snapshot."""

    REQUESTED = 0
    """Asked of Slurm, queued there: costs nothing yet."""
    STARTING = 1
    """Runs (costs), LLM not loaded yet."""
    WARM = 2
    """LLM loaded, no job."""
    BUSY = 3
    """Member of a job; with ``Agents.job`` -1: told to leave its job, WARM again by ``ready_at``."""
    SWITCHING = 4
    """Loads another LLM within the allocation."""
    DRAINING = 5
    """Takes no new job: its end is near or it was told to go."""


@dataclass(slots=True)
class PoolProfile:
    """What is known of one pool, that is one (LLM, GPU type, set-up)."""

    name: str
    speedup: tuple[tuple[int, float], ...]
    """(members, speed-up over one member), ascending in members, first is (1, 1.0). World sizes in between are
    interpolated; beyond the last there is no gain."""
    step_s: float
    """Seconds for one iteration on one member (jobs may override it, see ``Jobs.step_s``)."""
    queue_s: float
    """Expected wait in Slurm's queue for a new allocation."""
    start_s: float
    """From Slurm's start of an allocation to a warm agent: interpreter, imports, LLM load."""
    warm_s: float
    """From lease to first step on a warm agent."""
    resize_s: float
    """Pause of those who stay when membership changes."""
    switch_s: float
    """A warm agent loads this pool's LLM in place of another."""
    lookup_s: float
    """A full Prompt Bank lookup."""
    origin: str = ""
    """Where the figures come from (command, or source)."""


@dataclass(slots=True)
class Jobs:
    """One row per active job. Arrays have one common length ``n``."""

    id: list[str]
    pool: Ints
    phase: Ints
    submit: Floats
    deadline: Floats
    """Absolute; inf for best effort from the start."""
    priority: Ints
    min_gpus: Ints
    max_gpus: Ints
    step_s: Floats
    """Seconds an iteration on one member (global batch included)."""
    iters_mid: Floats
    """Median of the iterations still to do, were it to start (go on) with the initial prompt it has now."""
    iters_hi: Floats
    """The same at the planning quantile (P90 by default)."""
    bank_factor_mid: Floats
    """Expected factor on the remaining iterations if a lookup is done first; 1 once looked up, or without a bank."""
    bank_factor_hi: Floats
    phase_since: Floats
    best_effort: NDArray[np.bool_]
    """Demoted: its deadline no longer counts (it cannot be met, or would drag others down)."""
    stop_on_miss: NDArray[np.bool_]
    unseen: Floats | None = None
    """Share of ``iters_mid`` that rests on what was told at submission and not on the job's own progress: 1 before its
    first step. None: not known, taken as 1 where a job waits and 0 elsewhere."""

    @property
    def n(self) -> int:
        """Number of jobs."""
        return len(self.id)


@dataclass(slots=True)
class Agents:
    """One row per allocation that has not ended."""

    id: list[str]
    pool: Ints
    """Pool whose LLM it holds or loads; -1 when unknown."""
    phase: Ints
    job: Ints
    """Row in ``Jobs`` of the job it is a member of (BUSY), or is reserved for (the ``job`` of its Request or
    SwitchModel); -1 without. A reservation is a hint to the policy alone, which may assign the agent otherwise; it
    lasts until the agent is assigned or ends, or the job ends."""
    gpus: Ints
    since: Floats
    """When the present phase began (for WARM: idle since)."""
    ready_at: Floats
    """Predicted time it is warm; in the past for WARM and BUSY."""
    ends_at: Floats
    """End of its walltime; inf when unlimited or not started."""

    @property
    def n(self) -> int:
        """Number of agents."""
        return len(self.id)


@dataclass(slots=True)
class SiteLimits:
    """What the site and the user allow; inf where there is no limit."""

    gpus: int
    """GPUs this user may hold at once, or the cluster's size."""
    allocations: float = float("inf")
    requests_now: float = float("inf")
    """Allocations that may be asked for in this tick (token bucket, breaker: 0 when paused)."""
    idle_limit_s: float = 600.0
    walltime_s: float = float("inf")
    gpu_hours_left: float = float("inf")
    warm_pool: bool = True
    """False where the site forbids placeholders: agents end with their job."""
    prewarm: bool = True
    """False where no allocation may be asked for before its job has come."""


@dataclass(slots=True)
class Arrivals:
    """History of submissions by pool, for forecasts: statistics live here, not in a policy."""

    times: list[Floats] = field(default_factory=list)
    """For each pool: times of its latest submissions (bounded), ascending."""
    work: list[Floats] = field(default_factory=list)
    """For each pool, beside ``times``: one-member seconds each of those jobs was expected to take; may be empty. nan
    where it is not known."""
    slack: list[Floats] = field(default_factory=list)
    """For each pool, beside ``times``: seconds from submission to deadline (inf for best effort); may be empty."""


@dataclass(slots=True)
class Lessons:
    """How wrong one has been of late: truth over what was told, for one pool, the latest last (bounded).

    Each array has two columns: when it became known (on the snapshot's clock), and the ratio (above 0).
    """

    work: Floats
    """True over predicted iterations of jobs that reached their target."""
    bank: Floats
    """True over expected (median) factor of lookups."""
    queue: Floats
    """Waits in Slurm's queue over ``PoolProfile.queue_s``."""
    start: Floats
    """Start-ups over ``PoolProfile.start_s``."""


@dataclass(slots=True)
class Snapshot:
    """All that a policy may know at one moment."""

    now: float
    jobs: Jobs
    agents: Agents
    pools: list[PoolProfile]
    limits: SiteLimits
    arrivals: Arrivals
    tick_s: float = 1.0
    """Period of the control loop: nothing decided now takes effect sooner than the spool's delay."""
    next_plan_s: float = 0.0
    """Seconds until the next plan at the latest, where that is more than ``tick_s`` (ticks by cron)."""
    lessons: list[Lessons] = field(default_factory=list)
    """By pool; empty where the owner learns by itself and tells what it has learned, or does not learn."""
