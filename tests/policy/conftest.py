"""A small snapshot builder: rows as keyword arguments, sensible defaults for the rest."""

from __future__ import annotations

import numpy as np
import pytest

from prompttuner.policy.contract.snapshot import (
    AgentPhase,
    Agents,
    Arrivals,
    JobPhase,
    Jobs,
    PoolProfile,
    SiteLimits,
    Snapshot,
)

PROFILE = {
    "speedup": ((1, 1.0), (2, 1.95), (4, 3.7), (8, 6.8)),
    "step_s": 1.0,
    "queue_s": 2.0,
    "start_s": 20.0,
    "warm_s": 1.0,
    "resize_s": 2.0,
    "switch_s": 15.0,
    "lookup_s": 8.0,
}
JOB = {
    "pool": 0,
    "phase": JobPhase.WAITING,
    "submit": 0.0,
    "deadline": np.inf,
    "priority": 0,
    "min_gpus": 1,
    "max_gpus": 8,
    "step_s": 1.0,
    "iters_mid": 100.0,
    "iters_hi": None,
    "bank_factor_mid": 1.0,
    "bank_factor_hi": 1.0,
    "phase_since": 0.0,
    "best_effort": False,
    "stop_on_miss": False,
}
AGENT = {"pool": 0, "phase": AgentPhase.WARM, "job": -1, "gpus": 1, "since": 0.0, "ready_at": 0.0, "ends_at": np.inf}
WHOLE = {"pool", "phase", "priority", "min_gpus", "max_gpus", "job", "gpus"}
TRUTH = {"best_effort", "stop_on_miss"}


def columns(kind, defaults, rows, prefix):
    table = {}
    for key, usual in defaults.items():
        values = [row.get(key, usual) for row in rows]
        if key == "iters_hi":
            values = [row.get(key, row.get("iters_mid", defaults["iters_mid"])) for row in rows]
        table[key] = np.array(values, dtype=np.int64 if key in WHOLE else bool if key in TRUTH else np.float64)
    return kind(id=[row.get("id", f"{prefix}{i}") for i, row in enumerate(rows)], **table)


@pytest.fixture
def make():
    def build(jobs=(), agents=(), now=0.0, pools=1, gpus=8, profile=None, **limits):
        profiles = [PoolProfile(name=f"llm{i}", **{**PROFILE, **(profile or {})}) for i in range(pools)]
        return Snapshot(
            now=now,
            jobs=columns(Jobs, JOB, list(jobs), "j"),
            agents=columns(Agents, AGENT, list(agents), "a"),
            pools=profiles,
            limits=SiteLimits(gpus=gpus, **limits),
            arrivals=Arrivals(*([np.array([]) for _ in range(pools)] for _ in range(3))),
        )

    return build
