"""Jobs and agents of a simulation, and the columns in which a policy sees them."""

from __future__ import annotations

import math

import numpy as np

from prompttuner.policy.contract.snapshot import AgentPhase
from prompttuner.sim.options import JobOutcome
from prompttuner.trace.job import TraceJob

__all__ = ["AGENT_COLUMNS", "AGENT_KINDS", "JOB_COLUMNS", "JOB_KINDS", "SimAgent", "SimJob"]

_WHOLE = ("pool", "phase", "priority", "min_gpus", "max_gpus", "job", "gpus")
_TRUTH = ("best_effort", "stop_on_miss")
JOB_COLUMNS = (
    "pool", "phase", "submit", "deadline", "priority", "min_gpus", "max_gpus", "step_s", "iters_mid", "iters_hi",
    "bank_factor_mid", "bank_factor_hi", "phase_since", "best_effort", "stop_on_miss",
    "unseen",
)  # fmt: skip
AGENT_COLUMNS = ("pool", "phase", "job", "gpus", "since", "ready_at", "ends_at")


def _kind(name: str) -> type:
    return np.int64 if name in _WHOLE else np.bool_ if name in _TRUTH else np.float64


JOB_KINDS = {name: _kind(name) for name in (*JOB_COLUMNS, "left", "rate", "error", "total")}
"""Columns a policy sees, and true iterations left (at the world's ``jobs_at``), iterations/s, error of prediction,
iterations at the start."""
AGENT_KINDS = {name: _kind(name) for name in AGENT_COLUMNS}


class SimAgent:
    """One allocation. ``version`` grows with each change of phase, which voids events of the former one."""

    __slots__ = ("id", "job", "phase", "pool", "reserved", "row", "slot", "version")

    def __init__(self, ident: str, pool: int, reserved: SimJob | None) -> None:
        self.id = ident
        self.pool = pool
        self.reserved = reserved
        self.job: SimJob | None = None
        self.phase = int(AgentPhase.REQUESTED)
        self.version = 0
        self.row = -1
        self.slot = -1
        """Which GPU of the site it has; -1 while it is queued."""


class SimJob:
    """One job that has not ended. ``version`` voids events of a former membership or phase."""

    __slots__ = ("changed_at", "lookup_s", "members", "outcome", "pool", "reserved", "row", "trace", "up_at", "version")

    def __init__(self, trace: TraceJob, pool: int) -> None:
        self.trace = trace
        self.pool = pool
        self.members: list[SimAgent] = []
        self.reserved: set[SimAgent] = set()
        self.outcome = JobOutcome(trace.id, trace.submit_s, trace.deadline_s)
        self.lookup_s = 0.0
        self.version = 0
        self.row = -1
        self.changed_at = 0.0
        self.up_at = math.inf
