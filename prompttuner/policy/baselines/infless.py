"""INFless (ASPLOS '22) mapped to prompt tuning: serverless instances with a fixed keep-alive, never rescaled.

The mapping is ours: an instance is one GPU with an LLM resident; a job starts on the fewest GPUs that meet its
deadline, a cold start included where warm instances are too few; first come first served; instances stay warm for
``keep_s``, or (``lsth``) for ``gamma x L + (1 - gamma) x S``, the tails of the long- and the short-term histogram of
idle times (its section 3.5, after Shahrad et al., "Serverless in the Wild", ATC '20; docs/reference/policies.md says
what of this could be checked).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from prompttuner.policy.contract.plan import Action, Assign, Plan, Reason, Release, Request, Why
from prompttuner.policy.contract.snapshot import AgentPhase, Floats, JobPhase, Snapshot
from prompttuner.policy.estimate import Estimate, estimate, room
from prompttuner.policy.stopping import next_stop, stops
from prompttuner.words import Counted

__all__ = ["Infless"]

_COMING = (AgentPhase.STARTING, AgentPhase.SWITCHING, AgentPhase.REQUESTED)
LONG_S, SHORT_S = 86400.0, 3600.0
"""How far back the two histograms of idle times reach."""
TAIL = 0.99
"""The quantile of idle times that an instance is kept for."""
FEWEST = 4
"""Idle times below which the fixed keep-alive is used."""


@dataclass(slots=True)
class _Size:
    members: int
    lookup: bool


@dataclass(frozen=True, slots=True)
class Infless:
    """INFless with a fixed keep-alive of ``keep_s`` seconds (its released code uses 30 to 40 s).

    ``bank``: with the Prompt Bank.

    ``hopeless_gpus``: GPUs for a job that cannot meet its deadline (0: all it can use); ``lsth``: keep-alive from the
    histograms of idle times, its long-term share ``gamma``.
    """

    keep_s: float = 35.0
    bank: bool = True
    hopeless_gpus: int = 1
    lsth: bool = False
    gamma: float = 0.5
    name: str = "infless"

    def plan(self, snapshot: Snapshot) -> Plan:
        """Serve the waiting jobs in order of submission, then release instances idle for longer than the keep-alive."""
        jobs, agents, now = snapshot.jobs, snapshot.agents, snapshot.now
        guess = estimate(snapshot, self.bank)
        stopping = jobs.stop_on_miss & (now > jobs.deadline)
        actions: list[Action] = [*stops(snapshot, stopping)]
        notes: dict[str, Reason] = {}
        idle, coming = _by_pool(snapshot)
        free = room(snapshot)
        waiting = np.flatnonzero((jobs.phase == JobPhase.WAITING) & ~stopping)
        blocked: set[int] = set()
        for row in waiting[np.lexsort((waiting, jobs.submit[waiting]))].tolist():
            pool = int(jobs.pool[row])
            if pool in blocked:
                continue
            size = self._size(snapshot, guess, row, idle[pool], coming[pool])
            n = size.members
            if len(idle[pool]) >= n:
                taken = [idle[pool].pop() for _ in range(n)]
                text = "first come first served: {}, enough for its deadline"
                lookup_s = snapshot.pools[pool].lookup_s if size.lookup else 0.0
                why = Why(text, Counted(n, "warm instance"))
                actions.append(Assign(jobs.id[row], tuple(agents.id[a] for a in taken), why, lookup_s))
                continue
            short = n - len(idle[pool]) - len(coming[pool])
            notes[jobs.id[row]] = Why("waits for {}, {} warm", Counted(n, "instance"), len(idle[pool]))
            if short > free:
                blocked.add(pool)
                continue
            for _ in range(short):
                free -= 1
                text = "job {} needs {}, {} warm"
                why = Why(text, jobs.id[row], Counted(n, "instance"), len(idle[pool]))
                actions.append(Request(pool, why, jobs.id[row]))
            del coming[pool][: max(0, n - len(idle[pool]))]
            idle[pool].clear()
        wake = self._release(snapshot, idle, actions)
        return Plan(actions, min(wake, next_stop(snapshot)), notes)

    def _size(self, snapshot: Snapshot, guess: Estimate, row: int, idle: list[int], coming: list[int]) -> _Size:
        """The fewest instances that meet the deadline, with a lookup if that still meets it."""
        jobs, now = snapshot.jobs, snapshot.now
        pool, low = int(jobs.pool[row]), max(int(jobs.min_gpus[row]), 1)
        profile, table = snapshot.pools[pool], guess.speeds[pool]
        if jobs.best_effort[row] or not np.isfinite(jobs.deadline[row]):
            return _Size(low, bool(guess.lookup[row]))
        cold = profile.queue_s + profile.start_s
        for lookup in (True, False) if guess.lookup[row] else (False,):
            load = float(guess.work[row] if lookup else guess.work_plain[row])
            fixed = float(guess.fixed[row]) - (0.0 if lookup or not guess.lookup[row] else profile.lookup_s)
            for n in range(low, int(guess.top[row]) + 1):
                if n <= len(idle):
                    start = 0.0
                elif n <= len(idle) + len(coming):
                    start = max(float(snapshot.agents.ready_at[coming[n - len(idle) - 1]]) - now, 0.0)
                else:
                    start = cold
                if now + start + snapshot.tick_s + fixed + load / table[n] <= jobs.deadline[row]:
                    return _Size(n, lookup)
        most = int(guess.top[row])
        return _Size(max(low, min(self.hopeless_gpus or most, most)), bool(guess.lookup[row]))

    def _release(self, snapshot: Snapshot, idle: list[list[int]], actions: list[Action]) -> float:
        agents, now, limits = snapshot.agents, snapshot.now, snapshot.limits
        wake = float("inf")
        for pool, rows in enumerate(idle):
            wanted = self._window(snapshot.arrivals.times[pool], now) if self.lsth and rows else self.keep_s
            keep = min(wanted, limits.idle_limit_s) if limits.warm_pool else 0.0
            for row in rows:
                end = float(agents.since[row]) + keep
                if now >= end:
                    actions.append(Release(agents.id[row], Why("idle for the keep-alive of {:.0f} s", keep)))
                else:
                    wake = min(wake, end)
        return wake

    def _window(self, times: Floats, now: float) -> float:
        """Keep-alive of a pool: the tail of its idle times over the last day and the last hour, mixed by ``gamma``."""
        tails = []
        for span in (LONG_S, SHORT_S):
            recent = times[times >= now - span]
            tails.append(float(np.quantile(np.diff(recent), TAIL)) if len(recent) > FEWEST else self.keep_s)
        return self.gamma * tails[0] + (1.0 - self.gamma) * tails[1]


def _by_pool(snapshot: Snapshot) -> tuple[list[list[int]], list[list[int]]]:
    """Rows of idle agents (shortest idle last) and of coming ones (earliest ready first), by pool."""
    agents = snapshot.agents
    idle: list[list[int]] = [[] for _ in snapshot.pools]
    coming: list[list[int]] = [[] for _ in snapshot.pools]
    warm = np.flatnonzero((agents.phase == AgentPhase.WARM) & (agents.pool >= 0))
    for row in warm[np.lexsort((warm, agents.since[warm]))].tolist():
        idle[int(agents.pool[row])].append(row)
    soon = np.flatnonzero(np.isin(agents.phase, _COMING) & (agents.pool >= 0))
    for row in soon[np.lexsort((soon, agents.ready_at[soon]))].tolist():
        coming[int(agents.pool[row])].append(row)
    return idle, coming
