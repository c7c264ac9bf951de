"""The right to skip a Prompt Bank lookup where only tuning without it meets the deadline, for all baselines alike."""

from __future__ import annotations

from prompttuner.policy.contract.snapshot import Snapshot
from prompttuner.policy.estimate import Estimate

__all__ = ["fewest", "looks_up"]


def fewest(snapshot: Snapshot, guess: Estimate, row: int, low: int, left_s: float, skip: bool) -> tuple[int, bool]:
    """(fewest members, from ``low`` up, that end within ``left_s`` seconds, whether with a lookup); 0 where none do.

    With a lookup where it pays and some size still meets the deadline; else, where ``skip`` allows it, without.
    """
    pool = int(snapshot.jobs.pool[row])
    looks = bool(guess.lookup[row])
    members = guess.fewest(row, pool, low, left_s)
    if members or not (skip and looks):
        return members, looks
    left = left_s - _plain_fixed(snapshot, guess, row)
    work, table = float(guess.work_plain[row]), guess.speeds[pool]
    for n in range(low, int(guess.top[row]) + 1):
        if left > 0 and work <= left * table[n]:
            return n, False
    return 0, looks


def looks_up(snapshot: Snapshot, guess: Estimate, row: int, members: int, skip: bool) -> bool:
    """Whether a job that starts now on so many members does its lookup first."""
    jobs, looks = snapshot.jobs, bool(guess.lookup[row])
    left_s = float(jobs.deadline[row]) - snapshot.now
    if not (skip and looks) or jobs.best_effort[row]:
        return looks
    pool = int(jobs.pool[row])
    table = guess.speeds[pool]
    n = min(members, len(table) - 1)
    plain_s = _plain_fixed(snapshot, guess, row) + float(guess.work_plain[row]) / table[n]
    return not plain_s <= left_s < guess.seconds(row, pool, n)


def _plain_fixed(snapshot: Snapshot, guess: Estimate, row: int) -> float:
    return float(guess.fixed[row]) - snapshot.pools[int(snapshot.jobs.pool[row])].lookup_s
