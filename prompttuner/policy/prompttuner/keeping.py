"""Which idle agents are kept warm and which are given back."""

from __future__ import annotations

import numpy as np

from prompttuner.policy.contract.plan import Release, Why
from prompttuner.policy.contract.snapshot import AgentPhase, Floats
from prompttuner.policy.prompttuner.planning_pass import Pass
from prompttuner.policy.prompttuner.timeline import Kind

__all__ = ["keep_or_release"]


def keep_or_release(work: Pass) -> None:
    """Release what has been idle for as long as warming it again would cost: at most twice the best cost in hindsight.

    Karlin et al., "Competitive snoopy caching" (1988), the ski-rental rule; with ``forecast`` an agent is kept up to
    twice as long while jobs arrive faster than it would be warmed again, and less where they do not. Agents for jobs
    that are expected soon stay.
    """
    snapshot, rules = work.snapshot, work.rules
    agents, now, limits = snapshot.agents, snapshot.now, snapshot.limits
    for pool, entries in enumerate(work.timeline.pools):
        profile = snapshot.pools[pool]
        keep = rules.keep * profile.start_s
        if rules.forecast:
            keep *= _expected(snapshot.arrivals.times[pool], now, profile.start_s)
        keep = min(keep, limits.idle_limit_s) if rules.warm_pool and limits.warm_pool else 0.0
        expected, until = work.expected.get(pool, (0, now))
        for entry in entries:
            if entry[3] < 0:
                continue
            if expected > 0 and entry[1] in (Kind.IDLE, Kind.COMING):
                expected -= 1
                work.wake(until)
                continue
            if entry[1] == Kind.IDLE:
                idle = now - float(agents.since[entry[3]])
                if idle >= keep:
                    text = "idle for {:.0f} s: as long as warming it again would cost ({:.0f} s), and no job needs it"
                    work.actions.append(Release(agents.id[entry[3]], Why(text, idle, keep)))
                else:
                    work.wake(float(agents.since[entry[3]]) + keep)
            elif entry[1] == Kind.COMING and agents.phase[entry[3]] == AgentPhase.REQUESTED:
                work.actions.append(Release(agents.id[entry[3]], "still queued in Slurm, and no job needs it any more"))


def _expected(times: Floats, now: float, warming_s: float) -> float:
    """Factor on the time an agent is kept: up to 2 where the next arrival is expected soon, down to 0.5 elsewhere."""
    recent = times[-8:]
    if len(recent) < 3:
        return 1.0
    gap = (now - float(recent[0])) / len(recent)
    return float(np.clip(2.0 * warming_s / max(gap, 1e-3), 0.5, 2.0))
