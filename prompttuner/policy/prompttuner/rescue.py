"""Jobs that do not fit: run first on the GPUs of a job with slack, or in the place of a larger one."""

from __future__ import annotations

import numpy as np

from prompttuner.policy.contract.plan import Why
from prompttuner.policy.contract.snapshot import JobPhase
from prompttuner.policy.prompttuner.planning_pass import Pass
from prompttuner.words import Counted

__all__ = ["rescue"]


def rescue(work: Pass, row: int) -> bool:
    """Pause a running job of the pool that still meets its deadline afterwards on the GPUs it has now.

    The exchange behind earliest deadline first: whoever is due later lends its GPUs for the run of the other.
    """
    snapshot, now = work.snapshot, work.snapshot.now
    jobs, guess = snapshot.jobs, work.guess
    if not work.rules.resize:
        return False
    pool = int(jobs.pool[row])
    profile, table = snapshot.pools[pool], guess.speeds[pool]
    left = float(jobs.deadline[row]) - now - work.margin_s - snapshot.tick_s
    for lookup in (True, False) if guess.lookup[row] else (False,):
        load = work.work[row] if lookup else work.plain[row]
        fixed = work.fixed[row] - (0.0 if lookup or not guess.lookup[row] else profile.lookup_s)
        for n in range(max(int(jobs.min_gpus[row]), 1), int(guess.top[row]) + 1):
            seconds = fixed + load / table[n]
            if seconds > left:
                continue
            lender = _lender(work, pool, n, seconds)
            if lender is not None:
                _lend(work, row, lender, n, now + snapshot.tick_s + seconds)
                return True
            break
    return False


def _lender(work: Pass, pool: int, members: int, seconds: float) -> int | None:
    """The running job with most slack left after lending ``members`` GPUs (all it has, or more than enough)."""
    snapshot, jobs, guess = work.snapshot, work.snapshot.jobs, work.guess
    profile = snapshot.pools[pool]
    running = (jobs.phase == JobPhase.RUNNING) & (jobs.pool == pool) & (guess.members >= members)
    pause = seconds + profile.warm_s + 3 * snapshot.tick_s
    due = np.where(np.isfinite(jobs.deadline), jobs.deadline, -1e18)
    slack = due - work.ends - pause - work.margin_s
    fits = np.flatnonzero(running & ~jobs.best_effort & (slack > 0))
    for row in fits[np.lexsort((fits, -slack[fits]))].tolist():
        if row not in work.touched and row not in work.leaving:
            return int(row)
    return None


def _lend(work: Pass, row: int, lender: int, members: int, until: float) -> None:
    """Pause the lender; the job is placed on its GPUs in the next pass, when they are idle."""
    snapshot, timeline, jobs = work.snapshot, work.timeline, work.snapshot.jobs
    pool = int(jobs.pool[row])
    agents = work.members(lender)
    slack = float(jobs.deadline[lender]) - float(work.ends[lender])
    text = "pauses for job {}, due in {:.0f} s: it has {:.0f} s of slack itself"
    due = float(jobs.deadline[row]) - snapshot.now
    work.assign(lender, [], Why(text, jobs.id[row], due, slack))
    timeline.drop(pool, set(agents))
    timeline.give(pool, until, len(agents))
    text = "takes over {} of job {}, which has {:.0f} s of slack"
    work.notes[jobs.id[row]] = Why(text, Counted(members, "GPU"), jobs.id[lender], slack)
