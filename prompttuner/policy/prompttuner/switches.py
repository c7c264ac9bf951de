"""Switches of the prompttuner policy: for ablations, and its few tuned figures."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Switches"]


@dataclass(frozen=True, slots=True)
class Switches:
    """Each rule can be turned off; the figures were tuned on the benchmark's tuning windows."""

    bank: bool = True
    """Use the Prompt Bank where a lookup is expected to pay."""
    warm_pool: bool = True
    """Keep idle agents for the next job; off: they are released at once."""
    delay: bool = True
    """A job may wait for a warm GPU that is about to come free instead of a cold start."""
    resize: bool = True
    """Change the members of running jobs."""
    rescue: bool = True
    """Pause jobs with slack, or give up larger ones, for jobs that would miss their deadline otherwise."""
    boost: bool = True
    """Idle GPUs speed up running jobs."""
    forecast: bool = True
    """Keep agents longer where the arrival history says they will be needed, and shorter elsewhere."""
    prewarm: bool = True
    """Warm agents before bursts that the arrival history foretells (only with ``forecast``)."""
    switch: bool = True
    """A warm agent may load another LLM."""
    learn: bool = True
    """Correct what is told by how wrong it has been (``Snapshot.lessons``)."""
    overload: float = 1.0
    """Jobs are put last where more is due than this many times what the GPUs can do."""
    caution: float = 0.5
    """Where between the median (0) and the planning quantile (1) of the remaining work deadlines are planned."""
    patience: float = 0.8
    """Share of a job's slack that waiting for a warm GPU may use up."""
    keep: float = 0.75
    """Idle agents are kept for this many times the cost of warming them again (1: ski rental, 2-competitive)."""
    boost_gain: float = 0.9
    """Least speed-up that one more idle GPU must bring a running job."""
    boost_s: float = 30.0
    """Least predicted seconds left of a job that is given an idle GPU."""
    wait_s: float = 60.0
    """How long best-effort jobs wait for a warm GPU before a cold one is asked for."""
    margin_ticks: float = 1.0
    """Safety margin of predicted ends, in ticks."""
