"""Jobs that asked to be ended at their deadline."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from prompttuner.policy.contract.plan import Stop, Why
from prompttuner.policy.contract.snapshot import Snapshot

__all__ = ["next_stop", "stops"]


def stops(snapshot: Snapshot, stopping: NDArray[np.bool_]) -> list[Stop]:
    """A Stop for each of these jobs."""
    jobs = snapshot.jobs
    text = "its deadline passed {:.0f} s ago, and it was to stop then"
    return [
        Stop(jobs.id[row], Why(text, snapshot.now - float(jobs.deadline[row])))
        for row in np.flatnonzero(stopping).tolist()
    ]


def next_stop(snapshot: Snapshot) -> float:
    """When the next job that is to stop at its deadline gets there; inf where there is none."""
    jobs = snapshot.jobs
    ahead = jobs.deadline[jobs.stop_on_miss & (jobs.deadline >= snapshot.now)]
    return float(ahead.min()) + 1e-3 if len(ahead) else float("inf")
