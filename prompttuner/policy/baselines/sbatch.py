"""What people do today: each job its own Slurm job of fixed size, first come first served with EASY backfill.

Backfill as in Lifka, "The ANL/IBM SP scheduling system" (1995): a later job may start now if it does not delay the
first.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from prompttuner.policy.baselines.skipping import fewest, looks_up
from prompttuner.policy.contract.plan import Action, Assign, Plan, Reason, Release, Request, Why
from prompttuner.policy.contract.snapshot import AgentPhase, JobPhase, Snapshot
from prompttuner.policy.estimate import Estimate, estimate, room
from prompttuner.policy.stopping import next_stop, stops
from prompttuner.words import Counted

__all__ = ["Sbatch"]


@dataclass(frozen=True, slots=True)
class Sbatch:
    """``gpus``: size of every job.

    0 lets the user size it well, the fewest that would meet its deadline if it started at once (one where none do).
    ``bank``: with the Prompt Bank; ``skip``: skip a lookup where it would miss the deadline.
    """

    gpus: int = 0
    bank: bool = True
    skip: bool = True
    name: str = "sbatch"

    def plan(self, snapshot: Snapshot) -> Plan:
        """Start what fits in order of submission; later jobs only where they do not delay the first that does not."""
        jobs, agents, now = snapshot.jobs, snapshot.agents, snapshot.now
        guess = estimate(snapshot, self.bank)
        stopping = jobs.stop_on_miss & (now > jobs.deadline)
        actions: list[Action] = [*stops(snapshot, stopping)]
        notes: dict[str, Reason] = {}
        own: dict[int, list[int]] = {}
        for agent in np.flatnonzero((agents.phase <= AgentPhase.WARM) & (agents.job >= 0)).tolist():
            own.setdefault(int(agents.job[agent]), []).append(agent)
        free = room(snapshot)
        waiting = np.flatnonzero((jobs.phase == JobPhase.WAITING) & ~stopping)
        queue = waiting[np.lexsort((waiting, jobs.submit[waiting]))].tolist()
        for row in (row for row in queue if row in own):
            lost = max(int(jobs.min_gpus[row]), 1) - len(own[row])
            if lost > 0:
                again = min(lost, free)
                free -= again
                why = Why("job {} lost GPUs before it started and needs {} more", jobs.id[row], lost)
                actions.extend(Request(int(jobs.pool[row]), why, jobs.id[row]) for _ in range(again))
            else:
                self._start(snapshot, guess, row, own[row], actions)
        shadow: tuple[float, int] | None = None
        for row in (row for row in queue if row not in own):
            size = self._size(snapshot, guess, row)
            cold = snapshot.pools[int(jobs.pool[row])].start_s + snapshot.pools[int(jobs.pool[row])].queue_s
            ends = now + cold + guess.seconds(row, int(jobs.pool[row]), size)
            if size <= free and (shadow is None or ends <= shadow[0] or size <= shadow[1]):
                free -= size
                if shadow is not None and ends > shadow[0]:
                    shadow = (shadow[0], shadow[1] - size)
                text = "enough is free ({}), and job {} is {}"
                turn = "first in the queue" if shadow is None else "backfilled"
                why = Why(text, Counted(size, "GPU"), jobs.id[row], turn)
                actions.extend(Request(int(jobs.pool[row]), why, jobs.id[row]) for _ in range(size))
                continue
            notes[jobs.id[row]] = Why("queued for {}, {} free", Counted(size, "GPU"), free)
            if shadow is None:
                shadow = _shadow(snapshot, guess, size, free)
            if free == 0:
                break
        for agent in np.flatnonzero((agents.phase == AgentPhase.WARM) & (agents.job < 0)).tolist():
            actions.append(Release(agents.id[agent], "its job has ended"))
        return Plan(actions, next_stop(snapshot), notes)

    def _size(self, snapshot: Snapshot, guess: Estimate, row: int) -> int:
        jobs, pool = snapshot.jobs, int(snapshot.jobs.pool[row])
        low = max(int(jobs.min_gpus[row]), 1)
        most = max(low, int(min(guess.top[row], snapshot.limits.allocations)))  # more would be waited for in vain
        if self.gpus:
            return max(low, min(self.gpus, most))
        profile = snapshot.pools[pool]
        left = float(jobs.deadline[row] - jobs.submit[row]) - profile.queue_s - profile.start_s
        if not np.isfinite(left):
            return min(low, most)
        wanted, _ = fewest(snapshot, guess, row, low, left - 2 * snapshot.tick_s, self.skip)
        return min(wanted or low, most)

    def _start(self, snapshot: Snapshot, guess: Estimate, row: int, mine: list[int], actions: list[Action]) -> None:
        """Its GPUs are all there: tune. A job that lost one of them on the way runs with the rest."""
        agents, jobs = snapshot.agents, snapshot.jobs
        if all(agents.phase[a] == AgentPhase.WARM for a in mine):
            mine = mine[: int(guess.top[row])]
            looks = looks_up(snapshot, guess, row, len(mine), self.skip)
            lookup_s = snapshot.pools[int(jobs.pool[row])].lookup_s if looks else 0.0
            why = Why("all it asked for has started ({})", Counted(len(mine), "GPU"))
            actions.append(Assign(jobs.id[row], tuple(agents.id[a] for a in mine), why, lookup_s))


def _shadow(snapshot: Snapshot, guess: Estimate, size: int, free: int) -> tuple[float, int]:
    """(when the first queued job can start, GPUs that are free then beyond its own), by the running jobs' ends."""
    jobs, agents = snapshot.jobs, snapshot.agents
    held = np.flatnonzero(agents.job >= 0)
    counts = np.bincount(agents.job[held], minlength=jobs.n)
    rows = np.flatnonzero(counts)
    ends = sorted(
        (snapshot.now + guess.seconds(row, int(jobs.pool[row]), int(counts[row])), int(counts[row]))
        for row in rows.tolist()
    )
    loose = int((agents.job < 0).sum())
    have = free + loose
    for end, count in ends:
        have += count
        if have >= size:
            return end, have - size
    return float("inf"), 0
